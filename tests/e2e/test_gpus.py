"""GPUs as users ask for them, on a stand-in: declared cards whose specification names harmless device nodes and a
library that is no driver's. No real GPU takes part."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client import Client
from support.leftovers import leftovers
from support.server import Server

# Two cards of one kind and one of another: nodes like /dev/null, /dev/zero and /dev/full.
SPECIFICATION = """
cdiVersion: 0.6.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits: {deviceNodes: [{path: /dev/nvidia0, hostPath: /dev/null}]}
- name: "1"
  containerEdits: {deviceNodes: [{path: /dev/nvidia1, hostPath: /dev/zero}]}
- name: "2"
  containerEdits: {deviceNodes: [{path: /dev/nvidia2, hostPath: /dev/full}]}
containerEdits:
  deviceNodes: [{path: /dev/nvidiactl, hostPath: /dev/null}]
  mounts: [{hostPath: LIBRARY, containerPath: /driver/libm.so.6.550.1, options: [ro]}]
"""

CONFIGURATION = """
[images]
order = ["host"]

[machine]
region = "us-east-1"

[gpu]
declared = ["H100", "H100", "L4"]
cdi = ["FOLDER"]
"""

PROGRAM = """
app = modal.App("gpus")

def look():
    nodes = sorted(name for name in os.listdir("/dev") if name.startswith("nvidia"))
    path = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    drivers = [name for folder in path if os.path.isdir(folder) for name in os.listdir(folder)]
    return {"nodes": nodes, "drivers": drivers, "visible": os.environ.get("NVIDIA_VISIBLE_DEVICES")}

@app.function()
def without():
    return look()

@app.function(gpu="h100")
def one(seconds):
    import time
    began = time.time()
    time.sleep(seconds)
    return {**look(), "task": os.environ["MODAL_TASK_ID"], "began": began, "ended": time.time()}

@app.function(gpu=["A100", "L4", "H100:2"])
def fallback():
    return look()

@app.function(gpu="H100:2")
def two():
    return look()

@app.function(gpu="H100:3")
def too_many():
    return look()

@app.function(region="eu")
def elsewhere():
    return look()

@app.function(region="us-east")
def here():
    return os.environ["MODAL_REGION"]

@app.local_entrypoint()
def main():
    report("without", without.remote())
    report("one", list(one.map([2] * 5)))
    report("fallback", fallback.remote())
    report("two", two.remote())
    report("fallback_with_options", fallback.with_options(memory=256).remote())
    report("with_options", two.with_options(memory=256).remote())
    report("too_many", attempt(too_many.remote))
    report("elsewhere", attempt(elsewhere.remote))
    report("here", here.remote())
    report("moved", attempt(here.with_options(region="ap").remote))
"""


@pytest.fixture(scope="module")
def machine(evoke_bin: Path, folders: Path) -> Iterator[Server]:
    """A server on a machine that says to have GPUs."""
    data, specifications = folders / "gpus", folders / "gpu-specifications"
    data.mkdir()
    specifications.mkdir()
    found = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6", "/lib64/libm.so.6"]
    library = next(path for path in found if os.path.exists(path))
    (specifications / "nvidia.yaml").write_text(SPECIFICATION.replace("LIBRARY", library))
    (data / "evoke.toml").write_text(CONFIGURATION.replace("FOLDER", str(specifications)))
    server = Server(evoke_bin, data).start()
    yield server
    assert server.stop() == 0, server.log_tail()
    assert leftovers(data) == []


def test_functions_see_their_own_devices_and_no_other(machine: Server, folders: Path) -> None:
    client = Client(folders / "gpu-client", machine.client_env())
    run = client.program(PROGRAM).ok()
    assert run["without"] == {"nodes": [], "drivers": [], "visible": None}
    cards = {"0": "nvidia0", "1": "nvidia1", "2": "nvidia2"}
    by_card: dict[str, list[tuple[float, float, str]]] = {}
    for seen in run["one"]:
        assert seen["visible"] in ("0", "1") and seen["drivers"] == ["libm.so.6"], seen
        assert seen["nodes"] == [cards[seen["visible"]], "nvidiactl"], seen
        by_card.setdefault(seen["visible"], []).append((seen["began"], seen["ended"], seen["task"]))
    assert len(by_card) == 2, "there are two cards for five inputs"
    for spans in by_card.values():
        spans.sort()
        for (_, ended, _), (began, _, _) in itertools.pairwise(spans):
            assert began >= ended, f"two inputs had one card at a time: {spans}"
    assert run["fallback_with_options"]["visible"] == "2"
    assert run["fallback"]["visible"] == "2" and run["fallback"]["nodes"] == ["nvidia2", "nvidiactl"]
    for name in ("two", "with_options"):
        assert run[name]["nodes"] == ["nvidia0", "nvidia1", "nvidiactl"], "idle containers give their devices"
    assert "3 x H100" in run["too_many"]["error"] and "2 x H100, 1 x L4" in run["too_many"]["error"]
    assert run["too_many"]["seconds"] < 5
    assert "us-east-1" in run["elsewhere"]["error"]
    assert run["here"] == "us-east-1" and "us-east-1" in run["moved"]["error"]


def test_a_card_stays_its_containers_over_a_killed_server(machine: Server, folders: Path) -> None:
    client = Client(folders / "gpu-kill", machine.client_env())
    process = client.start_program(
        """
        app = modal.App("kept")

        @app.function(gpu="L4")
        def hold(name, seconds):
            print("holding", name, flush=True)
            began = time.time()
            time.sleep(seconds)
            return [began, time.time()]

        @app.function(gpu="L4")
        def other():
            return time.time()

        @app.local_entrypoint()
        def main():
            first = hold.spawn("it", 8)
            time.sleep(1)
            later = other.spawn()
            report("held", first.get())
            report("other", later.get())
        """
    )
    process.wait_for_text("holding it")
    machine.kill_server()
    run = process.end().ok()
    assert run["other"] >= run["held"][1], "nobody else had the card meanwhile"
