"""Versions of an app as things to work with: what two of them differ in."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.client import Client, Run
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


BROKEN = """
app = modal.App("broken")

@app.function(min_containers={ready})
def double(x):
    return 2 * x if {version} < 3 else 2 * x + 1

@app.function()
def through(x):
    # Finds the version that it belongs to, as its caller does.
    return modal.Function.from_name("broken", "double").remote(x)

@app.function()
@modal.web_server(8000)
def served():
    import subprocess
    os.makedirs("/tmp/served", exist_ok=True)
    open("/tmp/served/version", "w").write("{version}")
    subprocess.Popen(["python", "-m", "http.server", "8000", "-d", "/tmp/served"])
"""

# An ordinary program; it knows nothing of versions.
CHECK = """
import sys
import modal
print("checking", flush=True)
name = sys.argv[1]
sys.exit(0 if modal.Function.from_name("broken", name).remote(21) == 42 else 1)
"""


def test_the_version_that_broke_an_app_is_found_beside_its_traffic(own: Server, dev: Client) -> None:
    for version in range(1, 6):
        text = BROKEN.format(version=version, ready=int(version == 5))
        dev.modal("deploy", str(dev.write("broken.py", text))).ok()
    check = str(dev.write("check.py", CHECK, prelude=False))

    def bisect(*words: str, good: str = "v1", bad: str = "v5") -> Run:
        command = [str(own.binary), "bisect", "broken", "--good", good, "--bad", bad, *words]
        return dev.start(*command, env={"EVOKE_DATA": str(own.data)}).end()

    found = bisect("--json", "--", sys.executable, check, "through").ok()
    answer = json.loads(found.stdout)
    assert [version["version"] for version in answer["first_bad"]] == [3] and answer["certain"]
    assert (answer["last_good"]["version"], answer["flaky"]) == (2, False)
    # Both ends, two in between, and the two that count once more.
    assert found.stderr.count("checking") == len(answer["probes"]) <= 6, found.output
    curl = 'test "$(curl -sf $EVOKE_URL_SERVED/version)" = $EVOKE_VERSION && test $EVOKE_VERSION -lt 4'
    found = bisect("--", "sh", "-c", curl).ok()
    assert "v4 is the first bad version of broken" in found.stdout and "evoke diff broken v3 v4" in found.stdout
    # The live one was not touched by any of this.
    live = 'report("x", modal.Function.from_name("broken", "double").remote(21))'
    assert dev.script(live).ok()["x"] == 43

    skips = bisect("--", "sh", "-c", "case $EVOKE_VERSION in 1) exit 0;; 5) exit 1;; *) exit 125;; esac").failed()
    assert "one of v2, v3, v4, v5" in skips.stdout
    once = "if test -e gone-$EVOKE_VERSION; then exit 1; fi; touch gone-$EVOKE_VERSION; test $EVOKE_VERSION -lt 3"
    assert "flaky" in bisect("--", "sh", "-c", once).failed().stderr
    assert "should be good" in bisect("--", "false").failed().stderr
    assert "should be bad" in bisect("--", "true").failed().stderr
    assert "must be older" in bisect("--", "true", good="v5", bad="v1").failed().stderr
    assert "no version v70" in bisect("--", "true", bad="v70").failed().stderr
    left = dev.start(
        *[str(own.binary), "bisect", "broken", "--good", "v1", "--bad", "v5", "--"],
        *["sh", "-c", "echo waiting; sleep 60"],
        env={"EVOKE_DATA": str(own.data)},
    )
    left.wait_for_text("waiting")
    os.killpg(left.pid, signal.SIGINT)
    assert "nothing is known yet" in left.end().failed().stderr
    dev.modal("app", "stop", "broken", "--yes").ok()
