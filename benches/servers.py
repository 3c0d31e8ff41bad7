"""The two servers that are compared: Evoke, and the bare one of `crates/baseline`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = Path(__file__).resolve().parent / "programs"
sys.path.append(str(ROOT / "tests" / "e2e"))

from support.server import Server  # noqa: E402  (the path above leads to it)


def clean_environment() -> dict[str, str]:
    """The environment without anything that would reach into a client or a server."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MODAL_", "EVOKE_"))}
    for unwanted in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV"):
        kept.pop(unwanted, None)
    return kept


# This machine's own Python as the base: the quickest to make, and the one that the bare server's container runs too.
HOST = ["host"]


class Evoke:
    """A server of the binary under test. `bases` is where the bases of images come from, in order, `lean` the lean
    ways that its containers take; None leaves that to the server."""

    def __init__(self, binary: Path, data: Path, bases: list[str] | None = HOST, lean: list[str] | None = None) -> None:
        data.mkdir(mode=0o755, parents=True, exist_ok=True)
        settings = {"images": {"order": bases}, "containers": {"lean": lean}}
        lines = [
            f"[{section}]\n{key} = {json.dumps(value)}\n"
            for section, keys in settings.items()
            for key, value in keys.items()
            if value is not None
        ]
        (data / "evoke.toml").write_text("".join(lines))
        self.data = data
        self.server = Server(binary, data)

    def start(self) -> None:
        self.server.start()

    def stop(self) -> None:
        code = self.server.stop()
        if code != 0:
            raise RuntimeError(f"the server ended with {code}:\n{self.server.log_tail()}")

    def client_env(self) -> dict[str, str]:
        return {**clean_environment(), **self.server.client_env()}

    def explain(self, object_id: str) -> dict[str, Any]:
        return self.server.explain(object_id)

    def processes(self) -> list[int]:
        """Holder, helper, server, and the first process of every container. What users run is not ours."""
        holder = self.server.status()["holder_pid"]
        own = [holder, *machine.children_of(holder)]
        guests = [guest for pid in own[1:] for guest in machine.children_of(pid)]
        return own + guests

    def cpu_seconds(self) -> float:
        return sum(machine.cpu_seconds(pid) for pid in self.processes())


@contextlib.contextmanager
def started(evoke: Evoke) -> Iterator[Evoke]:
    """The server, up for as long as this lasts."""
    evoke.start()
    try:
        yield evoke
    finally:
        evoke.stop()


class Bare:
    """The server that only answers, with the container as its child."""

    def __init__(self, binary: Path, python: Path, packages: list[Path], work: Path, ways: list[str]) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work = work
        folders = [PROGRAMS, *packages]
        argv = [
            str(binary),
            *("--python", str(python)),
            *("--module-folder", os.pathsep.join(map(str, folders))),
            *("--work-folder", str(work)),
            *("--lean", ",".join(ways) or "off"),
        ]
        # It must leave the packages, which are the other server's, as they are.
        env = {**clean_environment(), "PYTHONDONTWRITEBYTECODE": "1"}
        with open(work / "server.log", "wb") as log:
            self._process = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode().strip()
        if not line.startswith("ready at "):
            raise RuntimeError(f"the bare server said {line!r}; see {work / 'server.log'}")
        self.url = line.removeprefix("ready at ")

    def client_env(self) -> dict[str, str]:
        token = {"MODAL_TOKEN_ID": "ak-bare", "MODAL_TOKEN_SECRET": "as-bare"}
        return {**clean_environment(), "MODAL_SERVER_URL": self.url, **token}

    def cpu_seconds(self) -> float:
        return machine.cpu_seconds(self._process.pid)

    def stop(self) -> None:
        # Its container too.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
