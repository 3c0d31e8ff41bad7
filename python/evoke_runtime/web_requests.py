"""Requests of the gateway, and what an application answers, as bytes of HTTP/1.1."""

import asyncio
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from evoke_runtime.web_server import Server

# The header by which the gateway says what it alone knows of a request: `KEY METHOD INPUT CALL VERSION CLIENT PORT`,
# a `-` for what there is none of. The word `probe` for the input asks whether anybody serves here.
OWN = b"evoke-request"
# What is between the gateway and this server and no part of the request.
OF_THE_HOP = frozenset({OWN, b"transfer-encoding", b"connection", b"upgrade"})
OF_THE_ANSWERS_HOP = frozenset({b"transfer-encoding", b"connection", b"keep-alive", b"upgrade"})
# Bytes of a body that wait for the application, and of an answer that wait for the gateway.
READ_BYTES_HIGH = 256 << 10
WRITE_BYTES_HIGH = 256 << 10
HEAD_BYTES_MAX = 1 << 20

# Said of an application that did not answer.
RETURNED = "The application returned without an answer"

HTTP: dict[str, str] = {"version": "3.0", "spec_version": "2.3"}
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}


class Connection(asyncio.Protocol):
    """A connection of the gateway, with one request at a time."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.transport: Any = None
        self._rest = b""
        self._request: Request | None = None
        # Who gets the bytes once the connection is no HTTP any more.
        self.upgraded: Any = None
        self._is_paused = False
        self._writers: list[asyncio.Future[None]] = []
        self.is_lost = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_BYTES_HIGH)
        self.server.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.server.disconnected(self)
        self.resume_writing()
        if self.upgraded is not None:
            self.upgraded.lost()
        elif self._request is not None:
            self._request.lost()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        for writer in self._writers:
            if not writer.done():
                writer.set_result(None)
        self._writers.clear()

    def eof_received(self) -> None:
        """The gateway does not close half a connection: its client is gone."""

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    async def written(self) -> None:
        """Waits while the gateway does not take what is there for it."""
        if self._is_paused and not self.is_lost:
            writer: asyncio.Future[None] = self.server.loop.create_future()
            self._writers.append(writer)
            await writer

    def data_received(self, data: bytes) -> None:
        if self.upgraded is not None:
            self.upgraded.data_received(data)
            return
        request = self._request
        if request is not None and not request.is_whole:
            data = request.take(data)
            if request.is_over and request.is_whole:
                self._request = None
            if not data:
                return
        self._rest = self._rest + data if self._rest else data
        if self._request is None:
            self._next()

    def _next(self) -> None:
        """Begins the request that has arrived, if one has."""
        end = self._rest.find(b"\r\n\r\n")
        if end < 0:
            if len(self._rest) > HEAD_BYTES_MAX:
                self.transport.abort()
            return
        head, rest = self._rest[:end], self._rest[end + 4 :]
        self._rest = b""
        lines = head.split(b"\r\n")
        try:
            method, target, _ = lines[0].split(b" ")
            headers: list[tuple[bytes, bytes]] = []
            own, length, is_chunked, websocket = b"", 0, False, False
            for line in lines[1:]:
                name, _, value = line.partition(b":")
                value = value.strip()
                if name in OF_THE_HOP:
                    if name == OWN:
                        own = value
                    elif name == b"transfer-encoding":
                        is_chunked = True
                    elif name == b"upgrade":
                        websocket = value.lower() == b"websocket"
                    continue
                if name == b"content-length":
                    length = int(value)
                headers.append((name, value))
            key, served, input_id, call_id, version, host, port = own.split(b" ")
        except ValueError:
            self.transport.abort()
            return
        if not self.server.knows(key):
            self.transport.abort()
            return
        if input_id == b"probe":
            self.transport.write(b"HTTP/1.1 204 No Content\r\nevoke-web: here\r\n\r\n")
            self._rest = rest
            return
        lifespan = self.server.lifespans["" if served == b"-" else served.decode()]
        raw_path, _, query = target.partition(b"?")
        path = unquote(raw_path.decode("utf-8", "replace")) if b"%" in raw_path else raw_path.decode("utf-8", "replace")
        scope: dict[str, Any] = {
            "type": "websocket" if websocket else "http",
            "asgi": HTTP.copy(),
            "http_version": version.decode(),
            "scheme": "ws" if websocket else "http",
            "path": path,
            "raw_path": raw_path,
            "root_path": "",
            "query_string": query,
            "headers": headers,
            "state": dict(lifespan.state),
        }
        if host != b"-":
            scope["client"] = (host.decode(), int(port))
        ids = (input_id.decode(), call_id.decode())
        if websocket:
            from evoke_runtime.web_socket import Socket

            self._request = self.upgraded = Socket(self, lifespan.asgi_app, scope, ids)
        else:
            scope["method"] = method.decode()
            scope["extensions"] = {}
            body = Chunks() if is_chunked else Length(length)
            self._request = HttpRequest(self, lifespan.asgi_app, scope, ids, body, method == b"HEAD")
            if rest or not length:
                rest = self._request.take(rest)
        self._rest = rest
        self.server.begin(self._request)

    def ended(self, is_clean: bool) -> None:
        """The request on it is over."""
        request = self._request
        if self.is_lost or request is None:
            return
        request.is_over = True
        if not is_clean:
            self.transport.close()
            return
        self.transport.resume_reading()
        # What is still to come of its body belongs to nobody.
        if request.is_whole:
            self._request = None
            if self._rest:
                self._next()


class Length:
    """A body whose length is known."""

    def __init__(self, length: int) -> None:
        self._left = length

    def take(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """What of the data is the body's, what comes after it, and whether the body is whole."""
        mine = data[: self._left]
        self._left -= len(mine)
        return mine, data[len(mine) :], self._left == 0


