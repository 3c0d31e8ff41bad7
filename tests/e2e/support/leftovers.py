"""Counts what a server that has ended left on the machine: mounts, control groups, network, processes, folders."""

import os
import shutil
import subprocess
from pathlib import Path


def installation_tag(data: Path) -> str:
    """The short name that the control groups, the bridge and the firewall's table of a data folder carry (FNV-1a)."""
    value = 0x811C9DC5
    for byte in os.fsencode(data):
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return f"{value:08x}"


def leftovers(data: Path, unshipped_logs: bool = False) -> list[str]:
    """Everything that is left of the server of `data`, in words. Empty is what it should be. With `unshipped_logs`
    the output of containers that nobody took into the logs yet may be there, which only the next server can do."""
    tag = installation_tag(data)
    found = _processes(data) + _mounts(data) + _control_groups(tag) + _links(tag) + _tables(tag)
    return found + container_traces(data, unshipped_logs)


def container_traces(data: Path, unshipped_logs: bool = False) -> list[str]:
    """What containers left in the data folder."""
    found = []
    for folder in ("containers",) if unshipped_logs else ("containers", "spool", "tasks"):
        inside = data / folder
        paths = sorted(inside.iterdir()) if inside.exists() else []
        # Names that begin with a dot are the server's own and stay, and so do the folders of the spool.
        kept = [path for path in paths if path.name.startswith(".") or (folder == "spool" and path.is_dir())]
        found += [f"left behind: {path}" for path in paths if path not in kept]
    return found


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""  # the process has ended meanwhile


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _processes(data: Path) -> list[str]:
    """Holder, helper and server know their data folder by a word or by their environment."""
    word = os.fsencode(data)
    found = []
    for pid in _pids():
        if pid == os.getpid():
            continue
        command = _read(f"/proc/{pid}/cmdline")
        if command.split(b"\0")[0].endswith(b"rclone") and word in command:
            found.append(f"process {pid} serves a bucket")
        if b"evoke" not in command.split(b"\0")[0]:
            continue
        if word in command.split(b"\0") or word in _read(f"/proc/{pid}/environ"):
            found.append(f"process {pid}: {command.replace(bytes(1), b' ').decode(errors='replace').strip()}")
    return found


def _mounts(data: Path) -> list[str]:
    """In every mount namespace that a process still is in."""
    found: dict[str, None] = {}
    seen = set()
    for pid in _pids():
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        except OSError:
            continue
        if namespace in seen:
            continue
        seen.add(namespace)
        for line in _read(f"/proc/{pid}/mountinfo").decode(errors="replace").splitlines():
            # The data folder may itself be a mount; what is mounted inside, or made of it, is ours.
            if f"{data}/" in line:
                found[f"mount in {namespace}: {line}"] = None
    return list(found)


def _control_groups(tag: str) -> list[str]:
    return [
        f"control group {Path(folder) / name}"
        for folder, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if name == f"evoke-{tag}"
    ]


def _links(tag: str) -> list[str]:
    names = os.listdir("/sys/class/net")
    return [f"interface {name}" for name in names if name == f"evoke-{tag}" or name.startswith(f"ev{tag[:6]}-")]


def _tables(tag: str) -> list[str]:
    if shutil.which("nft") is None:
        return []
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
    return [f"firewall {line}" for line in listed.splitlines() if f"evoke-{tag}" in line]
