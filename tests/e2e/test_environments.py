"""Environments: namespaces that keep names apart, made and removed with all that is in them."""

import json

from support.client import Client
from support.server import Server
from support.waits import wait_until

PROGRAM = """
app = modal.App("in-environment")

@app.function(secrets=[modal.Secret.from_name("shared-name")])
def inside():
    d = modal.Dict.from_name("shared-name")
    here = modal.Environment.from_context().hydrate()
    return [os.environ["WHERE"], os.environ["MODAL_ENVIRONMENT"], d["where"], here.name]

@app.local_entrypoint()
def main():
    modal.Dict.from_name("shared-name", create_if_missing=True)["where"] = os.environ["WHERE"]
    report("inside", inside.remote())
"""


def test_names_are_apart_in_each_environment(client: Client) -> None:
    names = ("e2e-env-a", "e2e-env-b")
    for name in names:
        client.modal("environment", "create", name).ok()
        client.modal("secret", "create", "shared-name", f"WHERE={name}", "--env", name).ok()
    client.write("program.py", PROGRAM)
    flag = client.modal("run", "--env", names[0], "program.py", env={"WHERE": names[0]}).ok()
    variable = client.modal("run", "program.py", env={"WHERE": names[1], "MODAL_ENVIRONMENT": names[1]}).ok()
    for run, name in ((flag, names[0]), (variable, names[1])):
        assert run["inside"] == [name, name, name, name]
    client.modal("deploy", "--env", names[0], "program.py").ok()
    found = client.program(
        """
        app = modal.App("looks")

        @app.local_entrypoint()
        def main():
            f = modal.Function.from_name("in-environment", "inside", environment_name="e2e-env-a")
            report("there", f.remote()[0])
            report("elsewhere", attempt(modal.Function.from_name("in-environment", "inside").hydrate))
            report("dict", attempt(modal.Dict.from_name("shared-name").hydrate))
            report("secret", attempt(modal.Secret.from_name("shared-name").hydrate))
        """,
        "looks.py",
    ).ok()
    assert found["there"] == names[0]
    for what in ("elsewhere", "dict", "secret"):
        assert "NotFoundError" in found[what]["kinds"], found[what]
    for name in names:
        client.modal("environment", "delete", name, "--yes").ok()
    assert "no environment" in client.modal("dict", "list", "--env", names[0]).failed().flat
    client.modal("environment", "create", names[0]).ok()
    # What was in it is gone with it.
    assert json.loads(client.modal("dict", "list", "--env", names[0], "--json").ok().stdout) == []
    assert json.loads(client.modal("secret", "list", "--env", names[0], "--json").ok().stdout) == []
    wait_until(lambda: not deployed(client, names[0]), "no app is left")
    client.modal("environment", "delete", names[0], "--yes").ok()


def deployed(client: Client, environment: str) -> list[object]:
    return json.loads(client.modal("app", "list", "--env", environment, "--json").ok().stdout)


def listed(client: Client) -> dict[str, dict[str, object]]:
    rows = json.loads(client.modal("environment", "list", "--json").ok().stdout)
    return {row["name"]: row for row in rows}


def test_environments_are_made_renamed_and_removed(client: Client) -> None:
    client.modal("environment", "create", "E2E_Old").ok()
    rows = listed(client)
    assert rows["E2E_Old"]["web_suffix"] == "e2e-old", rows
    assert "main" in rows
    assert "already" in client.modal("environment", "create", "E2E_Old").failed().flat
    client.modal("dict", "create", "kept", "--env", "E2E_Old").ok()
    client.modal("environment", "update", "E2E_Old", "--set-name", "e2e-new", "--set-web-suffix", "").failed()
    client.modal("environment", "update", "E2E_Old", "--set-name", "e2e-new", "--set-web-suffix", "fresh").ok()
    rows = listed(client)
    assert "E2E_Old" not in rows and rows["e2e-new"]["web_suffix"] == "fresh"
    assert "kept" in client.modal("dict", "list", "--env", "e2e-new").ok().output
    client.modal("environment", "update", "e2e-new", "--set-image-builder-version", "1999.01").failed()
    client.modal("environment", "update", "e2e-new", "--set-image-builder-version", "2024.10").ok()
    assert listed(client)["e2e-new"]["image_builder_version"] == "2024.10"
    client.modal("environment", "delete", "e2e-new", "--yes").ok()
    assert "e2e-new" not in listed(client)


