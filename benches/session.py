"""A program, mostly with the official client, that runs beside the benchmark and does what it is told."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servers import PROGRAMS


class Session:
    """One client process with its app, for as long as it is open."""

    def __init__(
        self,
        program: str,
        env: Mapping[str, str],
        home: Path,
        more: Mapping[str, str] | None = None,
        python: Path = Path(sys.executable),
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        own = {"HOME": str(home), "MODAL_CONFIG_PATH": str(home / "modal.toml"), **(more or {})}
        self._log = home / f"{program}.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [str(python), str(PROGRAMS / program)],
                env={**env, **own},
                cwd=PROGRAMS,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.app_id: str = self._answer()["ready"]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        # A container's own output reaches the client's; answers are the lines that are JSON.
        for line in self._process.stdout:
            if line.startswith(("{", "[")):
                return json.loads(line)
        raise RuntimeError(f"the client ended; see {self._log}:\n{self._log.read_text()[-4000:]}")

    def do(self, what: str, **details: Any) -> Any:
        """Has one thing done and gives what was measured."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **details}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
