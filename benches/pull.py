"""Pulls of an image from a registry on this machine against skopeo and umoci; images that are there, found again."""

import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from servers import Evoke
from session import Session
from table import Row, median, spread

ROUNDS = 3
# What the layers of the image have before they are compressed.
IMAGE_BYTES = 500 << 20
LAYERS = 5
# Steps of the image that is found again, and how often; what each may take (milliseconds).
STEPS, FINDS, FIND_MS = 40, 5, 5.0
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def measure(evoke: Evoke, work: Path) -> list[Row]:
    missing = [tool for tool in ("skopeo", "umoci") if shutil.which(tool) is None]
    rows = []
    with Session("images.py", evoke.client_env(), work / "images-client") as session:
        if missing:
            print(f"  no pulls: {' and '.join(missing)} must be installed (apt install skopeo umoci)", flush=True)
        else:
            rows.append(_pulls(session, work))
        session.do("resolve", steps=STEPS)
        seconds = [session.do("resolve", steps=STEPS)["seconds"] for _ in range(FINDS)]
    each = [took * 1e3 / STEPS for took in seconds]
    found = f"an image of {STEPS} steps that is there, as its client waits for it; {spread(each, '.2f')} ms a step"
    evidence = "the client's own time and a round trip a step are in it"
    rows.append(Row("finding a built image, a step", found, median(each), FIND_MS, "ms", evidence=evidence))
    return rows


def _pulls(session: Session, work: Path) -> Row:
    print(f"  pulls of {IMAGE_BYTES >> 20} MiB: {ROUNDS} times each", flush=True)
    registry = _Registry(work / "registry")
    ours, theirs, unpacking = [], [], []
    try:
        for number in range(ROUNDS):
            reference = registry.push(f"bench{number}", number)
            # Neither writes out what the other has left in memory.
            os.sync()
            ours.append(session.do("pull", reference=reference)["seconds"])
            os.sync()
            copied, unpacked = _by_others(reference, work / "others")
            theirs.append(copied + unpacked)
            unpacking.append(unpacked)
    finally:
        registry.stop()
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    copying = median(theirs) - median(unpacking)
    return Row(
        f"pull and unpack of {IMAGE_BYTES >> 20} MiB",
        f"{median(ours):.1f} s against {median(theirs):.1f} s by skopeo copy ({copying:.1f}) and umoci unpack",
        median(ratios),
        1.0,
        "times",
        evidence="layers on stable storage at the end of ours; another lowest layer each round, so none is there",
        details={"seconds": ours, "others": theirs},
    )


def _by_others(reference: str, folder: Path) -> tuple[float, float]:
    """Seconds of both tools on the same image."""
    layout, bundle = folder / "layout", folder / "bundle"
    folder.mkdir()
    begin = time.perf_counter()
    copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", f"oci:{layout}:image"]
    subprocess.run(copy, check=True)
    middle = time.perf_counter()
    unpack = ["umoci", "unpack", "--image", f"{layout}:image", str(bundle)]
    subprocess.run(unpack, check=True, stderr=subprocess.DEVNULL)
    end = time.perf_counter()
    shutil.rmtree(folder)
    return middle - begin, end - middle


def _files() -> Iterator[Path]:
    """Programs, libraries and texts of this machine: what images are made of."""
    for top in (Path("/usr/lib"), Path("/usr/share"), Path("/usr/bin")):
        for path in sorted(top.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path


class _Registry:
    """An image's layers as files, served by the distribution protocol."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.manifests: dict[str, bytes] = {}
        self._shared = [self._layer(part) for part in _parts()]
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"127.0.0.1:{self._server.server_port}"

    def push(self, name: str, number: int) -> str:
        """Publishes an image whose lowest layer is its own; gives its reference."""
        entry = tarfile.TarInfo("number")
        text = str(number).encode()
        entry.size = len(text)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.addfile(entry, io.BytesIO(text))
        layers = [self._blob(archive.getvalue()), *self._shared]
        described = {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [diff for _, _, diff in layers]},
        }
        config = json.dumps(described).encode()
        (self.folder / _hex(config)).write_bytes(config)
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": f"sha256:{_hex(config)}", "size": len(config)},
            "layers": [{"mediaType": LAYER, "digest": f"sha256:{hexa}", "size": size} for hexa, size, _ in layers],
        }
        self.manifests[name] = json.dumps(document).encode()
        return f"{self.address}/{name}:1"

    def _layer(self, files: list[Path]) -> tuple[str, int, str]:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for path in files:
                tar.add(path, str(path).lstrip("/"), recursive=False)
        return self._blob(archive.getvalue())

    def _blob(self, plain: bytes) -> tuple[str, int, str]:
        """Keeps a layer; its name, its size, and the digest of what is in it."""
        packed = gzip.compress(plain, compresslevel=6)
        (self.folder / _hex(packed)).write_bytes(packed)
        return _hex(packed), len(packed), f"sha256:{_hex(plain)}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = request.path.strip("/").split("/")
        if parts == ["v2"]:
            return _send(request, "application/json", b"{}")
        if len(parts) == 4 and parts[2] == "manifests" and parts[1] in self.manifests:
            return _send(request, MANIFEST, self.manifests[parts[1]])
        if len(parts) == 4 and parts[2] == "blobs":
            return _send(request, "application/octet-stream", self.folder / parts[3].removeprefix("sha256:"))
        request.send_error(404)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _parts() -> list[list[Path]]:
    """Files of the image's size, by layer."""
    parts: list[list[Path]] = [[]]
    size = total = 0
    for path in _files():
        length = path.stat().st_size
        if size >= IMAGE_BYTES // LAYERS:
            if len(parts) == LAYERS:
                break
            parts.append([])
            size = 0
        parts[-1].append(path)
        size += length
        total += length
    if total < IMAGE_BYTES * 9 // 10:
        raise RuntimeError(f"this machine has only {total >> 20} MiB of files to make an image of")
    return parts


def _send(request: BaseHTTPRequestHandler, kind: str, body: bytes | Path) -> None:
    length = len(body) if isinstance(body, bytes) else body.stat().st_size
    request.send_response(200)
    request.send_header("content-type", kind)
    request.send_header("content-length", str(length))
    if isinstance(body, bytes):
        request.send_header("docker-content-digest", f"sha256:{_hex(body)}")
    request.end_headers()
    if request.command == "HEAD":
        return
    if isinstance(body, bytes):
        request.wfile.write(body)
        return
    with open(body, "rb") as file:
        request.wfile.flush()
        request.connection.sendfile(file)


def _hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
