"""An object store on this machine: as much of the protocol of S3 as a bucket that is mounted needs, for those who
show its key and a signature made with some secret (which is not verified)."""

import hashlib
import urllib.parse
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from xml.sax.saxutils import escape

from support.local_http import LocalHttp

KEY_ID = "AKIDTEST"


@dataclass
class ObjectStore(LocalHttp):
    """Buckets of objects by name."""

    METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")

    buckets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    _uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urllib.parse.urlsplit(request.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        bucket, _, name = urllib.parse.unquote(url.path).lstrip("/").partition("/")
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        if f"Credential={KEY_ID}/" not in request.headers.get("authorization", ""):
            return self._error(request, 403, "InvalidAccessKeyId")
        objects = self.buckets.get(bucket)
        if objects is None:
            return self._error(request, 404, "NoSuchBucket")
        match request.command:
            case "GET" if not name:
                self._reply(request, 200, _listing(objects, query).encode())
            case "GET" | "HEAD":
                self._read(request, objects, name)
            case "PUT":
                self._write(request, objects, name, query, body)
            case "POST":
                self._assemble(request, objects, name, query)
            case _:
                objects.pop(name, None)
                self._reply(request, 204, b"")

    def _read(self, request: BaseHTTPRequestHandler, objects: dict[str, bytes], name: str) -> None:
        if name not in objects:
            return self._error(request, 404, "NoSuchKey")
        data, status, headers = objects[name], 200, {"ETag": _etag(objects[name]), "Accept-Ranges": "bytes"}
        if span := request.headers.get("range"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1 if last else len(data), len(data))
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
            data, status = data[int(first) : end], 206
        self._reply(request, status, data, headers)

    def _write(
        self, request: BaseHTTPRequestHandler, objects: dict[str, bytes], name: str, query: dict[str, str], body: bytes
    ) -> None:
        if "partNumber" in query:
            self._uploads[query["uploadId"]][int(query["partNumber"])] = body
        else:
            objects[name] = body
        self._reply(request, 200, b"", {"ETag": _etag(body)})

    def _assemble(
        self, request: BaseHTTPRequestHandler, objects: dict[str, bytes], name: str, query: dict[str, str]
    ) -> None:
        if "uploads" in query:
            upload = f"upload-{len(self._uploads)}"
            self._uploads[upload] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            return self._reply(request, 200, text.encode())
        parts = self._uploads.pop(query["uploadId"])
        objects[name] = b"".join(parts[number] for number in sorted(parts))
        text = f"<CompleteMultipartUploadResult><ETag>{_etag(objects[name])}</ETag></CompleteMultipartUploadResult>"
        self._reply(request, 200, text.encode())

    def _error(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        self._reply(request, status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _reply(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Last-Modified", formatdate(usegmt=True))
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _listing(objects: dict[str, bytes], query: dict[str, str]) -> str:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    contents, folders = [], set()
    for name in sorted(name for name in objects if name.startswith(prefix)):
        inner, found, _ = name.removeprefix(prefix).partition(delimiter) if delimiter else (name, "", "")
        if found:
            folders.add(prefix + inner + delimiter)
            continue
        contents.append(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(_etag(objects[name]))}</ETag><Size>{len(objects[name])}</Size></Contents>"
        )
    common = [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders)]
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(contents + common)}</ListBucketResult>"
