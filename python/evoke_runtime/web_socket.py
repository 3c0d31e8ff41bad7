"""WebSockets of the gateway's clients (RFC 6455), as messages of an application."""

import base64
import hashlib
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

from evoke_runtime.web_requests import RETURNED, Request

if TYPE_CHECKING:
    from evoke_runtime.web_requests import Connection

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# Largest message of a client, in bytes, as the gateway has it.
MESSAGE_BYTES_MAX = 2 << 20
# Bytes that wait for the application.
READ_BYTES_HIGH = 256 << 10
CONTROL_BYTES_MAX = 125
# How long a client may take to answer that it is closed.
CLOSE_S_MAX = 5.0
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
# Codes of closings: a normal one, those that no frame carries, and what is wrong with what a client sent.
NORMAL, NO_CODE, ABNORMAL = 1000, 1005, 1006
PROTOCOL_ERROR, NO_TEXT, TOO_LARGE, FAILED = 1002, 1007, 1009, 1011


class _Broken(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def frame(kind: int, data: bytes) -> bytes:
    """A whole message of a server."""
    size = len(data)
    if size < 126:
        return bytes((0x80 | kind, size)) + data
    if size < 1 << 16:
        return struct.pack(">BBH", 0x80 | kind, 126, size) + data
    return struct.pack(">BBQ", 0x80 | kind, 127, size) + data


def unmasked(data: bytes, mask: bytes) -> bytes:
    """What a client masked."""
    size = len(data)
    keys = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(keys, "little")).to_bytes(size, "little")


