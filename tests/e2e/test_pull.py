"""Pulls that must not succeed, or not in silence: what does not fit the disk, and what is left out of layers."""

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest
from support.client import Client
from support.registry import MANIFEST, Registry
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


def _archive(*entries: tuple[str, bytes, str]) -> bytes:
    """Entries by name, kind and what they link to; files hold a word."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, kind, target in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = kind, target, 0o755
            entry.size = 5 if kind == tarfile.REGTYPE else 0
            tar.addfile(entry, io.BytesIO(b"evil!"))
    return archive.getvalue()


def test_what_a_registry_serves_wrongly_is_told_and_harms_nothing(
    client: Client, registry: Registry, server: Server
) -> None:
    tag, outside = token_hex(4), Path(f"/etc/evoke-e2e-{token_hex(4)}")
    layers = {
        "garbage": [_archive(("garbage", tarfile.REGTYPE, ""))],
        "config": [_archive(("config", tarfile.REGTYPE, ""))],
        "layer": [_archive(("layer", tarfile.REGTYPE, ""))],
        "short": [_archive(("short", tarfile.REGTYPE, ""))],
        "no-archive": [gzip.compress(b"this is no archive" * 100)],
        "climbs": [_archive((f"../../../../../..{outside}", tarfile.REGTYPE, ""))],
        "host-link": [_archive(("passwd", tarfile.LNKTYPE, "../../../../../../etc/passwd"))],
        "through": [
            _archive(
                ("etc", tarfile.DIRTYPE, ""),
                ("way", tarfile.SYMTYPE, "/etc"),
                ("up", tarfile.SYMTYPE, "../../../../etc"),
            ),
            _archive((f"way/{outside.name}", tarfile.REGTYPE, ""), (f"up/{outside.name}", tarfile.REGTYPE, "")),
        ],
    }
    for name, archives in layers.items():
        registry.push(f"odd/{name}", tag, [(GZIP, archive) for archive in archives], {"Cmd": ["sh", name]})
    # What each manifest names, by its place in it.
    named = {
        key.partition(":")[0]: json.loads(body)
        for key, (kind, body) in registry.manifests.items()
        if key.startswith("odd/") and kind == MANIFEST
    }
    registry.manifests[f"odd/garbage:{tag}"] = (MANIFEST, b"<html>please log in</html>")
    registry.instead[named["odd/config"]["config"]["digest"]] = b'{"architecture": "amd64", "os": "linux"}'
    registry.instead[named["odd/layer"]["layers"][0]["digest"]] = layers["layer"][0][:-1] + b"?"
    registry.instead[named["odd/short"]["layers"][0]["digest"]] = layers["short"][0][:-9]
    before = {path.name for path in (server.data / "layers").iterdir()}
    run = client.program(
        """
        app = modal.App("odd")

        @app.local_entrypoint()
        def main():
            for name in os.environ["E2E_NAMES"].split():
                image = modal.Image.from_registry(f"{os.environ['E2E_FROM']}/odd/{name}:{os.environ['E2E_TAG']}")
                report(name, attempt(lambda image=image: bool(image.build(app))))
        """,
        env={"E2E_NAMES": " ".join(layers), "E2E_TAG": tag, "E2E_FROM": registry.address.removeprefix("http://")},
    ).ok()
    for name, says in {
        "garbage": ["odd/garbage", "have the image pushed anew"],
        "config": ["does not match its digest", "have the image pushed anew"],
        "layer": ["does not match its digest", "have the image pushed anew"],
        "short": ["odd/short"],
        "no-archive": ["odd/no-archive", "have the image pushed anew"],
        "climbs": ["odd/climbs", "..", "have the image pushed anew"],
        "host-link": ["odd/host-link", "..", "have the image pushed anew"],
    }.items():
        found = run[name]
        assert "error" in found and found["seconds"] < 20, (name, found)
        assert all(words in found["error"] for words in says), (name, found)
    made = {path.name for path in (server.data / "layers").iterdir()} - before
    # A link of a layer leads where it would lead in the container.
    assert "error" not in run["through"], run["through"]
    assert len(made) == 2 and not outside.exists()
    found = [path for layer in made for path in (server.data / "layers" / layer).rglob(outside.name)]
    assert [path.relative_to(server.data / "layers").parts[2:] for path in found] == [outside.parts[1:]]
