"""No container is there: a call of a no-op until its result, against the import that any container must do."""

import time
from pathlib import Path
from typing import Any

from servers import Evoke
from session import Session
from table import Row, median, spread

ROUNDS = 15
# What a call may take beyond the import (milliseconds).
GOAL_MS = 200.0
# How long a container may take to end once it is idle, and how often that is looked at.
GONE_S_MAX, LOOK_S = 30.0, 0.25
# After the last container is gone, so that its clearing away is not in the next call's time.
PAUSE_S = 1.0
# How long the first containers may take until the client's bytecode is there.
COMPILED_S_MAX = 60.0


def measure(evoke: Evoke, work: Path) -> list[Row]:
    with Session("cold.py", evoke.client_env(), work / "cold-client") as session:
        wait_for_bytecode(evoke, session)
        print(f"  {ROUNDS} cold calls, the import between them", flush=True)
        calls, imports, above, tasks = [], [], [], []
        for _ in range(ROUNDS):
            wait_until_none(evoke, session)
            call = session.do("cold")
            wait_until_none(evoke, session)
            found = session.do("import")
            if not found["compiled"]:
                raise RuntimeError("the import that is compared with had no bytecode")
            tasks.append(call["task"])
            calls.append(call["seconds"] * 1e3)
            imports.append(found["seconds"] * 1e3)
            above.append(calls[-1] - imports[-1])
        if len(set(tasks)) != ROUNDS:
            raise RuntimeError(f"{ROUNDS} calls were served by {len(set(tasks))} containers: some were not cold")
        phases = [phases_of(evoke.explain(task)) for task in tasks]
    typical = ", ".join(f"{name} {median([found[name] for found in phases]):.0f} ms" for name in phases[0])
    measured = f"call {median(calls):.0f} ms, import alone {median(imports):.0f} ms; above it {spread(above, '.0f')} ms"
    evidence = f"{ROUNDS} calls by {ROUNDS} containers, each started for its call by the plain path: {typical}"
    details = {"calls_ms": calls, "imports_ms": imports, "tasks": tasks, "phases": phases}
    return [Row("cold call above the import, p50", measured, median(above), GOAL_MS, "ms", True, evidence, details)]


def wait_for_bytecode(evoke: Evoke, session: Session) -> None:
    """Warm means that the client's bytecode is there for new containers; the server makes it beside the first ones."""
    until = time.monotonic() + COMPILED_S_MAX
    while not any((evoke.data / "layers").glob("client-*")):
        if time.monotonic() > until:
            raise RuntimeError(f"the server did not compile the client within {COMPILED_S_MAX:g} s")
        session.do("cold")
        wait_until_none(evoke, session)
    # The import's own container starts with it, and has read everything once.
    session.do("import")


def wait_until_none(evoke: Evoke, session: Session) -> None:
    """Waits until the function has no container any more."""
    until = time.monotonic() + GONE_S_MAX
    while containers_of(evoke.explain(session.app_id)):
        if time.monotonic() > until:
            raise RuntimeError(f"the idle container did not end within {GONE_S_MAX:g} s")
        time.sleep(LOOK_S)
    time.sleep(PAUSE_S)


def containers_of(app: dict[str, Any]) -> int:
    return sum(function["containers"] for function in app["functions"] if function["function"] == "noop")


def phases_of(container: dict[str, Any]) -> dict[str, float]:
    """The phases of a container up to its first input."""
    if container["start_path"] != "plain":
        raise RuntimeError(f"{container['id']} was started by the path {container['start_path']}")
    wanted = ("queued to slot", "slot to exec", "exec to hello", "hello to ready")
    return {phase["phase"]: phase["ms"] for phase in container["phases"] if phase["phase"] in wanted}
