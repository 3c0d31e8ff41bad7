"""Dicts, Queues and deployments, against bare round trips of the same client to the same server."""

from pathlib import Path

from servers import Evoke
from session import Session
from table import Row, median, middle, percentile

# Rounds of turns; each round is a sample of the ratio.
ROUNDS = 10
TURNS_PER_ROUND = 60
REDEPLOYS = 10
FUNCTIONS = 20


def measure(evoke: Evoke, work: Path) -> list[Row]:
    paths = {"BENCH_SYNC_FILE": str(evoke.data / "bench-sync"), "BENCH_DEPLOYED": str(work / "deployed.py")}
    with Session("data.py", evoke.client_env(), work / "data-client", paths) as session:
        session.do("turns", count=TURNS_PER_ROUND)
        print(f"  Dict and Queue: {ROUNDS} rounds of {TURNS_PER_ROUND} turns", flush=True)
        rounds = [session.do("turns", count=TURNS_PER_ROUND) for _ in range(ROUNDS)]
        print(f"  unchanged redeployment of {FUNCTIONS} functions: {REDEPLOYS} times", flush=True)
        return [*turn_rows(rounds), redeploy_row(session.do("redeploy", rounds=REDEPLOYS))]


def turn_rows(rounds: list[dict[str, list[float]]]) -> list[Row]:
    p50 = {name: [percentile(one[name], 0.5) * 1e3 for one in rounds] for name in rounds[0]}
    sync, trip = median(p50["sync"]), median(p50["round trip"])
    rows = []
    # A put and a get are two round trips, and each change waits for the disk.
    for name, trips, syncs in (("Dict get", 1, 0), ("Dict put", 1, 1), ("Queue put and get", 2, 2)):
        ratios = [one / trips / other for one, other in zip(p50[name], p50["round trip"], strict=True)]
        least = (trips * trip + syncs * sync) / trips / trip
        rows.append(
            Row(
                f"{name} p50",
                f"{median(p50[name]):.2f} ms against {trips} x {trip:.2f} ms; middle half of the rounds "
                f"{middle(ratios)}",
                median(ratios),
                1.3,
                "times",
                evidence=f"the same client, server and connection, one by one in turns; this disk syncs 8 KiB in "
                f"{sync:.2f} ms, so a round trip and what it has to sync are {least:.2f} times",
                details=dict(p50),
            )
        )
    return rows


def redeploy_row(found: dict[str, list[float]]) -> Row:
    least = [imported + FUNCTIONS * trip for imported, trip in zip(found["import"], found["round trip"], strict=True)]
    whole = [imported + deploy for imported, deploy in zip(found["import"], found["deploy"], strict=True)]
    ratios = [one / other for one, other in zip(whole, least, strict=True)]
    return Row(
        f"unchanged redeployment, {FUNCTIONS} functions",
        f"{median(whole) * 1e3:.0f} ms against {median(least) * 1e3:.0f} ms for the import and one round trip a "
        f"function; middle half {middle(ratios)}",
        median(ratios),
        1.5,
        "times",
        evidence="one process deploys the file again and again; the first deployment is not counted",
        details=dict(found),
    )
