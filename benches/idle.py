"""Nothing happens: memory and CPU time of all of Evoke's processes, after work is done and its containers are gone."""

import time
from pathlib import Path

import machine
from servers import Evoke
from session import Session
from table import Row, number

MIB = 1 << 20
PSS_MIB_MAX = 60.0
# "None that can be measured": a thousandth of one processor.
CPU_MS_PER_S_MAX = 1.0
WATCHED_S = 30.0
# After the large map, before anything is measured.
QUIET_S = 60.0
GONE_S_MAX = 60.0


def measure(evoke: Evoke, work: Path) -> list[Row]:
    return after(evoke, work, 5_000, 0.0) + after(evoke, work, 50_000, QUIET_S)


def after(evoke: Evoke, work: Path, inputs: int, quiet_s: float) -> list[Row]:
    """Runs a map, lets the client and its containers go, and watches the server do nothing."""
    print(f"  .map over {inputs}, then nothing", flush=True)
    more = {"BENCH_SCALEDOWN_S": "2", "BENCH_CONTAINERS_MAX": "0"}
    with Session("noop.py", evoke.client_env(), work / "idle-client", more) as session:
        session.do("map", count=inputs)
        app_id = session.app_id
    wait_until_gone(evoke)
    time.sleep(quiet_s)
    pids = evoke.processes()
    pss = {name_of(pid): machine.pss_bytes(pid) / MIB for pid in pids}
    before = [machine.cpu_seconds_exact(pid) for pid in pids]
    time.sleep(WATCHED_S)
    used = [machine.cpu_seconds_exact(pid) - was for pid, was in zip(pids, before, strict=True)]
    per_second = sum(used) * 1e3 / WATCHED_S
    if evoke.processes() != pids:
        raise RuntimeError("processes came or went meanwhile: that was not idle")
    shares = ", ".join(f"{name} {size:.1f} MiB" for name, size in pss.items())
    parts = ", ".join(f"{name_of(pid)} {spent * 1e3:.1f} ms" for pid, spent in zip(pids, used, strict=True))
    when = f"idle after .map over {inputs}" + (f" and {quiet_s:.0f} s" if quiet_s else "")
    state = evoke.explain(app_id)["state"]
    evidence = f"{len(pids)} processes, no container, the app is {state}"
    return [
        Row(f"{when}: memory (PSS)", shares, sum(pss.values()), PSS_MIB_MAX, "MiB", evidence=evidence),
        Row(
            f"{when}: CPU",
            f"{number(sum(used) * 1e3, 'ms')} in {WATCHED_S:.0f} s: {parts}",
            per_second,
            CPU_MS_PER_S_MAX,
            "ms/s",
            evidence="exact run time of the processes, ended threads included, as the scheduler has it",
        ),
    ]


def wait_until_gone(evoke: Evoke) -> None:
    until = time.monotonic() + GONE_S_MAX
    while evoke.server.status()["containers"]:
        if time.monotonic() > until:
            raise RuntimeError(f"containers were still there {GONE_S_MAX:g} s after their app ended")
        time.sleep(0.5)


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
