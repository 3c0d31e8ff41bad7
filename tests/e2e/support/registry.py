"""A registry of container images on this machine: the pulling half of the OCI distribution protocol, with the
anonymous tokens that public registries demand."""

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

from support.local_http import LocalHttp

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
TOKEN = "a-token-for-anybody"
TOKEN_OF_MEMBERS = "a-token-for-members"


@dataclass
class Registry(LocalHttp):
    """What it serves, and what was asked of it."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    # Who may pull what lies below `private/`: the Authorization header of a name and password.
    members: set[str] = field(default_factory=set)
    # What is there for everybody, by path: not images.
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    # What is sent instead of what is asked for, by tag or digest.
    instead: dict[str, bytes] = field(default_factory=dict)

    def push(self, name: str, tag: str, layers: list[tuple[str, bytes]], config: dict[str, object]) -> None:
        """Publishes an image of `layers` (media type and bytes each, bottom first) for this machine's architecture."""
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        diffs = [_digest(gzip.decompress(data) if kind.endswith("gzip") else data) for kind, data in layers]
        described = {
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": diffs},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._put(CONFIG, json.dumps(described).encode()),
            "layers": [self._put(kind, data) for kind, data in layers],
        }
        body = json.dumps(manifest).encode()
        mine = {"architecture": architecture, "os": "linux"}
        other = {"architecture": "s390x", "os": "linux"}
        index = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [
                {"mediaType": MANIFEST, "digest": _digest(b"other"), "size": 5, "platform": other},
                {"mediaType": MANIFEST, "digest": _digest(body), "size": len(body), "platform": mine},
            ],
        }
        self.manifests[f"{name}:{_digest(body)}"] = (MANIFEST, body)
        self.manifests[f"{name}:{tag}"] = (INDEX, json.dumps(index).encode())

    def _put(self, kind: str, data: bytes) -> dict[str, object]:
        digest = _digest(data)
        self.blobs[digest] = data
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0]
        self.asked.append(path)
        if path.startswith("/files/"):
            body = self.files.get(unquote(path.removeprefix("/files/")))
            if body is None:
                return _send(request, 404, "text/plain", b"")
            return _send(request, 200, "application/octet-stream", body)
        if path == "/token":
            given = request.headers.get("authorization", "")
            if given and given not in self.members:
                return _send(request, 401, "application/json", b"{}")
            token = TOKEN_OF_MEMBERS if given else TOKEN
            return _send(request, 200, "application/json", json.dumps({"token": token}).encode())
        accepted = [TOKEN_OF_MEMBERS] if path.startswith("/v2/private/") else [TOKEN, TOKEN_OF_MEMBERS]
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in accepted:
            challenge = f'Bearer realm="{self.address}/token",service="local",scope="repository:any:pull"'
            return _send(request, 401, "application/json", b"{}", {"www-authenticate": challenge})
        name, _, reference = path.removeprefix("/v2/").rpartition("/")
        if name.endswith("/manifests"):
            found = self.manifests.get(f"{name.removesuffix('/manifests')}:{reference}")
        else:
            blob = self.blobs.get(reference)
            found = blob and ("application/octet-stream", blob)
        if not found:
            return _send(request, 404, "application/json", b'{"errors": [{"code": "NOT_FOUND"}]}')
        kind, body = found
        body = self.instead.get(reference, body)
        return _send(request, 200, kind, body, {"docker-content-digest": _digest(body)})


def tree_as_layer(folder: Path, wanted: Callable[[str], bool] = lambda path: True) -> tuple[str, bytes]:
    """A folder as an uncompressed layer, with its owners and links; of it only the paths that are wanted."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            if not path.is_symlink() and not (path.is_file() or path.is_dir()):
                continue  # a device
            inside = str(path.relative_to(folder))
            if wanted(inside):
                archive.add(path, inside, recursive=False)
    return LAYER, out.getvalue()


def files_as_layer(files: dict[str, bytes]) -> tuple[str, bytes]:
    """Files as a compressed layer; names that begin with `.wh.` take away what is below."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return f"{LAYER}+gzip", gzip.compress(out.getvalue())


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _send(
    request: BaseHTTPRequestHandler, code: int, kind: str, body: bytes, headers: dict[str, str] | None = None
) -> None:
    request.send_response(code)
    for name, value in {"content-type": kind, "content-length": str(len(body)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
