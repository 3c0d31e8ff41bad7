"""Looks at a container's processes from the machine, which sees what the container cannot know of itself."""

import os
from pathlib import Path

from support.waits import wait_until

NAMESPACES = ("user", "mnt", "pid", "ipc", "uts", "net", "cgroup")


class InsideOf:
    """The process of a container that runs the user's program."""

    def __init__(self, task_id: str) -> None:
        self.pid = wait_until(lambda: max(processes_of(task_id), default=0), f"a process of container {task_id}")

    def status(self, field: str) -> str:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return value.strip()
        raise AssertionError(f"the kernel tells no {field} of process {self.pid}")

    def shares(self) -> list[str]:
        """The kinds of namespaces that it has in common with this machine."""
        return [kind for kind in NAMESPACES if _namespace(self.pid, kind) == _namespace(os.getpid(), kind)]


def processes_of(task_id: str) -> list[int]:
    """Every process in the control groups of a container."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                groups = Path(f"/proc/{name}/cgroup").read_text()
            except OSError:
                continue  # it has ended meanwhile
            if f"/{task_id}" in groups:
                found.append(int(name))
    return found


def _namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")
