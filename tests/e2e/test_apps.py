"""Apps' lives: deployed in versions, rolled over and back, looked up, tagged, detached, stopped, and their logs."""

import json
import signal
from pathlib import Path

from support.client import Client
from support.server import Server
from support.waits import wait_until

# An app of two functions, deployed in one version after the other.
VERSIONED = """
app = modal.App("{name}")
VERSION = {version}

@app.function(secrets=[modal.Secret.from_dict({{"KEPT": "the same in each version"}})])
def which(seconds=0):
    time.sleep(seconds)
    return VERSION, os.environ["MODAL_TASK_ID"]

{more}
"""


def _deploy(client: Client, name: str, version: int, *words: str, more: str = "") -> str:
    path = client.write(f"{name}.py", VERSIONED.format(name=name, version=version, more=more))
    return client.modal("deploy", str(path), *words).ok().flat


def _history(client: Client, name: str) -> list[dict[str, str]]:
    return json.loads(client.modal("app", "history", name, "--json").ok().stdout)


def test_versions_are_deployed_kept_and_gone_back_to(client: Client) -> None:
    name = "versioned"
    extra = "@app.function()\ndef extra():\n    return 'extra'\n"
    assert "App deployed" in _deploy(client, name, 1, "--tag", "first")
    assert "no changes detected" in _deploy(client, name, 1)
    assert "App deployed" in _deploy(client, name, 2, more=extra)
    look = f"""
    which = modal.Function.from_name("{name}", "which")
    report("live", which.remote()[0])
    report("id", which.object_id)
    report("first", modal.Function.from_name("{name}", "which", version=1).remote()[0])
    report("extra", attempt(modal.Function.from_name("{name}", "extra").remote))
    report("none", attempt(modal.Function.from_name("{name}", "which", version=9).hydrate))
    """
    second = client.script(look).ok()
    assert (second["live"], second["first"], second["extra"]["value"]) == (2, 1, "extra")
    assert "no version 9" in second["none"]["error"]
    assert "successful" in client.modal("app", "rollback", name).ok().flat
    third = client.script(look).ok()
    assert (third["live"], third["first"], third["id"]) == (1, 1, second["id"])
    assert "NotFoundError" in third["extra"]["kinds"]
    client.modal("app", "rollback", name, "v2").ok()
    fourth = client.script(look).ok()
    assert (fourth["live"], fourth["extra"]["value"], fourth["id"]) == (2, "extra", second["id"])
    versions = _history(client, name)
    assert [entry["version"] for entry in versions] == ["v4", "v3", "v2", "v1"]
    assert [entry["tag"] for entry in versions] == [None, "first", None, "first"]
    assert {entry["client"] for entry in versions} == {"1.6.4"}
    refused = client.modal("app", "rollback", name, "v17").failed()
    assert "no version 17" in refused.flat
    client.modal("app", "stop", name, "--yes").ok()


def test_a_rollover_gives_new_containers_to_the_same_code(client: Client) -> None:
    _deploy(client, "rolled", 1)
    look = 'report("task", modal.Function.from_name("rolled", "which").remote())'
    first = client.script(look).ok()["task"]
    assert client.script(look).ok()["task"] == first
    client.modal("app", "rollover", "rolled").ok()
    second = client.script(look).ok()["task"]
    assert (second[0], second[1] != first[1]) == (1, True)
    assert "Rollover completed" in client.modal("app", "rollover", "rolled", "--strategy", "recreate").ok().flat
    assert client.script(look).ok()["task"][1] not in (first[1], second[1])
    client.modal("app", "stop", "rolled", "--yes").ok()


def test_a_staged_version_is_live_when_it_is_promoted(client: Client) -> None:
    _deploy(client, "staged", 1)
    _deploy(client, "staged", 2, "--staged")
    look = """
    report("live", modal.Function.from_name("staged", "which").remote()[0])
    report("staged", modal.Function.from_name("staged", "which", version=2).remote()[0])
    """
    before = client.script(look).ok()
    assert (before["live"], before["staged"]) == (1, 2)
    refused = client.modal("app", "rollback", "staged", "v2").failed()
    assert "promote" in refused.flat
    assert "Promoted App to v2" in client.modal("app", "promote", "staged", "v2").ok().flat
    assert client.script(look).ok()["live"] == 2
    client.modal("app", "stop", "staged", "--yes").ok()


