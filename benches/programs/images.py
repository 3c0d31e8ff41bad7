"""Image builds timed by the client that waits for them; run by the benchmark."""

import json
import sys
import time

import modal


def answer(message: object) -> None:
    print(json.dumps(message), flush=True)


def pull(app: modal.App, reference: str) -> float:
    """Has an image of a registry brought; the seconds until it is there."""
    begin = time.perf_counter()
    modal.Image.from_registry(reference).build(app)
    return time.perf_counter() - begin


def resolve(app: modal.App, steps: int) -> float:
    """Has an image of so many steps of its own found, or made; the seconds."""
    image = modal.Image.debian_slim()
    for step in range(steps):
        image = image.run_commands(f"echo {step} > /step")
    begin = time.perf_counter()
    image.build(app)
    return time.perf_counter() - begin


def main() -> None:
    app = modal.App("bench-images")
    with app.run():
        answer({"ready": app.app_id})
        for line in sys.stdin:
            command = json.loads(line)
            answer({"seconds": {"pull": pull, "resolve": resolve}[command.pop("do")](app, **command)})


if __name__ == "__main__":
    main()
