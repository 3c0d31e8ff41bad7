"""A second connection of frames, for the thread that runs the user's code: one call at a time, by blocking I/O."""

import os
import socket
import struct
from typing import Any

from grpclib.exceptions import StreamTerminatedError

from evoke_runtime.frames import (
    BODY_BYTES_MAX,
    CALL_MAX,
    END,
    FAULT,
    GRANT,
    HEAD,
    HELLO,
    LENGTH,
    MESSAGE,
    MESSAGE_FREE,
    PART,
    PART_BYTES,
    PREFACE,
    REPLY,
    REQUEST,
    Malformed,
    frame,
    headers,
    message,
    pairs_of,
)
from evoke_runtime.stream import failure_of, read_end

# How long the platform may take to greet: it may be being started again.
GREETING_S_MAX = 60.0
READ_BYTES = 256 << 10


class Line:
    """A connection, made when it is needed, and made again after it broke."""

    def __init__(self, path: str, static: dict[str, str]) -> None:
        self._path = path
        self._static = static
        self._socket: socket.socket | None = None
        self._rest = b""
        self._last = 0
        self._pid = os.getpid()
        self._is_refused = False

    @property
    def usable(self) -> bool:
        """Whether a call can be tried: not in a child of this process, nor where frames were refused."""
        return not self._is_refused and self._pid == os.getpid()

    def call(self, name: str, data: bytes, metadata: Any) -> bytes:
        """The one message of the answer. Whatever interrupts it ends the connection, on which the rest of an
        answer may still come."""
        try:
            return self._call(name, data, metadata)
        except Refusal as refusal:
            raise refusal.failure from None
        except (Malformed, struct.error) as error:
            self.close()
            raise StreamTerminatedError(f"Connection lost: {error}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        connection, self._socket = self._socket, None
        self._rest = b""
        if connection is not None and self._pid == os.getpid():
            connection.close()

    def _call(self, name: str, data: bytes, metadata: Any) -> bytes:
        connection = self._socket or self._connect()
        self._last += 1
        number = self._last
        path = name.encode()
        begin = frame(REQUEST, number, len(path).to_bytes(2, "little") + path + headers(pairs_of(metadata)))
        if len(data) <= MESSAGE_FREE:
            connection.sendall(begin + message(number, data))
        else:
            connection.sendall(begin + frame(MESSAGE, number, LENGTH.pack(len(data))))
            kind, body = self._next(connection, number)
            if kind == END:
                raise Refusal(self._failed(body))
            if kind != GRANT:
                raise Malformed(f"an unexpected frame of kind {kind}")
            view = memoryview(data)
            for start in range(0, len(data), PART_BYTES):
                connection.sendall(frame(PART, number, bytes(view[start : start + PART_BYTES])))
        if number >= CALL_MAX - 1:
            answer = self._answer(connection, number)
            self.close()
            return answer
        return self._answer(connection, number)

    def _answer(self, connection: socket.socket, number: int) -> bytes:
        gathered: bytearray | None = None
        while True:
            kind, body = self._next(connection, number)
            if kind == REPLY:
                return body
            if kind == MESSAGE:
                gathered = bytearray(memoryview(body)[LENGTH.size :])
            elif kind == PART and gathered is not None:
                gathered += body
            elif kind == END:
                if body[0] == 0 and gathered is not None:
                    read_end(body)
                    return bytes(gathered)
                raise Refusal(self._failed(body))
            else:
                raise Malformed(f"an unexpected frame of kind {kind}")

    @staticmethod
    def _failed(body: bytes) -> Exception:
        return failure_of(*read_end(body))

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        self._socket, self._rest, self._last = connection, b"", 0
        connection.settimeout(GREETING_S_MAX)
        connection.connect(self._path)
        connection.sendall(PREFACE + frame(HELLO, 0, headers(self._static.items())))
        while len(self._rest) < len(PREFACE):
            self._read(connection)
        if not self._rest.startswith(PREFACE):
            # The official way is taken from now on.
            self._is_refused = True
            raise Malformed("the other end answered in another version or protocol")
        self._rest = self._rest[len(PREFACE) :]
        kind, _ = self._next(connection, 0)
        if kind != HELLO:
            raise Malformed(f"a greeting of kind {kind}")
        connection.settimeout(None)
        return connection

    def _next(self, connection: socket.socket, number: int) -> tuple[int, bytes]:
        """The next frame of this call."""
        while True:
            if len(self._rest) >= HEAD.size:
                length, kind, call = HEAD.unpack_from(self._rest)
                end = HEAD.size + length
                if length > BODY_BYTES_MAX:
                    raise Malformed(f"a frame of {length} bytes")
                if len(self._rest) >= end:
                    body, self._rest = self._rest[HEAD.size : end], self._rest[end:]
                    if kind == FAULT:
                        raise Malformed(body.decode(errors="replace"))
                    if call == number:
                        return kind, body
                    continue
            self._read(connection)

    def _read(self, connection: socket.socket) -> None:
        data = connection.recv(READ_BYTES)
        if not data:
            raise StreamTerminatedError("Connection lost")
        self._rest = self._rest + data if self._rest else data


class Refusal(Exception):
    """The call was answered by a failure; the connection is as good as before."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(failure)
        self.failure = failure