def test_what_cannot_be_says_why(client: Client) -> None:
    run = client.program(
        """
        from modal_proto import api_pb2
        app = modal.App("refused")

        @app.local_entrypoint()
        def main():
            report("default", attempt(modal.Environment.objects.delete, "main"))
            report("missing", attempt(modal.Environment.objects.delete, "no-such"))
            report("restricted", attempt(modal.Environment.objects.create, "e2e-r", restricted=True))
        """,
        "refused.py",
    ).ok()
    assert "default environment" in run["default"]["error"]
    assert "evoke environment create no-such" in run["missing"]["error"]
    assert "one user" in run["restricted"]["error"]


def test_secrets_are_changed_key_by_key(client: Client) -> None:
    client.modal("secret", "create", "e2e-changed", "A=1", "B=2").ok()
    run = client.program(
        """
        app = modal.App("secrets-change")

        @app.function(secrets=[modal.Secret.from_name("e2e-changed")])
        def inside():
            return {key: os.environ.get(key) for key in ("A", "B", "C")}

        @app.local_entrypoint()
        def main():
            secret = modal.Secret.from_name("e2e-changed").hydrate()
            secret.update({"B": "20", "C": "3"})
            report("inside", inside.remote())
            info = secret.info(refresh=True)
            report("info", [info.name, info.environment_name, bool(info.created_by), info.last_used is not None])
            report("required", attempt(modal.Secret.from_name("e2e-changed", required_keys=["A", "D"]).hydrate))
            report("exists", attempt(modal.Secret.objects.create, "e2e-changed", {"A": "9"}))
            one, other = modal.Secret.from_dict({"X": "1"}), modal.Secret.from_dict({"X": "2"})
            report("ephemeral", one.hydrate().object_id != other.hydrate().object_id)
            modal.Secret.objects.delete("e2e-changed")
            report("deleted", attempt(secret.info, refresh=True))
        """,
        "secrets_change.py",
    ).ok()
    assert run["inside"] == {"A": "1", "B": "20", "C": "3"}
    assert run["info"] == ["e2e-changed", "main", True, True]
    assert "D" in run["required"]["error"]
    assert "AlreadyExistsError" in run["exists"]["kinds"]
    assert run["ephemeral"] is True
    assert "NotFoundError" in run["deleted"]["kinds"]


def test_the_workspace_tells_of_itself(client: Client) -> None:
    assert client.env["MODAL_TOKEN_ID"] in client.modal("token", "info").ok().output
    run = client.program(
        """
        app = modal.App("workspace")

        @app.local_entrypoint()
        def main():
            report("name", modal.Workspace.from_context().hydrate().name)
        """,
        "workspace.py",
    ).ok()
    assert run["name"]


def test_an_environment_has_no_more_containers_than_it_may(client: Client, server: Server) -> None:
    client.modal("environment", "create", "e2e-env-limited").ok()
    # The client has no verb for it, and sends it where one asks for it by hand.
    client.script(
        """
        from modal._utils.async_utils import synchronizer
        from modal.client import _Client
        from modal_proto import api_pb2

        @synchronizer.create_blocking
        async def limit():
            request = api_pb2.EnvironmentUpdateRequest(current_name="e2e-env-limited")
            request.max_concurrent_tasks = 1
            item = await (await _Client.from_env())._stub.EnvironmentUpdate(request)
            assert item.max_concurrent_tasks == 1

        limit()
        """
    ).ok()
    client.write(
        "limited.py",
        """
        app = modal.App("limited")

        @app.function()
        def where(x):
            time.sleep(0.5)
            return os.environ["MODAL_TASK_ID"]

        @app.function()
        def other():
            return os.environ["MODAL_TASK_ID"]
        """,
    )
    client.modal("deploy", "--env", "e2e-env-limited", "limited.py").ok()
    run = client.script(
        """
        def named(name):
            return modal.Function.from_name("limited", name, environment_name="e2e-env-limited")

        report("containers", list(named("where").map(range(4))))
        # The one place is given by the container that is idle.
        report("other", named("other").remote())
        call = named("where").spawn(5)
        call.get()
        report("call", call.object_id)
        """
    ).ok()
    assert len(set(run["containers"])) == 1
    assert run["other"] not in run["containers"]
    reasons = server.explain(run["call"])["reasons"]
    assert any("max_concurrent_tasks is 1" in reason for reason in reasons), reasons
    client.modal("environment", "delete", "e2e-env-limited", "--yes").ok()
