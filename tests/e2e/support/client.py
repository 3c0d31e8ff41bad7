"""Runs programs with the official client, as a person would on a command line, and reads what they print."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

# The longest that a program of these tests may take; a test that needs more says so.
RUN_S_MAX = 120.0

# Put before every program. `report` hands a finding to the test beside the program's output, which the client
# mixes with the containers' logs; `attempt` turns an exception into a finding.
PRELUDE = """\
import json, os, sys, time
import modal

def report(name, value):
    with open(os.environ["E2E_REPORT"], "a") as file:
        file.write(json.dumps([name, value, time.time()]) + "\\n")

def attempt(action, *args, **kwargs):
    begin = time.monotonic()
    try:
        return {"value": action(*args, **kwargs), "seconds": time.monotonic() - begin}
    except BaseException as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"error": str(error), "kinds": kinds, "seconds": time.monotonic() - begin}

"""


@dataclass(frozen=True)
class Line:
    """A line of output, and when it arrived (seconds since the epoch)."""

    stream: str
    text: str
    at: float


@dataclass
class Run:
    """A program that has ended."""

    code: int
    lines: list[Line]
    seconds: float
    reports: list[tuple[str, Any, float]] = field(default_factory=list)

    @property
    def stdout(self) -> str:
        return "\n".join(line.text for line in self.lines if line.stream == "stdout")

    @property
    def stderr(self) -> str:
        return "\n".join(line.text for line in self.lines if line.stream == "stderr")

    @property
    def output(self) -> str:
        """Both streams in order of arrival."""
        return "\n".join(line.text for line in self.lines)

    @property
    def flat(self) -> str:
        """Both streams with the client's line wrapping and box drawing taken out, to look for sentences in."""
        return " ".join("".join(c if c not in "│╭╮╰╯─" else " " for c in self.output).split())

    def reported(self, name: str) -> list[Any]:
        """Every finding of that name."""
        return [value for key, value, _ in self.reports if key == name]

    def __getitem__(self, name: str) -> Any:
        """The last finding of that name."""
        found = self.reported(name)
        assert found, f"the program never reported {name!r}\n{self.describe()}"
        return found[-1]

    def ok(self) -> "Run":
        """Itself, if the program succeeded."""
        assert self.code == 0, self.describe()
        return self

    def failed(self) -> "Run":
        """Itself, if the program failed by itself (not by a signal)."""
        assert self.code > 0, self.describe()
        return self

    def describe(self) -> str:
        tail = "\n".join(self.output.splitlines()[-80:])
        return f"exit code {self.code} after {self.seconds:.1f} s; the end of its output:\n{tail}"


