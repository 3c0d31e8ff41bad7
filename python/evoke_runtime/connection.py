"""One connection of frames: coalesces what is written, hands what arrives to its call."""

import asyncio
import struct
from typing import Any, Protocol

from grpclib.exceptions import StreamTerminatedError

from evoke_runtime.frames import (
    BODY_BYTES_MAX,
    CALL_MAX,
    CANCEL,
    FAULT,
    HEAD,
    HELLO,
    HELLO_BODY,
    PREFACE,
    REPLY,
    Malformed,
    frame,
    headers,
)

# Bytes that the transport keeps before large messages have to wait, so that what is small is soon on its way.
WRITE_BYTES_HIGH = 64 << 10


class Refused(Exception):
    """The other end does not speak these frames."""


class Call(Protocol):
    """What a connection tells of a call."""

    def replied(self, data: bytes) -> None: ...
    def arrived(self, kind: int, body: bytes) -> None: ...
    def lost(self, error: Exception) -> None: ...


class Connection(asyncio.Protocol):
    """A connection and the calls that go on over it."""

    def __init__(self, static: dict[str, str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._static = static
        self._transport: asyncio.Transport | None = None
        self._rest = bytearray()
        self._out: list[bytes] = []
        self._preface_seen = False
        self._greeted: asyncio.Future[None] = self._loop.create_future()
        self.is_paused = False
        # Who waits for the transport to have written, and for a call to end.
        self._writers: list[asyncio.Future[None]] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._last = 0
        self._calls_max = 1
        self.message_max = 0
        self.calls: dict[int, Call] = {}
        self._is_lost = False

    @classmethod
    async def open(cls, path: str, static: dict[str, str]) -> "Connection":
        """Connects and greets."""
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_unix_connection(lambda: cls(static), path)
        try:
            await connection._greeted
        except BaseException:
            transport.close()
            raise
        return connection

    @property
    def usable(self) -> bool:
        """Whether a call can begin."""
        return not self._is_lost and self._last < CALL_MAX

    @property
    def has_room(self) -> bool:
        return len(self.calls) < self._calls_max

    def begin(self, call: Call) -> int:
        """The number of a new call."""
        self._last += 1
        self.calls[self._last] = call
        return self._last

    def forget(self, number: int, tell: bool) -> None:
        """The call is over; `tell` if the platform does not know that yet."""
        if self.calls.pop(number, None) is not None and tell and not self._is_lost:
            self.write(frame(CANCEL, number))
        _wake_one(self._waiting)

    def when_room(self) -> "asyncio.Future[None]":
        return _wait_in(self._waiting, self._loop)

    def when_written(self) -> "asyncio.Future[None]":
        """While `is_paused`."""
        return _wait_in(self._writers, self._loop)

    def write(self, data: bytes) -> None:
        """What is written in one turn of the loop goes out together."""
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out.append(data)

    def flush(self) -> None:
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def close(self) -> None:
        self.flush()
        if self._transport is not None:
            self._transport.close()
        self._lose(StreamTerminatedError("Connection closed"))

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_BYTES_HIGH)
        transport.write(PREFACE + frame(HELLO, 0, headers(self._static.items())))

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        while self._writers:
            _wake_one(self._writers)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(StreamTerminatedError("Connection lost"))

    def _lose(self, error: Exception) -> None:
        self._is_lost = True
        if not self._greeted.done():
            self._greeted.set_exception(ConnectionResetError("the platform went away before it greeted"))
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.lost(error)
        for waiting in (self._waiting, self._writers):
            while waiting:
                _wake_one(waiting)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            self._rest += data
            data = bytes(self._rest)
            self._rest.clear()
        try:
            used = self._take_all(data)
        except (Malformed, Refused, struct.error) as error:
            self._break_off(error)
            return
        if used < len(data):
            self._rest += memoryview(data)[used:]

    def _take_all(self, data: bytes) -> int:
        """Takes every complete frame; gives how many bytes those are."""
        size, place = len(data), 0
        if not self._preface_seen:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise Refused("the other end answered in another version or protocol")
            if size < len(PREFACE):
                return 0
            place, self._preface_seen = len(PREFACE), True
        while size - place >= HEAD.size:
            length, kind, number = HEAD.unpack_from(data, place)
            if length > BODY_BYTES_MAX:
                raise Malformed(f"a frame of {length} bytes")
            start = place + HEAD.size
            if start + length > size:
                break
            place = start + length
            body = data[start:place]
            if kind == REPLY:
                call = self.calls.pop(number, None)
                if call is not None:
                    call.replied(body)
                    if self._waiting:
                        _wake_one(self._waiting)
            else:
                self._take(kind, number, body)
        return place

    def _take(self, kind: int, number: int, body: bytes) -> None:
        if number:
            call = self.calls.get(number)
            if call is not None:
                call.arrived(kind, body)
        elif kind == HELLO and len(body) >= HELLO_BODY.size:
            self.message_max, self._calls_max = HELLO_BODY.unpack_from(body)
            if not self._greeted.done():
                self._greeted.set_result(None)
        elif kind == FAULT:
            raise Malformed(body.decode(errors="replace"))

    def _break_off(self, error: Exception) -> None:
        if not self._greeted.done():
            self._greeted.set_exception(error if isinstance(error, Refused) else Refused(str(error)))
        if self._transport is not None:
            self._transport.abort()
        self._lose(StreamTerminatedError(f"Connection lost: {error}"))


def _wait_in(line: "list[asyncio.Future[None]]", loop: asyncio.AbstractEventLoop) -> "asyncio.Future[None]":
    waiting: asyncio.Future[None] = loop.create_future()
    line.append(waiting)
    return waiting


def _wake_one(line: "list[asyncio.Future[None]]") -> None:
    while line:
        waiting = line.pop(0)
        if not waiting.done():
            waiting.set_result(None)
            return