class Socket(Request):
    """A WebSocket, from its opening to its end."""

    def __init__(self, connection: "Connection", app: Any, scope: dict[str, Any], ids: tuple[str, str]) -> None:
        super().__init__(connection, app, scope, ids)
        headers = scope["headers"]
        offered = b",".join(value for name, value in headers if name == b"sec-websocket-protocol").decode("latin-1")
        scope["subprotocols"] = [word.strip() for word in offered.split(",") if word.strip()]
        self._key = next((value for name, value in headers if name == b"sec-websocket-key"), b"")
        # Messages with the bytes that they came in.
        self._arrived: deque[tuple[dict[str, Any], int]] = deque([({"type": "websocket.connect"}, 0)])
        self._waiting_bytes = 0
        self._reads = True
        self._rest = b""
        self._kind = CONTINUATION
        self._pieces: list[bytes] = []
        self._accepted = self._refused = False
        # The closing was sent; nothing follows it.
        self._closed = False
        # The client's closing has come, or what it sends makes no sense any more.
        self._heard = self._is_broken = False
        # The application has been or will be told of the end.
        self._told = False

    def take(self, data: bytes) -> bytes:
        return data

    async def receive(self) -> dict[str, Any]:
        while not self._arrived:
            await self._wait()
        message, size = self._arrived.popleft()
        self._waiting_bytes -= size
        if not self._reads and self._waiting_bytes < READ_BYTES_HIGH:
            self._reads = True
            self.connection.transport.resume_reading()
        return message

    async def send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "websocket.accept" and not self._accepted and not self._refused:
            self._accept(message)
        elif kind == "websocket.close" and not self._accepted and not self._refused:
            self._refuse(403, "The application refused the WebSocket")
        elif kind in ("websocket.send", "websocket.close") and (self._closed or self.is_gone):
            # It has not read yet that its client left.
            return
        elif kind == "websocket.send" and self._accepted:
            text = message.get("text")
            data = frame(BINARY, message["bytes"]) if text is None else frame(TEXT, text.encode())
            self.connection.transport.write(data)
            await self.connection.written()
        elif kind == "websocket.close" and self._accepted:
            self._close(message.get("code") or NORMAL, message.get("reason") or "")
        else:
            raise RuntimeError(f"Unexpected ASGI message {kind!r}")

    def _accept(self, message: dict[str, Any]) -> None:
        if self.is_gone:
            return
        proof = base64.b64encode(hashlib.sha1(self._key + GUID).digest())
        lines = [b"HTTP/1.1 101 Switching Protocols", b"connection: upgrade", b"upgrade: websocket"]
        lines.append(b"sec-websocket-accept: " + proof)
        protocol = message.get("subprotocol")
        if protocol is not None:
            lines.append(b"sec-websocket-protocol: " + protocol.encode())
        ours = (b"content-length", b"sec-websocket-extensions", b"connection", b"upgrade", b"sec-websocket-accept")
        for name, value in message.get("headers") or ():
            if name.lower() not in ours:
                lines.append(name.lower() + b": " + value)
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        if head.count(b"\n") != len(lines) + 1 or head.count(b"\r") != len(lines) + 1:
            raise RuntimeError("The application accepted the WebSocket with what is no header")
        self._accepted = True
        self.connection.transport.write(head)

    def _refuse(self, status: int, why: str) -> None:
        self._refused = True
        if not self.is_gone:
            self.connection.transport.write(self._say(status, why))
            self.connection.transport.close()
        self._tell(ABNORMAL)

    def _close(self, code: int, reason: str = "") -> None:
        if not self._closed and not self.is_gone:
            self._closed = True
            data = b"" if code == NO_CODE else struct.pack(">H", code) + reason.encode()[: CONTROL_BYTES_MAX - 2]
            self.connection.transport.write(frame(CLOSE, data))

    def _tell(self, code: int, reason: str = "") -> None:
        if not self._told:
            self._told = True
            self._arrived.append(({"type": "websocket.disconnect", "code": code, "reason": reason}, 0))
            self._wake()

    def close(self, status: int, why: str) -> None:
        if self._accepted:
            self._close(NORMAL if why is RETURNED else FAILED)
            self._told = True
            if self._heard:
                self.connection.transport.close()
            elif not self.is_gone:
                # What is on its way is read first: a connection closed before that takes along what was sent.
                self.connection.transport.resume_reading()
                self.connection.server.loop.call_later(CLOSE_S_MAX, self.connection.transport.close)
        elif not self._refused:
            self._refuse(status, why)
        self.connection.ended(True)

    def lost(self) -> None:
        self.is_gone = True
        self._tell(ABNORMAL)
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._is_broken:
            return
        data = self._rest + data if self._rest else data
        try:
            used = self._take_frames(data)
            self._rest = data[used:]
        except _Broken as broken:
            self._rest, self._is_broken = b"", True
            self._close(broken.code)
            self._tell(broken.code)
        if self._waiting_bytes > READ_BYTES_HIGH and self._reads:
            self._reads = False
            self.connection.transport.pause_reading()

    def _take_frames(self, data: bytes) -> int:
        """Takes every whole frame; gives how many bytes those are."""
        place, size = 0, len(data)
        while size - place >= 2:
            first, second = data[place], data[place + 1]
            length, at = second & 0x7F, place + 2
            if length == 126:
                at += 2
                length = int.from_bytes(data[at - 2 : at], "big") if size >= at else 0
            elif length == 127:
                at += 8
                length = int.from_bytes(data[at - 8 : at], "big") if size >= at else 0
            kind = first & 0x0F
            if first & 0x70 or not second & 0x80 or kind not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
                raise _Broken(PROTOCOL_ERROR)
            if kind >= CLOSE and (length > CONTROL_BYTES_MAX or not first & 0x80):
                raise _Broken(PROTOCOL_ERROR)
            if length + sum(map(len, self._pieces)) > MESSAGE_BYTES_MAX:
                raise _Broken(TOO_LARGE)
            if size < at + 4 + length:
                break
            body = unmasked(data[at + 4 : at + 4 + length], data[at : at + 4])
            place = at + 4 + length
            if not self._told or kind == CLOSE:
                self._take(kind, bool(first & 0x80), body)
        return place

    def _take(self, kind: int, is_last: bool, body: bytes) -> None:
        if kind == PING:
            if not self._closed:
                self.connection.transport.write(frame(PONG, body))
        elif kind == CLOSE:
            code = int.from_bytes(body[:2], "big") if len(body) >= 2 else NO_CODE
            try:
                reason = body[2:].decode()
            except UnicodeDecodeError:
                raise _Broken(NO_TEXT) from None
            self._close(code)
            self._tell(code, reason)
            self._heard = True
            if self.is_over:
                self.connection.transport.close()
        elif kind != PONG:
            if (kind == CONTINUATION) != bool(self._pieces or self._kind):
                raise _Broken(PROTOCOL_ERROR)
            self._kind = kind or self._kind
            self._pieces.append(body)
            if is_last:
                self._whole()

    def _whole(self) -> None:
        data, kind = b"".join(self._pieces), self._kind
        self._pieces, self._kind = [], CONTINUATION
        message: dict[str, Any] = {"type": "websocket.receive"}
        if kind == BINARY:
            message["bytes"] = data
        else:
            try:
                message["text"] = data.decode()
            except UnicodeDecodeError:
                raise _Broken(NO_TEXT) from None
        self._waiting_bytes += len(data)
        self._arrived.append((message, len(data)))
        self._wake()
