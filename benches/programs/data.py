"""Times what clients do with Dicts, Queues and deployments; run by the benchmark, which says what and how often."""

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path

import modal
from google.protobuf.empty_pb2 import Empty
from modal._utils.async_utils import synchronizer
from modal.client import _Client
from modal.runner import deploy_app

FUNCTIONS = 20

app = modal.App("bench-data")


@synchronizer.create_blocking
async def round_trip() -> None:
    """The least that the client can ask a server."""
    client = await _Client.from_env()
    await client._stub.ClientHello(Empty())


def turns(_: object, count: int) -> dict[str, list[float]]:
    """Each action so many times, taking turns one by one, so that what else the machine does disturbs all alike."""
    with modal.Dict.ephemeral() as values, modal.Queue.ephemeral() as queue:
        values["key"] = "value"

        def put_and_get() -> None:
            queue.put("item")
            queue.get()

        actions: dict[str, Callable[[], object]] = {
            "round trip": round_trip,
            "Dict get": lambda: values["key"],
            "Dict put": lambda: values.put("key", "value"),
            "Queue put and get": put_and_get,
            "sync": _syncer(Path(os.environ["BENCH_SYNC_FILE"])),
        }
        seconds: dict[str, list[float]] = {name: [] for name in actions}
        for _turn in range(count):
            for name, action in actions.items():
                begin = time.perf_counter()
                action()
                seconds[name].append(time.perf_counter() - begin)
        return seconds


def _syncer(path: Path) -> Callable[[], None]:
    """Appends as much as a small change of a database writes, and has the disk keep it."""
    file, page = path.open("ab", buffering=0), os.urandom(2 * 4096)

    def sync() -> None:
        file.write(page)
        os.fdatasync(file.fileno())

    return sync


def redeploy(_: object, rounds: int) -> dict[str, list[float]]:
    """Deploys an app of many functions again and again; what its file takes to import, and a round trip."""
    path = Path(os.environ["BENCH_DEPLOYED"])
    functions = "".join(f"\n@app.function()\ndef f{n}():\n    return {n}\n" for n in range(FUNCTIONS))
    path.write_text(f'import modal\n\napp = modal.App("bench-deployed")\n{functions}')
    seconds: dict[str, list[float]] = {"import": [], "deploy": [], "round trip": []}
    for turn in range(rounds + 1):
        begin = time.perf_counter()
        spec = importlib.util.spec_from_file_location("deployed", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        imported = time.perf_counter()
        result = deploy_app(module.app, name="bench-deployed")
        deployed = time.perf_counter()
        assert result.app_id
        round_trip()
        ended = time.perf_counter()
        if turn:  # the first one is no redeployment
            seconds["import"].append(imported - begin)
            seconds["deploy"].append(deployed - imported)
            seconds["round trip"].append(ended - deployed)
    return seconds


if __name__ == "__main__":
    import driver

    driver.COMMANDS.update(turns=turns, redeploy=redeploy)
    driver.serve(app, None)
