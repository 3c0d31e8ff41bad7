"""A million stored inputs: calls against those of an empty store, and the time that a restart takes."""

import os
import signal
import time
import urllib.request
from pathlib import Path

from servers import Evoke
from session import Session
from table import Row, median, middle, percentile, spread

INPUTS = 1_000_000
# Of these so many wait for a container; the others have ended, with their outputs stored.
INPUTS_WAITING = 100_000
ROUNDS = 40
CALLS_PER_ROUND = 60
CALLS_FIRST = 100
P50_TIMES_MAX = 1.1
RESTART_S_MAX = 2.0
RESTARTS = 5
ANSWER_S_MAX, LOOK_S = 60.0, 0.005


def measure(full: Evoke, empty: Evoke, work: Path) -> list[Row]:
    """Both servers live at the same time, and take turns."""
    with (
        Session("million.py", full.client_env(), work / "full-client") as ours,
        Session("million.py", empty.client_env(), work / "empty-client") as theirs,
    ):
        before = {"full": ours.do("who")["task"], "empty": theirs.do("who")["task"]}
        print(f"  storing {INPUTS} inputs", flush=True)
        ended = ours.do("fill", count=INPUTS - INPUTS_WAITING, cancel=True)
        waiting = ours.do("fill", count=INPUTS_WAITING, cancel=False)
        stored = counted(full, ended["calls"]), counted(full, waiting["calls"])
        rows = [call_row(ours, theirs, stored)]
        after = {"full": ours.do("who")["task"], "empty": theirs.do("who")["task"]}
        if before != after:
            raise RuntimeError(f"the containers changed meanwhile: {before}, {after}")
        print(f"  {RESTARTS} restarts", flush=True)
        rows.append(restart_row(full, ours, before["full"], stored))
        return rows


def counted(evoke: Evoke, calls: list[str]) -> tuple[int, int]:
    """How many inputs of these calls the store has, and how many of them wait."""
    views = [evoke.explain(call) for call in calls]
    return sum(view["inputs"] for view in views), sum(view["unfinished"] for view in views)


def call_row(ours: Session, theirs: Session, stored: tuple[tuple[int, int], tuple[int, int]]) -> Row:
    print(f"  warm .remote(): {ROUNDS} rounds of {CALLS_PER_ROUND} calls, taking turns", flush=True)
    p50: dict[str, list[float]] = {"full": [], "empty": []}
    for session in (ours, theirs):
        session.do("remote", count=CALLS_FIRST)
    for turn in range(ROUNDS):
        order = [("full", ours), ("empty", theirs)]
        for name, session in order if turn % 2 else reversed(order):
            seconds = session.do("remote", count=CALLS_PER_ROUND)["seconds"]
            p50[name].append(percentile(seconds, 0.5) * 1e3)
    ratios = [one / other for one, other in zip(p50["full"], p50["empty"], strict=True)]
    full, empty = median(p50["full"]), median(p50["empty"])
    return Row(
        "call p50 with a million stored inputs",
        f"{full:.2f} ms against {empty:.2f} ms; middle half of the rounds {middle(ratios)}",
        median(ratios),
        P50_TIMES_MAX,
        "times",
        evidence=told(stored),
        details=dict(p50),
    )


def told(stored: tuple[tuple[int, int], tuple[int, int]]) -> str:
    (ended, _), (others, waiting) = stored
    return f"{ended + others} inputs in the store by `explain`: {ended + others - waiting} ended, {waiting} wait"


def restart_row(evoke: Evoke, client: Session, task: str, stored: tuple[tuple[int, int], tuple[int, int]]) -> Row:
    times = []
    for _ in range(RESTARTS):
        times.append(restart(evoke))
        # The client that was there before is served, by the container that was. It is asked each time because
        # both take a request for failed once its connection was lost four times with no answer in between.
        if client.do("who")["task"] != task:
            raise RuntimeError("the restart cost the container its life")
    return Row(
        "restart with a million stored inputs",
        f"SIGKILL of the server until its successor answers; {spread(times)} s",
        median(times),
        RESTART_S_MAX,
        "s",
        evidence=f"another process each time, the same container and client; {told(stored)}",
        details={"seconds": times},
    )


def restart(evoke: Evoke) -> float:
    """Kills the server; the seconds until the next one serves requests."""
    status = evoke.server.status()
    begin = time.perf_counter()
    os.kill(status["server_pid"], signal.SIGKILL)
    # The listener never closes: the request waits in it for the next server, which accepts once it is whole.
    while True:
        try:
            with urllib.request.urlopen(f"{status['address']}/healthz", timeout=ANSWER_S_MAX) as answer:
                answer.read()
            break
        except OSError:
            # The dead server had accepted it, or its end was not noticed yet.
            if time.perf_counter() - begin > ANSWER_S_MAX:
                raise
            time.sleep(LOOK_S)
    took = time.perf_counter() - begin
    if evoke.server.status()["server_pid"] == status["server_pid"]:
        raise RuntimeError("the server was not replaced")
    return took
