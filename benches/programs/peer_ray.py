"""Ray does what it is told: starts an actor for one answer, or runs a task. Answers as `driver.py` does."""

import json
import sys
import time

import ray


@ray.remote
class Actor:
    def noop(self) -> None:
        return None


@ray.remote
def noop() -> None:
    return None


def actor() -> dict[str, float]:
    """A new actor, until its first answer; then it ends."""
    begin = time.perf_counter()
    new = Actor.remote()
    ray.get(new.noop.remote())
    took = time.perf_counter() - begin
    ray.kill(new)
    return {"seconds": took}


def tasks(count: int) -> dict[str, list[float]]:
    """Tasks one after the other."""
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        ray.get(noop.remote())
        seconds.append(time.perf_counter() - begin)
    return {"seconds": seconds}


COMMANDS = {"actor": actor, "tasks": tasks}

if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    print(json.dumps({"ready": ray.__version__}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(COMMANDS[command.pop("do")](**command)), flush=True)
