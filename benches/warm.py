"""A container is there: `.remote()` and `.map` of a no-op, Evoke against the bare server, whose container takes the
same ways to its platform."""

from pathlib import Path
from typing import Any

from servers import Bare, Evoke
from session import Session
from table import Row, median, middle, percentile, spread

# Many short rounds: what else the machine does then disturbs both alike.
ROUNDS = 40
CALLS_PER_ROUND = 60
MAP_ROUNDS = 5
MAP_INPUTS = 5_000
# Before anything counts: imports, connections, and the interpreter's own warming up.
CALLS_FIRST = 200


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def measure(evoke: Evoke, bare_binary: Path, work: Path) -> list[Row]:
    """Both servers and both clients live at the same time, and take turns."""
    with Session("noop.py", evoke.client_env(), work / "evoke-client") as ours:
        served = ours.do("who")
        bare = Bare(bare_binary, *interpreter_of(served, evoke.data), work / "bare", served["ways"])
        try:
            with Session("noop.py", bare.client_env(), work / "bare-client") as theirs:
                compared = theirs.do("who")
                same_interpreter(served, compared)
                rows = remote_rows(evoke, ours, theirs, served)
                return rows + map_rows(evoke, bare, ours, theirs, served)
        finally:
            bare.stop()


def interpreter_of(served: dict[str, Any], data: Path) -> tuple[Path, list[Path]]:
    """The interpreter and the packages that Evoke's container runs, as this machine has them."""
    bundles = data / "bundles"
    trees = ("client-*/tree/pkg", "deps-*/tree/__modal/deps", "deps-*/tree/pkg")
    packages = [found for tree in trees for found in bundles.glob(tree)]
    return Path(served["base_executable"]), packages


def same_interpreter(one: dict[str, Any], other: dict[str, Any]) -> None:
    for key in ("python", "modal", "grpclib", "protobuf", "ways"):
        if one[key] != other[key]:
            raise RuntimeError(f"the containers differ in {key}: {one[key]} and {other[key]}; nothing can be compared")


def remote_rows(evoke: Evoke, ours: Session, theirs: Session, served: dict[str, Any]) -> list[Row]:
    say(f"warm .remote(): {ROUNDS} rounds of {CALLS_PER_ROUND} calls, taking turns")
    for session in (theirs, ours):
        session.do("remote", count=CALLS_FIRST)
    rounds: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
    for turn in range(ROUNDS):
        order = [("ours", ours), ("theirs", theirs)]
        for name, session in order if turn % 2 else reversed(order):
            seconds = session.do("remote", count=CALLS_PER_ROUND)["seconds"]
            rounds[name].append([second * 1e3 for second in seconds])
    evidence = reused(evoke, ours, served)
    p50 = {name: [percentile(one, 0.50) for one in found] for name, found in rounds.items()}
    ratios = [one / other for one, other in zip(p50["ours"], p50["theirs"], strict=True)]
    mine, other = median(p50["ours"]), median(p50["theirs"])
    tails = {name: percentile([ms for one in found for ms in one], 0.99) for name, found in rounds.items()}
    return [
        Row(
            "warm .remote() p50",
            f"{mine:.2f} ms against {other:.2f} ms; middle half of the rounds {middle(ratios)}",
            median(ratios),
            1.3,
            "times",
            evidence=evidence,
            details=dict(p50),
        ),
        Row(
            "warm .remote() p99",
            f"{tails['ours']:.2f} ms against {tails['theirs']:.2f} ms, of all calls",
            tails["ours"] / tails["theirs"],
            None,
            "times",
            evidence=evidence,
            details=dict(tails),
        ),
    ]


def reused(evoke: Evoke, session: Session, before: dict[str, Any]) -> str:
    """That the container which was there before the measurement served all of it, and no other."""
    after = session.do("who")
    if (after["task"], after["pid"]) != (before["task"], before["pid"]):
        raise RuntimeError(f"the calls were served by {before['task']} and {after['task']}: not a warm container")
    found = evoke.explain(after["task"])
    app = evoke.explain(session.app_id)
    if app["containers"] != 1:
        raise RuntimeError(f"the app has {app['containers']} containers: not the one that was warm")
    ways = ", ".join(after["ways"]) or "none, the official way"
    once = f"started once ({found['start_path']}), still there"
    return f"all by {after['task']} (process {after['pid']}), {once}; lean ways: {ways}"


def map_rows(evoke: Evoke, bare: Bare, ours: Session, theirs: Session, served: dict[str, Any]) -> list[Row]:
    say(f".map: {MAP_ROUNDS} rounds of {MAP_INPUTS} inputs, taking turns")
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    client_cpu: dict[str, list[float]] = {"ours": [], "theirs": []}
    server_cpu: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(MAP_ROUNDS):
        order: list[tuple[str, Evoke | Bare, Session]] = [("ours", evoke, ours), ("theirs", bare, theirs)]
        for name, server, session in order if turn % 2 else reversed(order):
            before = server.cpu_seconds()
            found = session.do("map", count=MAP_INPUTS)
            server_cpu[name].append(server.cpu_seconds() - before)
            client_cpu[name].append(found["cpu"])
            rates[name].append(MAP_INPUTS / found["seconds"])
    evidence = reused(evoke, ours, served)
    shares = [mine / other for mine, other in zip(rates["ours"], rates["theirs"], strict=True)]
    cpu = [server / client for server, client in zip(server_cpu["ours"], client_cpu["ours"], strict=True)]
    bare_cpu = median(server_cpu["theirs"])
    return [
        Row(
            f".map over {MAP_INPUTS}, rate",
            f"{median(rates['ours']):.0f}/s against {median(rates['theirs']):.0f}/s; rounds {spread(shares)}",
            median(shares),
            0.8,
            "times",
            at_most=False,
            evidence=evidence,
            details=dict(rates),
        ),
        Row(
            f".map over {MAP_INPUTS}, server CPU",
            f"all processes {median(server_cpu['ours']):.2f} s, client {median(client_cpu['ours']):.2f} s "
            f"(bare server {bare_cpu:.2f} s, its client {median(client_cpu['theirs']):.2f} s); rounds {spread(cpu)}",
            median(cpu),
            1.0,
            "times",
            evidence=f"{len(evoke.processes())} processes counted: holder, helper, server, containers' first",
            details={"server": server_cpu, "client": client_cpu},
        ),
    ]