class Process:
    """A program that runs."""

    def __init__(self, argv: list[str], env: Mapping[str, str], cwd: Path, report: Path) -> None:
        self._report = report
        self._begin = time.monotonic()
        self._lines: list[Line] = []
        self._changed = threading.Condition()
        # A group of its own, so that a signal for the program is none for the tests.
        self._child = subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._child.stdout is not None and self._child.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(name, pipe), daemon=True)
            for name, pipe in (("stdout", self._child.stdout), ("stderr", self._child.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: str, pipe: IO[bytes]) -> None:
        for raw in pipe:
            text = raw.decode(errors="replace").rstrip("\r\n")
            with self._changed:
                self._lines.append(Line(stream, text, time.time()))
                self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def lines(self) -> list[Line]:
        """What it printed so far."""
        with self._changed:
            return list(self._lines)

    def wait_for(self, wanted: Callable[[list[Line]], bool], what: str, timeout_s: float = 60.0) -> list[Line]:
        """Waits until its output is as wanted; the program's end before that is a failure."""
        until = time.monotonic() + timeout_s
        with self._changed:
            while not wanted(self._lines):
                left = until - time.monotonic()
                ended = self._child.poll() is not None and not any(r.is_alive() for r in self._readers)
                if left <= 0 or ended:
                    why = "the program ended" if ended else f"not within {timeout_s:g} s"
                    tail = "\n".join(line.text for line in self._lines[-60:])
                    raise AssertionError(f"{why}: {what}; its output:\n{tail}")
                # Woken by every line; the bound is there for the program's end, which is none.
                self._changed.wait(min(left, 0.5))
            return list(self._lines)

    def wait_for_text(self, text: str, timeout_s: float = 60.0) -> Line:
        """Waits for a line that contains `text`, and gives it."""

        def found(lines: list[Line]) -> bool:
            return any(text in line.text for line in lines)

        lines = self.wait_for(found, f"a line with {text!r}", timeout_s)
        return next(line for line in lines if text in line.text)

    def signal(self, number: int) -> None:
        self._child.send_signal(number)

    def kill(self) -> None:
        """Ends it and everything it started, without a chance to say goodbye."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def end(self, timeout_s: float = RUN_S_MAX) -> Run:
        """Waits for its end. One that takes longer is killed, and that is a failure."""
        try:
            code = self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            tail = "\n".join(line.text for line in self.lines[-80:])
            raise AssertionError(f"the program did not end within {timeout_s:g} s; its output:\n{tail}") from None
        for reader in self._readers:
            reader.join(10)
        seconds = time.monotonic() - self._begin
        reports = [tuple(json.loads(line)) for line in _read_lines(self._report)]
        return Run(code, self.lines, seconds, reports)  # type: ignore[arg-type]


def _read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


class Client:
    """The official client of a person: a home folder, a working folder, and an environment that points at a server."""

    def __init__(self, folder: Path, server_env: Mapping[str, str]) -> None:
        self.folder = folder
        home = folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MODAL_", "EVOKE_", "PYTEST_"))}
        for unwanted in ("PYTHONPATH", "VIRTUAL_ENV"):
            kept.pop(unwanted, None)
        fixed = {"HOME": str(home), "TERM": "dumb", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        # A program that is written again within a second and at the same length would be taken for the one before.
        fixed["PYTHONDONTWRITEBYTECODE"] = "1"
        # No settings file of a real account may take part.
        config = {"MODAL_CONFIG_PATH": str(home / "modal.toml")}
        self.env: dict[str, str] = {**kept, **fixed, **config, **server_env}
        self._started: list[Process] = []
        self._count = 0

    def write(self, name: str, text: str, prelude: bool = True) -> Path:
        """Writes a program into the working folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((PRELUDE if prelude else "") + textwrap.dedent(text))
        return path

    def start(self, *argv: str, env: Mapping[str, str] | None = None) -> Process:
        """Starts a command with the client's environment."""
        self._count += 1
        report = self.folder / f"report-{self._count}.jsonl"
        more = {"E2E_REPORT": str(report), **(env or {})}
        process = Process(list(argv), {**self.env, **more}, self.folder, report)
        self._started.append(process)
        return process

    def start_modal(self, *words: str, env: Mapping[str, str] | None = None) -> Process:
        """Starts `modal WORDS…`."""
        return self.start(sys.executable, "-m", "modal", *words, env=env)

    def modal(self, *words: str, timeout_s: float = RUN_S_MAX, env: Mapping[str, str] | None = None) -> Run:
        """Runs `modal WORDS…` to its end."""
        return self.start_modal(*words, env=env).end(timeout_s)

    def start_program(self, text: str, name: str = "program.py", env: Mapping[str, str] | None = None) -> Process:
        """Starts `modal run` of a program with this text."""
        return self.start_modal("run", str(self.write(name, text)), env=env)

    def program(
        self,
        text: str,
        name: str = "program.py",
        timeout_s: float = RUN_S_MAX,
        env: Mapping[str, str] | None = None,
    ) -> Run:
        """`modal run` of a program with this text, to its end."""
        return self.start_program(text, name, env).end(timeout_s)

    def start_script(self, text: str, name: str = "script.py") -> Process:
        """Starts a Python program that looks up what is deployed, as any program may."""
        return self.start(sys.executable, str(self.write(name, text)))

    def script(self, text: str, name: str = "script.py", timeout_s: float = RUN_S_MAX) -> Run:
        """The same, to its end."""
        return self.start_script(text, name).end(timeout_s)

    def close(self) -> None:
        """Ends what still runs."""
        for process in self._started:
            process.kill()