def test_a_deployment_under_load_loses_no_input(client: Client) -> None:
    _deploy(client, "loaded", 1)
    load = client.start_script(
        """
        which = modal.Function.from_name("loaded", "which")
        which.remote()
        calls = []
        begin = time.monotonic()
        while time.monotonic() - begin < 9:
            calls.append((time.time(), which.spawn(0.3)))
            time.sleep(0.1)
            if len(calls) == 10:
                print("loading", flush=True)
        report("results", [(at, call.get(timeout=60)[0]) for at, call in calls])
        """
    )
    load.wait_for_text("loading")
    _deploy(client, "loaded", 2)
    probe = 'report("at", time.time()); report("live", modal.Function.from_name("loaded", "which").remote()[0])'
    deployed = client.script(probe).ok()
    assert deployed["live"] == 2
    results = load.end().ok()["results"]
    assert {version for _, version in results} == {1, 2}, results
    assert {version for at, version in results if at > deployed["at"]} <= {2}
    client.modal("app", "stop", "loaded", "--yes").ok()


def test_two_deployments_at_once_both_get_an_answer(client: Client) -> None:
    text = VERSIONED.format(name="raced", version=1, more="")
    paths = [client.write(f"raced{n}.py", text + f"\n# {n}\n") for n in range(2)]
    runs = [process.end() for process in [client.start_modal("deploy", str(path)) for path in paths]]
    assert any(run.code == 0 for run in runs), [run.describe() for run in runs]
    for run in runs:
        assert run.code == 0 or "deployed by somebody else meanwhile" in run.flat, run.describe()
    look = 'report("live", modal.Function.from_name("raced", "which").remote()[0])'
    assert client.script(look).ok()["live"] == 1
    client.modal("app", "stop", "raced", "--yes").ok()


def test_apps_are_looked_up_tagged_and_listed(client: Client) -> None:
    run = client.script(
        """
        report("missing", attempt(modal.App.lookup, "made-by-lookup"))
        made = modal.App.lookup("made-by-lookup", create_if_missing=True)
        again = modal.App.lookup("made-by-lookup", create_if_missing=True)
        report("ids", [made.app_id, again.app_id, modal.App.lookup(made.app_id).app_id])
        made.set_tags({"team": "search", "cost": "low"})
        report("tags", again.get_tags())
        made.set_tags({"team": "ads"})
        report("later", again.get_tags())
        report("info", made.info(refresh=True).description)
        made.stop()
        report("gone", attempt(modal.App.lookup, "made-by-lookup"))
        """
    ).ok()
    assert "NotFoundError" in run["missing"]["kinds"] and "create_if_missing" in run["missing"]["error"]
    assert len(set(run["ids"])) == 1
    assert (run["tags"], run["later"]) == ({"team": "search", "cost": "low"}, {"team": "ads"})
    assert run["info"] == "made-by-lookup"
    assert "NotFoundError" in run["gone"]["kinds"]
    listed = json.loads(client.modal("app", "list", "--json").ok().stdout)
    mine = next(app for app in listed if app["app_id"] == run["ids"][0])
    assert mine["state"] == "stopped"
    assert "already stopped" in client.modal("app", "stop", "made-by-lookup", "--yes").flat
    client.modal("app", "info", run["ids"][0]).ok()


LINES = """
app = modal.App("lines")

@app.function()
def speak(word):
    for n in range(40):
        print(f"{word} {n}")
    print(f"{word} went wrong", file=sys.stderr)

@app.function()
def whisper():
    print("only here")

@app.local_entrypoint()
def main():
    call = speak.spawn("alpha")
    call.get()
    speak.remote("beta")
    whisper.remote()
    report("call", call.object_id)
    report("whisper", whisper.object_id)
    report("app", app.app_id)
"""


def test_logs_of_the_past_are_lines(client: Client) -> None:
    run = client.program(LINES).ok()

    def logs(*words: str) -> list[str]:
        return client.modal("app", "logs", run["app"], *words).ok().stdout.splitlines()

    everything = logs("--since", "1h")
    assert len([line for line in everything if line.startswith(("alpha", "beta"))]) == 82
    assert logs("--tail", "1") == ["only here"]
    assert len(logs("--tail", "50")) == 50
    assert logs("--search", "beta 17") == ["beta 17"]
    assert sorted(logs("--source", "stderr")) == ["alpha went wrong", "beta went wrong"]
    assert logs("--function", run["whisper"]) == ["only here"]
    only = logs("--function-call", run["call"], "--since", "1h")
    assert len(only) == 41 and all(line.startswith("alpha") for line in only)
    assert logs("--since", "2h", "--until", "1h") == []
    prefixed = logs("--tail", "1", "--show-container-id", "--show-function-id")
    assert "ta-" in prefixed[0] and run["whisper"] in prefixed[0]
    task = next(word for word in prefixed[0].replace("|", " ").split() if "ta-" in word).strip("[]")
    of_container = client.modal("container", "logs", task, "--all").ok().stdout.splitlines()
    assert of_container == ["only here"]


