"""What images leave on the disk: what each layer brought can be seen, and what nothing needs is removed."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.client import Client
from support.server import Server, on_this_machine
from support.waits import wait_until

# Removes at once the images and layers that are not needed, however lately they were used.
PRUNE = ("image", "prune", "--unused-for", "0s", "--json")

DEPLOYED = """
app = modal.App("kept")
image = modal.Image.debian_slim().run_commands("echo {content} > /content")

@app.function(image=image)
def content():
    return open("/content").read().strip()
"""


@pytest.fixture(scope="module")
def own_server(evoke_bin: Path, folders: Path) -> Iterator[Server]:
    with on_this_machine(evoke_bin, folders / "collected") as server:
        yield server


@pytest.fixture
def person(own_server: Server, tmp_path: Path) -> Iterator[Client]:
    client = Client(tmp_path, own_server.client_env())
    yield client
    client.close()


def _layers(server: Server) -> set[str]:
    return {path.name for path in (server.data / "layers").iterdir()} - {"empty"}


def _prune(server: Server, *more: str) -> dict[str, Any]:
    return json.loads(server.evoke(*PRUNE, *more).stdout)


def _deploy(client: Client, content: str) -> None:
    client.write("kept.py", DEPLOYED.format(content=content))
    client.modal("deploy", "kept.py").ok()


def _content(client: Client) -> str:
    script = 'import modal\nreport("content", modal.Function.from_name("kept", "content").remote())'
    return client.script(script).ok()["content"]


def test_each_layer_tells_what_it_brought(own_server: Server, person: Client) -> None:
    person.program(
        """
        app = modal.App("seen")
        about = "/opt/six-1.0.dist-info"
        image = (
            modal.Image.debian_slim()
            .run_commands(
                f"mkdir {about} && echo old > /changed && echo gone > /gone",
                f"echo Name: six > {about}/METADATA && echo Version: 1.0 >> {about}/METADATA",
            )
            .run_commands(
                "rm /gone && echo new > /changed && printf 12345 > /added",
                "mv /opt/six-1.0.dist-info /opt/six-2.0.dist-info && sed -i s/1.0/2.0/ /opt/six-2.0.dist-info/METADATA",
            )
        )

        def write():
            with open("/written", "w") as file:
                file.write("x" * 1000)

        @app.function(image=image.run_function(write))
        def f():
            return modal.current_input_id()

        @app.local_entrypoint()
        def main():
            f.remote()
        """
    ).ok()
    listed = json.loads(own_server.evoke("image", "list", "--json").stdout)
    newest = listed[0]
    assert (newest["state"], newest["step"], newest["error"]) == ("ready", "run_function", "")
    shown = json.loads(own_server.evoke("image", "show", newest["id"], "--json").stdout)
    layers = shown["layers"]
    assert len(layers) == newest["layers"] >= 5
    first, second, third, fourth, by_function = layers[-5:]
    assert first["files"]["added"] == 2 and first["step"].startswith("RUN mkdir /opt/six")
    assert second["python"] == [{"name": "six", "before": None, "after": "1.0"}]
    assert third["files"] == {"added": 1, "changed": 1, "removed": 1} and third["bytes"] == 4 + 5
    assert fourth["python"] == [{"name": "six", "before": "1.0", "after": "2.0"}]
    assert by_function["step"] == "RUN function write" and by_function["bytes"] >= 1000
    text = own_server.evoke("image", "show", newest["id"]).stdout
    assert "files +1 ~1 -1" in text and "python ~ six 1.0 -> 2.0" in text
    refused = own_server.evoke("image", "show", "im-" + "0" * 22, check=False)
    assert refused.returncode != 0 and "does not exist on this server" in refused.stderr


def test_what_nothing_needs_is_removed_and_what_is_needed_runs(own_server: Server, person: Client) -> None:
    # A container keeps what it runs in.
    wait_until(lambda: own_server.status()["containers"] == 0, "the containers of others end", 40)
    _prune(own_server)
    before = _layers(own_server)
    _deploy(person, "first")
    first = _layers(own_server) - before
    _deploy(person, "second")
    second = _layers(own_server) - before - first
    assert len(first) >= 1 and len(second) == 1
    person.program(
        """
        app = modal.App("passing")

        @app.function(image=modal.Image.debian_slim().run_commands("echo passing > /passing"))
        def f():
            return 1

        @app.local_entrypoint()
        def main():
            report("one", f.remote())
        """
    ).ok()
    passing = _layers(own_server) - before - first - second
    assert len(passing) == 1
    would = _prune(own_server, "--dry-run")
    assert would["layers"] == 1 and would["images"] >= 1 and passing <= _layers(own_server)
    assert json.loads(own_server.evoke("image", "prune", "--json").stdout)["layers"] == 0, "it was used just now"

    # Containers start, and images are built, while everything is removed that may be, again and again.
    ended = threading.Event()
    removed: list[dict[str, Any]] = []

    def prune() -> None:
        while not ended.is_set():
            removed.append(_prune(own_server))

    pruner = threading.Thread(target=prune)
    pruner.start()
    try:
        run = person.program(
            """
            app = modal.App("meanwhile")
            images = [modal.Image.debian_slim().run_commands(f"echo {n} > /n") for n in range(3)]

            def number():
                return int(open("/n").read())

            @app.function(image=images[0])
            def zero():
                return number()

            @app.function(image=images[1])
            def one():
                return number()

            @app.function(image=images[2])
            def two():
                return number()

            @app.local_entrypoint()
            def main():
                report("numbers", [zero.remote(), one.remote(), two.remote()])
            """
        ).ok()
        assert run["numbers"] == [0, 1, 2]
        assert _content(person) == "second"
    finally:
        ended.set()
        pruner.join()
    assert sum(report["layers"] for report in removed) >= 1
    assert not passing & _layers(own_server) and (first | second) <= _layers(own_server)

    # Killed wherever it is, the next round goes on; every version of a deployed app keeps its image.
    own_server.kill_server()
    _prune(own_server)
    person.modal("app", "rollback", "kept").ok()
    assert _content(person) == "first"
    person.modal("app", "stop", "--yes", "kept").ok()
    done = _prune(own_server)
    assert done["layers"] >= 2 and done["images"] >= 2
    assert _layers(own_server) <= before, "nothing is left of what was made"
    assert _prune(own_server)["layers"] == 0
