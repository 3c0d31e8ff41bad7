"""The bound on what a container may write, on a file system with project quotas that is made in a file."""

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client import Client
from support.server import Server


def _command(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def bounded(evoke_bin: Path, folders: Path) -> Iterator[Server]:
    image, mount = folders / "disk.img", folders / "disk"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(2 << 30)
    made = _command("mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota", str(image))
    if made.returncode != 0:
        pytest.skip(f"no file system with project quotas can be made here: {made.stderr.strip()}")
    mounted = _command("mount", "-o", "loop,prjquota", str(image), str(mount))
    if mounted.returncode != 0:
        pytest.skip(f"no file system with project quotas can be mounted here: {mounted.stderr.strip()}")
    try:
        data = mount / "data"
        data.mkdir()
        (data / "evoke.toml").write_text('[images]\norder = ["host"]\n[limits]\ndisk_mib = 96\n')
        server = Server(evoke_bin, data).start()
        yield server
        assert server.stop() == 0, server.log_tail()
    finally:
        assert _command("umount", str(mount)).returncode == 0
        image.unlink()


def test_a_container_cannot_write_more_than_it_may(bounded: Server, folders: Path) -> None:
    client = Client(folders / "disk-client", bounded.client_env())
    run = client.program(
        """
        app = modal.App("disk")

        def fill(path="/root/large"):
            written = 0
            try:
                with open(path, "wb", buffering=0) as file:
                    while written < 1 << 30:
                        written += file.write(bytes(1 << 20))
            except OSError as error:
                return [written >> 20, error.errno]
            return [written >> 20, None]

        @app.function(ephemeral_disk=32)
        def asked():
            return fill()

        @app.function()
        def by_default():
            first = fill()
            os.remove("/root/large")
            return [first, fill("/tmp/other")]

        @app.local_entrypoint()
        def main():
            report("asked", asked.remote())
            report("by_default", by_default.remote())
        """
    ).ok()
    full = (errno.EDQUOT, errno.ENOSPC)
    written, why = run["asked"]
    assert 16 <= written <= 32 and why in full, run["asked"]
    for written, why in run["by_default"]:
        assert 64 <= written <= 96 and why in full, run["by_default"]
    assert "is no bound here" not in run.flat