DETACHED = """
app = modal.App("detached")

@app.function()
def work(path, seconds):
    print("working", flush=True)
    time.sleep(seconds)
    print("worked to the end", flush=True)

@app.local_entrypoint()
def main(seconds: int):
    call = work.spawn("x", seconds)
    print("APP", app.app_id, flush=True)
    time.sleep(float(os.environ.get("STAY", "0")))
"""


def _state(client: Client, app: str) -> str:
    listed = json.loads(client.modal("app", "list", "--json").ok().stdout)
    return next(entry["state"] for entry in listed if entry["app_id"] == app)


def test_detached_work_goes_on_without_its_client(client: Client) -> None:
    path = client.write("detached.py", DETACHED)
    # One whose entrypoint returns ends at once; one that is killed says nothing at all.
    leaves = client.start_modal("run", "--detach", str(path), "--seconds", "6")
    killed = client.start_modal("run", "--detach", str(path), "--seconds", "6", env={"STAY": "60"})
    apps = [process.wait_for_text("APP ap-").text.split()[-1] for process in (leaves, killed)]
    killed.wait_for_text("working")
    killed.kill()
    done = leaves.end().ok()
    assert "Timed out waiting" not in done.output, done.describe()
    assert {_state(client, app) for app in apps} == {"ephemeral (detached)"}
    for app in apps:

        def finished(app: str = app) -> bool:
            return "worked to the end" in client.modal("app", "logs", app).ok().stdout

        wait_until(finished, "the work goes on to its end", 30)
    # Nothing left to do: a run whose work is over when its entrypoint ends is over, too.
    over = client.modal("run", "--detach", str(path), "--seconds", "0", env={"STAY": "3"}).ok()
    app = next(line.text.split()[-1] for line in over.lines if "APP ap-" in line.text)
    assert _state(client, app) == "stopped"
    for app in apps:
        client.modal("app", "stop", app, "--yes")


def test_results_names_and_quiet(client: Client, tmp_path: Path) -> None:
    path = client.write(
        "named.py",
        'app = modal.App()\n\n@app.function()\ndef text(n: int):\n    print("inside")\n    return "x" * n\n',
    )
    result = tmp_path / "result.txt"
    run = client.modal("run", "-q", "-n", "called so", "-w", str(result), str(path), "--n", "5").ok()
    assert result.read_text() == "xxxxx"
    assert "Initialized" not in run.output
    listed = json.loads(client.modal("app", "list", "--json").ok().stdout)
    assert any(app["description"] == "called so" for app in listed)


def test_a_version_whose_image_is_gone_is_not_gone_back_to(client: Client) -> None:
    path = client.write(
        "images.py",
        """
        app = modal.App("imageless", image=modal.Image.debian_slim().env({"VERSION": os.environ.get("VERSION", "")}))

        @app.function()
        def which():
            return [os.environ["VERSION"], os.environ["MODAL_IMAGE_ID"]]
        """,
    )
    client.modal("deploy", str(path), env={"VERSION": "1"}).ok()
    look = "report('now', modal.Function.from_name('imageless', 'which').remote())"
    image = client.script(look).ok()["now"][1]
    client.modal("deploy", str(path), env={"VERSION": "2"}).ok()
    client.script(f"import modal.experimental\nmodal.experimental.image_delete({image!r})").ok()
    refused = client.modal("app", "rollback", "imageless", "v1").failed().flat
    assert f"the image {image} of its function 'which' is gone" in refused, refused
    assert client.script(look).ok()["now"][0] == "2"
    # What is deployed again has its image built again.
    client.modal("deploy", str(path), env={"VERSION": "1"}).ok()
    assert client.script(look).ok()["now"][0] == "1"
    client.modal("app", "stop", "imageless", "--yes").ok()


def test_an_interrupt_leaves_nothing_running(client: Client, server: Server) -> None:
    path = client.write(
        "busy.py",
        """app = modal.App("busy")

@app.function(max_containers=2)
def work(n):
    print("busy", n, flush=True)
    time.sleep(60)

@app.local_entrypoint()
def main():
    list(work.map(range(10)))
""",
    )
    for moment in ("Initialized", "busy"):
        process = client.start_modal("run", str(path))
        process.wait_for_text(moment)
        process.signal(signal.SIGINT)
        # What it prints is the client's own matter: depending on the instant, its event loop ends with complaints
        # and without a goodbye to the server.
        run = process.end(60)
        assert run.code != 0, run.describe()

    def idle() -> bool:
        containers = json.loads(client.modal("container", "list", "--json").ok().stdout)
        return not any(entry["app_name"] == "busy" for entry in containers)

    # Without a goodbye the client has to be silent for a minute first.
    wait_until(idle, "no container of the interrupted app is left", 100)
