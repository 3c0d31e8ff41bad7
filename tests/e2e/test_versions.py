"""Versions of an app as things to work with: what two of them differ in."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.client import Client
from support.server import Server, on_this_machine


@pytest.fixture(scope="module")
def own(evoke_bin: Path, folders: Path) -> Iterator[Server]:
    """A server whose containers stand on this machine's own files: nothing here needs an image."""
    with on_this_machine(evoke_bin, folders / "versions") as server:
        yield server


@pytest.fixture
def dev(own: Server, tmp_path: Path) -> Iterator[Client]:
    """Somebody who deploys to it."""
    client = Client(tmp_path, own.client_env())
    yield client
    client.close()


DIFFERS = """
image = modal.Image.debian_slim().run_commands("echo {word} > /word")
app = modal.App("differs", image=image, tags={{"stage": "{word}"}})

@app.function({settings})
def f():
    return "{word}"

@app.function()
def {word}():
    import helper
"""


def test_what_versions_differ_in_is_told_in_their_authors_words(own: Server, dev: Client) -> None:
    def deploy(word: str, settings: str) -> None:
        dev.modal("deploy", str(dev.write("differs.py", DIFFERS.format(word=word, settings=settings)))).ok()

    deploy("one", 'volumes={"/m": modal.Volume.from_name("models", create_if_missing=True)}')
    deploy("two", 'timeout=60, schedule=modal.Cron("0 9 * * *"), retries=3, max_containers=2')

    def diff(*words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(own.evoke("diff", "differs", *words, "--json").stdout)
        return found

    found = diff()
    assert (found["from"]["version"], found["to"]["version"]) == (1, 2)
    assert (found["functions_added"], found["functions_removed"]) == (["two"], ["one"])
    (changed,) = found["functions_changed"]
    settings = {change["setting"]: (change["before"], change["after"]) for change in changed["settings"]}
    assert settings["volumes[/m]"] == ("volume models", None)
    assert settings["timeout"] == ("300 s", "60 s")
    assert settings["schedule"] == (None, "Cron('0 9 * * *', timezone='UTC')")
    assert settings["max_containers"] == (None, "2")
    assert settings["retries"][1].startswith("3 ")
    (image,) = found["images"]
    assert [step for step in image["steps"] if step[0] != " "] == ["-RUN echo one > /word", "+RUN echo two > /word"]
    (file,) = found["files"]
    assert file["path"] == "/root/differs.py"
    assert '-    return "one"\n+    return "two"\n' in file["text"]
    assert [(change["setting"], change["after"]) for change in found["app"]] == [("tag stage", "two")]
    back = diff("v2", "v1")
    assert back["functions_added"] == ["one"]
    assert diff("v1") == found == diff("v1", "v2")

    dev.modal("app", "rollback", "differs", "v1").ok()
    assert "they do not differ" in own.evoke("diff", "differs", "v1", "v3").stdout
    shown = own.evoke("diff", "differs").stdout
    assert "~ timeout: 60 s -> 300 s" in shown and '+    return "one"' in shown
    for words, wanted in (
        (("differs", "v9"), "no version 9"),
        (("nobody",), "app list"),
        (("differs", "x"), "app history"),
    ):
        refused = own.evoke("diff", *words, check=False)
        assert refused.returncode != 0 and wanted in refused.stderr, refused.stderr
    dev.modal("app", "stop", "differs", "--yes").ok()
