"""Ray and Dask on the same machine in the same minutes: a new actor's first answer, and a warm task.

Neither isolates what it runs, stores it, or has an image; the numbers say what is paid for those.
"""

import subprocess
import sys
from pathlib import Path

from cold import wait_for_bytecode, wait_until_none
from servers import PROGRAMS, ROOT, Evoke, clean_environment
from session import Session
from table import Row, median, middle, percentile

# Where the peers are installed once; they are no part of what is tested.
HOME = ROOT / ".cache" / "peers"
PACKAGES = ["ray==2.60.0", "distributed==2026.8.0"]

COLD_ROUNDS = 12
# Ray starts some workers ahead of need; the actors that take those are not counted.
ACTORS_FIRST = 4
WARM_ROUNDS = 20
CALLS_PER_ROUND = 60
# A cold call is to be so many times quicker than a new actor.
GOAL_TIMES = 12.0


def measure(evoke: Evoke, work: Path) -> list[Row]:
    python = installed()
    if python is None:
        return []
    with Session("cold.py", evoke.client_env(), work / "peers-cold") as session, ray(python, work) as peer:
        rows = cold_rows(evoke, session, peer)
    with Session("noop.py", evoke.client_env(), work / "peers-warm") as session, ray(python, work) as peer:
        rows += warm_rows(session, peer, "a task of Ray's")
        with dask(python, work) as other:
            rows += warm_rows(session, other, "a task of Dask's")
    return rows


def installed() -> Path | None:
    """The interpreter that has the peers; None, with the reason said, where they can't be installed."""
    python = HOME / "bin" / "python"
    stamp = HOME / "packages"
    wanted = " ".join(PACKAGES)
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"  installing {wanted}", flush=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(HOME)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
    except subprocess.CalledProcessError as error:
        print(f"  left out: the peers can't be installed here ({error})", flush=True)
        return None
    stamp.write_text(wanted)
    return python


def ray(python: Path, work: Path) -> Session:
    env = {**clean_environment(), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    return Session("peer_ray.py", env, work / "ray", python=python)


def dask(python: Path, work: Path) -> Session:
    return Session("peer_dask.py", clean_environment(), work / "dask", python=python)


def cold_rows(evoke: Evoke, session: Session, peer: Session) -> list[Row]:
    wait_for_bytecode(evoke, session)
    print(f"  {COLD_ROUNDS} cold calls and new actors of Ray's, taking turns", flush=True)
    for _ in range(ACTORS_FIRST):
        peer.do("actor")
    ours, theirs, tasks = [], [], []
    for _ in range(COLD_ROUNDS):
        wait_until_none(evoke, session)
        call = session.do("cold")
        tasks.append(call["task"])
        ours.append(call["seconds"] * 1e3)
        theirs.append(peer.do("actor")["seconds"] * 1e3)
    if len(set(tasks)) != COLD_ROUNDS:
        raise RuntimeError(f"{COLD_ROUNDS} calls were served by {len(set(tasks))} containers: some were not cold")
    paths = sorted({evoke.explain(task)["start_path"] for task in tasks})
    return [
        Row(
            "cold call against a new actor of Ray's, p50",
            f"{median(ours):.0f} ms ({middle(ours, '.0f')}) against {median(theirs):.0f} ms ({middle(theirs, '.0f')})",
            median(theirs) / median(ours),
            GOAL_TIMES,
            "times as fast",
            at_most=False,
            evidence=f"{COLD_ROUNDS} calls by {COLD_ROUNDS} containers, by the path: {', '.join(paths)}; "
            f"Ray {peer.app_id}, its workers that were there before used up first",
            details={"ours_ms": ours, "theirs_ms": theirs},
        )
    ]


def warm_rows(session: Session, peer: Session, name: str) -> list[Row]:
    print(f"  warm .remote() and {name}: {WARM_ROUNDS} rounds of {CALLS_PER_ROUND}, taking turns", flush=True)
    session.do("remote", count=CALLS_PER_ROUND)
    peer.do("tasks", count=CALLS_PER_ROUND)
    ours, theirs = [], []
    for turn in range(WARM_ROUNDS):
        for mine in (True, False) if turn % 2 else (False, True):
            found = session.do("remote", count=CALLS_PER_ROUND) if mine else peer.do("tasks", count=CALLS_PER_ROUND)
            (ours if mine else theirs).append(percentile(found["seconds"], 0.50) * 1e3)
    return [
        Row(
            f"warm .remote() against {name}, p50",
            f"{median(ours):.2f} ms against {median(theirs):.2f} ms",
            median(ours) / median(theirs),
            None,
            "times",
            evidence=f"{PROGRAMS.name}/noop.py and version {peer.app_id} of the peer, one worker process each",
            details={"ours_ms": ours, "theirs_ms": theirs},
        )
    ]
