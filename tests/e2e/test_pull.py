"""Pulls that must not succeed, or not in silence: what does not fit the disk, and what is left out of layers."""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client import Client
from support.registry import Registry
from support.server import Server

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
DISK_BYTES = 1_000 << 20
# More than the disk has, in an archive of some hundred kilobytes.
BOMB_BYTES = 900 << 20


class _Zeros(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def _bomb() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as tar:
        entry = tarfile.TarInfo("zeros")
        entry.size = BOMB_BYTES
        tar.addfile(entry, _Zeros())  # type: ignore[arg-type]
    return archive.getvalue()


def _with_a_device() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        entry = tarfile.TarInfo("dev/disk")
        entry.type = tarfile.BLKTYPE
        tar.addfile(entry)
    return archive.getvalue()


@pytest.fixture
def small(evoke_bin: Path, folders: Path, registry: Registry) -> Iterator[Server]:
    """A server on a small disk of its own."""
    image, mount = folders / "small.img", folders / "small"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(DISK_BYTES)
    for command in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(mount)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            pytest.skip(f"no file system can be made and mounted here: {done.stderr.strip()}")
    try:
        data = mount / "data"
        data.mkdir()
        mirrors = f'registry.mirrors = {{ "registry.example" = ["{registry.address}"] }}'
        (data / "evoke.toml").write_text(f'[images]\norder = ["registry", "host"]\n{mirrors}\n')
        server = Server(evoke_bin, data).start()
        yield server
        assert server.stop() == 0, server.log_tail()
    finally:
        subprocess.run(["umount", str(mount)], timeout=60, check=True)
        image.unlink()


def test_what_does_not_fit_is_refused_and_leaves_nothing(small: Server, registry: Registry, folders: Path) -> None:
    registry.push("bomb", "1", [(GZIP, _bomb())], {"Cmd": ["python"]})
    registry.push("device", "1", [(GZIP, _with_a_device())], {"Cmd": ["python"]})
    client = Client(folders / "pull-client", small.client_env())
    program = """
        app = modal.App("pull")

        @app.function(image=modal.Image.from_registry("registry.example/{name}:1"))
        def f():
            return 1

        @app.local_entrypoint()
        def main():
            f.remote()
        """
    run = client.program(program.format(name="bomb")).failed()
    assert "unpacks to more bytes than the disk has room for" in run.flat and "evoke image prune" in run.flat, run.flat
    assert [path.name for path in (small.data / "layers").iterdir() if path.name != "empty"] == []
    assert list((small.data / "spool/downloads/layers").iterdir()) == []
    run = client.program(program.format(name="device")).failed()
    assert "note: 'dev/disk' was left out: a device node, which no container may have" in run.flat, run.flat
    client.close()
