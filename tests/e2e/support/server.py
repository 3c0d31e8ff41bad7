"""A real server: `evoke up` in its own processes, on a data folder and a free port."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.leftovers import leftovers
from support.waits import wait_until

# A server is ready within this, base images apart.
READY_S_MAX = 60.0
# It ends within its containers' grace and its own bounds.
STOP_S_MAX = 100.0


class Server:
    """The server of a data folder."""

    def __init__(self, binary: Path, data: Path) -> None:
        self.binary = binary
        self.data = data
        self.log_path = data.parent / f"{data.name}.log"
        self.log_path.unlink(missing_ok=True)
        self._holder: subprocess.Popen[bytes] | None = None

    def start(self) -> "Server":
        """Starts it and waits for its ready line."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("MODAL_", "EVOKE_"))}
        argv = [str(self.binary), "up", "--data", str(self.data), "--listen", "127.0.0.1:0"]
        with open(self.log_path, "ab") as log:
            self._holder = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        assert self._holder.stdout is not None
        line = self._holder.stdout.readline().decode()
        assert line.startswith("evoke is ready at http://"), f"{line!r}; its log:\n{self.log_tail()}"
        return self

    @property
    def running(self) -> bool:
        return self._holder is not None and self._holder.poll() is None

    def evoke(self, *words: str, timeout_s: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a verb of the binary on this data folder."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("MODAL_")}
        env["EVOKE_DATA"] = str(self.data)
        done = subprocess.run(
            [str(self.binary), *words], env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert not check or done.returncode == 0, f"evoke {' '.join(words)}: {done.stdout}{done.stderr}"
        return done

    def client_env(self) -> dict[str, str]:
        """What `evoke env` says, as a client's environment."""
        lines = self.evoke("env").stdout.splitlines()
        found = [re.fullmatch(r"export (\w+)='?([^']*)'?", line) for line in lines]
        return {match[1]: match[2] for match in found if match}

    def status(self) -> dict[str, Any]:
        """What `evoke status --json` says; waits for a server that is starting again."""
        return json.loads(self.evoke("status", "--json").stdout)

    def explain(self, object_id: str) -> dict[str, Any]:
        return json.loads(self.evoke("explain", "--json", object_id).stdout)

    def base_layer(self) -> Path:
        """The files of the base for Debian that it made."""
        layers = self.data / "layers"
        trees = [path / "fs" for path in layers.iterdir() if (path / "fs/etc/debian_version").exists()]
        assert trees, os.listdir(layers)
        return max(trees, key=lambda path: len(list((path / "usr").iterdir())))

    def kill_server(self, away_s: float = 0.0) -> None:
        """SIGKILLs the server process; the holder's next one starts at once, or after `away_s` seconds."""
        status = self.status()
        server, holder = status["server_pid"], status["holder_pid"]
        if away_s:
            # A stopped holder starts no other server. Its listeners stay open.
            os.kill(holder, signal.SIGSTOP)
        try:
            os.kill(server, signal.SIGKILL)
            # Not a wait for a state: the time without a server is what is tested.
            time.sleep(away_s)
        finally:
            if away_s:
                os.kill(holder, signal.SIGCONT)
        wait_until(lambda: self.status()["server_pid"] != server, "another server process", READY_S_MAX)

    def log_tail(self, lines: int = 60) -> str:
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def stop(self, how: int = signal.SIGINT) -> int:
        """Stops it as Ctrl-C does; gives the holder's exit code."""
        assert self._holder is not None
        if self._holder.poll() is None:
            self._holder.send_signal(how)
        try:
            return self._holder.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            raise AssertionError(f"not stopped within {STOP_S_MAX:g} s; its log:\n{self.log_tail()}") from None

    def leftovers(self, unshipped_logs: bool = False) -> list[str]:
        return leftovers(self.data, unshipped_logs)


@contextmanager
def on_this_machine(binary: Path, data: Path) -> Iterator[Server]:
    """A server of its own on an empty data folder, with this machine as the base of images. It leaves nothing."""
    data.mkdir()
    (data / "evoke.toml").write_text('[images]\norder = ["host"]\n')
    server = Server(binary, data).start()
    yield server
    assert server.stop() == 0, server.log_tail()
    assert server.leftovers() == []
