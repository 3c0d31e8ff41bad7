"""The measuring half of a program: takes one command a line (JSON) on standard input, answers one line each."""

import json
import resource
import sys
import time

import modal


def serve(app: modal.App, noop: modal.Function) -> None:
    """Runs the app for as long as there are commands."""
    with app.run():
        answer({"ready": app.app_id})
        for line in sys.stdin:
            command = json.loads(line)
            answer(COMMANDS[command.pop("do")](noop, **command))


def answer(message: object) -> None:
    print(json.dumps(message), flush=True)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def who(noop: modal.Function) -> dict[str, object]:
    """Who serves calls right now."""
    return noop.remote("who")


def remote(noop: modal.Function, count: int) -> dict[str, object]:
    """Calls one after the other; the seconds that each took."""
    begin_cpu = cpu_seconds()
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        noop.remote()
        seconds.append(time.perf_counter() - begin)
    return {"seconds": seconds, "cpu": cpu_seconds() - begin_cpu}


def map_inputs(noop: modal.Function, count: int) -> dict[str, object]:
    """One map over that many inputs."""
    begin_cpu, begin = cpu_seconds(), time.perf_counter()
    results = sum(1 for result in noop.map([None] * count) if result is None)
    took = time.perf_counter() - begin
    assert results == count, f"{results} results of {count}"
    return {"seconds": took, "cpu": cpu_seconds() - begin_cpu}


COMMANDS = {"who": who, "remote": remote, "map": map_inputs}
