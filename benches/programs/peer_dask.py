"""Dask does what it is told: runs a task on a worker process of its own. Answers as `driver.py` does."""

import json
import sys
import time

import distributed


def noop(_turn: int) -> None:
    return None


def tasks(client: distributed.Client, count: int) -> dict[str, list[float]]:
    """Tasks one after the other, each a new one: a result that is known would not be computed again."""
    seconds = []
    for turn in range(count):
        begin = time.perf_counter()
        client.submit(noop, turn, pure=False).result()
        seconds.append(time.perf_counter() - begin)
    return {"seconds": seconds}


if __name__ == "__main__":
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as connected:
        print(json.dumps({"ready": distributed.__version__}), flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            print(json.dumps({"tasks": tasks}[command.pop("do")](connected, **command)), flush=True)