class Chunks:
    """A body in chunks."""

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        # Of what ends a chunk, or of the trailers, something is still to come.
        self._ends = False
        self._last = False

    def take(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """As with a length."""
        data = self._rest + data if self._rest else data
        self._rest, pieces, place = b"", [], 0
        while True:
            if self._left:
                piece = data[place : place + self._left]
                self._left -= len(piece)
                place += len(piece)
                pieces.append(piece)
                if self._left:
                    return b"".join(pieces), b"", False
                self._ends = True
            end = data.find(b"\r\n", place)
            if end < 0:
                self._rest = data[place:]
                return b"".join(pieces), b"", False
            line, place = data[place:end], end + 2
            if self._ends:
                self._ends = False
            elif self._last:
                if not line:
                    return b"".join(pieces), data[place:], True
            else:
                self._left = int(line.partition(b";")[0], 16)
                self._last = self._left == 0


class Request:
    """A request and the task that serves it."""

    def __init__(self, connection: Connection, app: Any, scope: dict[str, Any], ids: tuple[str, str]) -> None:
        self.connection = connection
        self._app = app
        self._scope = scope
        self.input_id, self.call_id = ids
        self.task: asyncio.Task[None] | None = None
        self.is_whole = True
        self.is_gone = self.is_over = False
        self._is_cancelled = False
        self._waiter: asyncio.Future[None] | None = None

    def start(self) -> None:
        self.task = self.connection.server.loop.create_task(self._run())

    def cancel(self) -> None:
        """A user cancels the input. Called by the client's thread."""
        self.connection.server.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if not self._is_cancelled and self.task is not None:
            self._is_cancelled = True
            self.task.cancel()

    def take(self, data: bytes) -> bytes:
        """Takes what belongs to it; gives what does not."""
        raise NotImplementedError

    async def receive(self) -> dict[str, Any]:
        """The next message to the application."""
        raise NotImplementedError

    async def send(self, message: dict[str, Any]) -> None:
        """A message of the application."""
        raise NotImplementedError

    def close(self, status: int, why: str) -> None:
        """The application is done with it, and this is to be said if it has not answered."""
        raise NotImplementedError

    async def _run(self) -> None:
        from modal._runtime.execution_context import _set_current_context_ids
        from modal._traceback import print_exception

        _set_current_context_ids([self.input_id], [self.call_id], [""])
        try:
            await self._app(self._scope, self.receive, self.send)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except asyncio.CancelledError:
            # By the user, or because the container ends.
            self.close(502, "The request was cancelled before it was answered")
        except BaseException:
            if not self.is_gone or not isinstance(sys.exc_info()[1], OSError):
                print_exception(*sys.exc_info())
            self.close(500, "The application failed before it answered")
        else:
            self.close(500, RETURNED)
        finally:
            self.connection.server.ended(self)

    async def _wait(self) -> None:
        self._waiter = self.connection.server.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lost(self) -> None:
        """The client is gone."""
        self.is_gone = True
        self._wake()

    def _say(self, status: int, why: str) -> bytes:
        said = f"{why} ({self.call_id}).\n".encode()
        kind = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n\r\n" % len(said)
        return _STATUS_LINES[status] + kind + said


class HttpRequest(Request):
    """A request and its answer."""

    def __init__(
        self,
        connection: Connection,
        app: Any,
        scope: dict[str, Any],
        ids: tuple[str, str],
        framing: Length | Chunks,
        is_head: bool,
    ) -> None:
        super().__init__(connection, app, scope, ids)
        self.is_whole = False
        self._framing = framing
        self._body = bytearray()
        self._given = False
        self._reads = True
        self._has_no_body = is_head
        self._started = self._done = False
        self._head = b""
        self._is_chunked = False
        self._left = 0

    def take(self, data: bytes) -> bytes:
        try:
            mine, rest, self.is_whole = self._framing.take(data)
        except ValueError:
            self.connection.transport.abort()
            return b""
        if not self._done:
            self._body += mine
            if len(self._body) > READ_BYTES_HIGH and self._reads:
                self._reads = False
                self.connection.transport.pause_reading()
            self._wake()
        return rest

    async def receive(self) -> dict[str, Any]:
        while True:
            if self.is_gone or self._done:
                return {"type": "http.disconnect"}
            if self._body or (self.is_whole and not self._given):
                body = bytes(self._body)
                self._body.clear()
                if not self._reads:
                    self._reads = True
                    self.connection.transport.resume_reading()
                self._given = self.is_whole
                return {"type": "http.request", "body": body, "more_body": not self.is_whole}
            await self._wait()

    async def send(self, message: dict[str, Any]) -> None:
        if self.is_gone or self._done:
            return
        kind = message["type"]
        if kind == "http.response.body" and self._started:
            await self._send_body(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start" and not self._started:
            self._start(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"Unexpected ASGI message {kind!r}")

    def _start(self, status: int, headers: Any) -> None:
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status]
        length = None
        for name, value in headers:
            name = name.lower()
            if name in OF_THE_ANSWERS_HOP:
                continue
            if name == b"content-length":
                length = int(value)
            lines += (name, b": ", value, b"\r\n")
        # Whatever is in a header, it is one header.
        count = 1 + len(lines) // 4
        if status < 200 or status in (204, 304):
            self._has_no_body = True
        if length is not None:
            self._left = length
        elif not self._has_no_body:
            self._is_chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
            count += 1
        head = b"".join(lines)
        if head.count(b"\n") != count or head.count(b"\r") != count or status < 200 or status > 999:
            raise RuntimeError("The application's answer begins with what is no status or no header")
        self._head = head + b"\r\n"
        self._started = True
        # It goes together with the first piece of the body, where that comes at once.
        self.connection.server.loop.call_soon(self._flush)

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self.is_gone:
            self.connection.transport.write(head)

    async def _send_body(self, body: Any, more: bool) -> None:
        head, self._head = self._head, b""
        size = len(body)
        if self._has_no_body:
            data = head
        elif self._is_chunked:
            pieces = [head, b"%x\r\n" % size, body, b"\r\n"] if size else [head]
            if not more:
                pieces.append(b"0\r\n\r\n")
            data = b"".join(pieces)
        else:
            if size > self._left:
                raise RuntimeError("Response content longer than Content-Length")
            self._left -= size
            if not more and self._left:
                raise RuntimeError("Response content shorter than Content-Length")
            data = head + body if head else body
        if data:
            self.connection.transport.write(data)
        if more:
            await self.connection.written()
        else:
            self._done = True
            self._wake()

    def close(self, status: int, why: str) -> None:
        if not self.is_gone and not self._done:
            if self._started:
                self._flush()
            else:
                self.connection.transport.write(self._say(status, why))
                self._done = True
        self.connection.ended(self._done)
