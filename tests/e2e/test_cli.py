"""The binary's own verbs, as a person uses them."""

import html
import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client import Client
from support.leftovers import leftovers
from support.server import Server

CALLS = """
app = modal.App("explained")

@app.function(max_containers=1)
def work(seconds):
    print("working", flush=True)
    time.sleep(seconds)
    return os.environ["MODAL_TASK_ID"]

@app.local_entrypoint()
def main():
    call = work.spawn(1)
    report("task", call.get())
    report("call", call.object_id)
    report("app", app.app_id)
    page = app.get_dashboard_url()
    report("page", page)
"""


def test_a_second_server_on_the_same_folder_is_refused(server: Server) -> None:
    done = server.evoke("up", "--listen", "127.0.0.1:0", check=False)
    assert done.returncode not in (0, 2)
    status = server.status()
    assert "already up" in done.stderr and str(status["holder_pid"]) in done.stderr, done.stderr
    assert status["address"] in done.stderr
    assert server.running


def test_a_port_in_use_is_told_with_a_mend(server: Server, folders: Path) -> None:
    port = server.status()["address"].rsplit(":", 1)[1]
    argv = [str(server.binary), "up", "--data", str(folders / "other"), "--listen", f"127.0.0.1:{port}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "in use" in done.stderr and "--listen" in done.stderr, done.stderr


def test_env_points_any_client_at_the_server(server: Server, tmp_path: Path) -> None:
    lines = server.evoke("env").stdout.splitlines()
    names = {line.removeprefix("export ").split("=", 1)[0] for line in lines}
    assert {"MODAL_SERVER_URL", "MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"} <= names
    # As the README has it: by a shell.
    program = tmp_path / "hello.py"
    program.write_text("import modal\nprint(len(modal.Client.from_env().hello() or 'hello'))\n")
    shell = f'eval "$({server.binary} env --data {server.data})"; exec {sys.executable} {program}'
    env = {k: v for k, v in os.environ.items() if not k.startswith("MODAL_")}
    done = subprocess.run(["sh", "-c", shell], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_status_names_the_processes(server: Server) -> None:
    status = server.status()
    assert status["up"] is True and status["data"] == str(server.data)
    for name in ("holder_pid", "server_pid"):
        # The server gave up root.
        assert os.stat(f"/proc/{status[name]}").st_uid != 0, name
    text = server.evoke("status").stdout
    assert status["address"] in text and str(status["server_pid"]) in text


def test_no_server_is_said_by_code_and_in_words(evoke_bin: Path, folders: Path) -> None:
    def evoke(*words: str) -> "subprocess.CompletedProcess[str]":
        argv = [str(evoke_bin), *words, "--data", str(folders / "nothing-here")]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)

    status = evoke("status", "--json")
    assert status.returncode == 3 and json.loads(status.stdout)["up"] is False
    for verb in ("status", "env", "down"):
        done = evoke(verb)
        assert done.returncode == 3 and "evoke up" in done.stderr, (verb, done.stderr)


def test_a_mistyped_verb_is_told_the_nearest(evoke_bin: Path) -> None:
    done = subprocess.run([str(evoke_bin), "statsu"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2 and "status" in done.stderr


def test_phases_of_a_call_sum_to_its_wall_time(client: Client, server: Server) -> None:
    run = client.program(CALLS).ok()
    explained = server.explain(run["call"])
    inputs = explained["explained_inputs"]
    assert len(inputs) == 1
    for told in inputs:
        total = sum(phase["ms"] for phase in told["phases"])
        assert abs(total - told["wall_ms"]) <= 0.05 * told["wall_ms"], told
        assert told["wall_ms"] >= 1000
    text = server.evoke("explain", run["call"]).stdout
    assert "running" in text and "in all" in text, text
    task = server.explain(run["task"])
    total = sum(phase["ms"] for phase in task["phases"])
    assert abs(total - task["wall_ms"]) <= 0.05 * task["wall_ms"], task
    assert task["reason"]
    assert server.explain(run["app"])["kind"] == "app"
    unknown = server.evoke("explain", "fc-0000000000000000000000", check=False)
    assert unknown.returncode != 0 and "fc-0000000000000000000000" in unknown.stderr


def test_the_page_that_a_run_prints_opens(client: Client, server: Server) -> None:
    run = client.program(CALLS).ok()
    printed = re.search(r"http://\S+/apps/ap-\S+", run.stdout)
    assert printed, run.stdout
    with urllib.request.urlopen(printed[0], timeout=10) as answer:
        page = answer.read().decode()
    assert answer.status == 200
    for wanted in ("explained", "work", run["call"], "working"):
        assert wanted in page, wanted
    # What its functions run in is a page of its own.
    image = re.search(r'href="([^"]+/images/im-[^"]+)"', page)
    assert image, page
    with urllib.request.urlopen(html.unescape(image[1]), timeout=10) as answer:
        layers = answer.read().decode()
    assert "Python 3" in layers and "Layers, the lowest first" in layers, layers
    # Without its signature nobody sees it, and a changed one does not help.
    plain = printed[0].split("?")[0]
    for closed in (plain, printed[0][:-1] + ("A" if printed[0][-1] != "A" else "B")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(closed, timeout=10)
        assert refused.value.code in (401, 403), closed


def test_the_official_cli_lists_what_there_is(client: Client) -> None:
    assert client.modal("app", "list").ok().code == 0
    assert client.modal("container", "list").ok().code == 0
    assert client.modal("environment", "list").ok().code == 0


@pytest.fixture
def background(evoke_bin: Path, server: Server, folders: Path) -> Iterator[Server]:
    """A data folder with no server up, and with the images that the session's server has."""
    data = folders / "background"
    other = Server(evoke_bin, data)
    yield other
    other.evoke("down", check=False)
    assert leftovers(data) == []


def test_a_verb_starts_a_server_where_none_is_up(background: Server, client: Client) -> None:
    """Says so once, and the next one uses it again."""
    env = {k: v for k, v in client.env.items() if not k.startswith("MODAL_")}
    env["VIRTUAL_ENV"] = sys.prefix
    argv = [str(background.binary), "--data", str(background.data), "app", "list"]

    def app_list() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(argv, env=env, cwd=client.folder, capture_output=True, text=True, timeout=60, check=False)

    first = app_list()
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("in the background") == 1 and "evoke down" in first.stderr
    holder = background.status()["holder_pid"]
    second = app_list()
    assert second.returncode == 0 and "background" not in second.stderr, second.stderr
    assert background.status()["holder_pid"] == holder
    assert background.evoke("down").returncode == 0
    assert background.evoke("status", check=False).returncode == 3
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", _port(first.stderr)), 2):
        pass


def _port(text: str) -> int:
    found = re.search(r"http://127\.0\.0\.1:(\d+)", text)
    assert found, text
    return int(found[1])


def test_run_uses_the_persons_own_interpreter(server: Server, client: Client) -> None:
    program = client.write(
        "own.py",
        """
        app = modal.App("own")

        @app.function()
        def one():
            return 1

        @app.local_entrypoint()
        def main(times: int = 1):
            report("one", one.remote() * times)
            report("python", sys.prefix)
        """,
    )
    env = {k: "" for k in client.env if k.startswith("MODAL_")} | {"VIRTUAL_ENV": sys.prefix}
    run = client.start(
        str(server.binary), "--data", str(server.data), "run", str(program), "--times", "3", env=env
    ).end()
    assert run.ok()["one"] == 3
    assert run["python"] == sys.prefix
