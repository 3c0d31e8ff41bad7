"""One call over frames, as stubs use it: what grpclib calls a stream."""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.metadata import encode_timeout

from evoke_runtime.connection import Connection, Refused
from evoke_runtime.frames import (
    END,
    GRANT,
    LENGTH,
    MESSAGE,
    MESSAGE_FREE,
    PART,
    PART_BYTES,
    REQUEST,
    Malformed,
    end_of_call,
    frame,
    headers,
    message,
    pairs_of,
)

if TYPE_CHECKING:
    from evoke_runtime.transport import Channel

_paths: dict[str, bytes] = {}


class Stream:
    """A call: begun by its first message, ended by the platform or by leaving the context."""

    __slots__ = (
        "_channel",
        "_client_streams",
        "_connection",
        "_expected",
        "_failure",
        "_gathered",
        "_granted",
        "_has_begun",
        "_is_over",
        "_message_sent",
        "_messages",
        "_metadata",
        "_must_wait",
        "_name",
        "_number",
        "_reply_type",
        "_request_type",
        "_requests_ended",
        "_server_streams",
        "_timeout",
        "_timer",
        "_waiter",
        "initial_metadata",
        "trailing_metadata",
    )

    def __init__(
        self,
        channel: "Channel",
        name: str,
        cardinality: Cardinality,
        request_type: type,
        reply_type: type,
        timeout: float | None,
        metadata: Any,
    ) -> None:
        self._channel = channel
        self._name = name
        self._client_streams = cardinality.client_streaming
        self._server_streams = cardinality.server_streaming
        self._request_type: Any = request_type
        self._reply_type: Any = reply_type
        self._timeout = timeout
        self._metadata = metadata
        self._connection: Connection | None = None
        self._number = 0
        self._has_begun = False
        self._message_sent = False
        self._requests_ended = False
        # Whether the platform has said how the call ended, and what else ended it.
        self._is_over = False
        self._failure: BaseException | None = None
        self._messages: deque[bytes] = deque()
        # Of a message in parts: its length, and what has come of it.
        self._expected = 0
        self._gathered: bytearray | None = None
        self._granted = False
        self._must_wait = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.initial_metadata: Any = None
        self.trailing_metadata: Any = None

    async def __aenter__(self) -> "Stream":
        if self._timeout is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, self._timeout), self._expire)
        return self

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, traceback: Any) -> None:
        try:
            if exc is None and self._has_begun:
                # The end may say that what came was not all.
                while not self._is_over and self._failure is None:
                    await self._wait()
                if self._failure is not None:
                    raise self._failure
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._connection is not None:
                self._connection.forget(self._number, tell=not self._is_over)

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Any:
        received = await self.recv_message()
        if received is None:
            raise StopAsyncIteration
        return received

    async def send_request(self, *, end: bool = False) -> None:
        """Begins the call without a message."""
        connection, request = await self._begin()
        connection.write(request)
        if end:
            await self.end()

    async def send_message(self, request: Any, *, end: bool = False) -> None:
        """Sends a message, the only one unless the call's requests are a stream."""
        if not isinstance(request, self._request_type):
            raise TypeError(f"Message must be of type {self._request_type!r}, not {type(request)!r}")
        if self._message_sent and not self._client_streams:
            raise ProtocolError("Message was already sent")
        if self._requests_ended:
            raise ProtocolError("Stream is ended")
        self._message_sent = True
        data: bytes = request.SerializeToString()
        connection, begin = (self._connection, b"") if self._has_begun else await self._begin()
        assert connection is not None
        if self._client_streams:
            # Each message is sent once the one before it was taken.
            while self._must_wait and not self._granted and not self._ended:
                await self._wait()
            self._must_wait, self._granted = True, False
        if len(data) <= MESSAGE_FREE:
            connection.write(begin + message(self._number, data))
        else:
            await self._send_large(connection, begin, data)
        if end and self._client_streams:
            await self.end()

    async def end(self) -> None:
        """No more messages follow."""
        if not self._requests_ended and self._client_streams and self._connection is not None and not self._ended:
            self._connection.write(frame(END, self._number))
        self._requests_ended = True

    async def recv_message(self) -> Any:
        """The next message; None once there are no more."""
        while not self._messages:
            if self._failure is not None:
                raise self._failure
            if self._is_over:
                return None
            await self._wait()
        data = self._messages.popleft()
        if self._server_streams and not self._ended and self._connection is not None:
            self._connection.write(frame(GRANT, self._number, LENGTH.pack(len(data))))
        return self._reply_type.FromString(data)

    async def recv_initial_metadata(self) -> None:
        """There is none in frames."""

    async def recv_trailing_metadata(self) -> None:
        """Waits for the end."""
        while not self._ended:
            await self._wait()
        if self._failure is not None:
            raise self._failure

    async def cancel(self) -> None:
        """Takes the call back."""
        if self._connection is not None:
            self._connection.forget(self._number, tell=not self._is_over)
        self._is_over = True

    @property
    def _ended(self) -> bool:
        return self._is_over or self._failure is not None

    async def _begin(self) -> tuple[Connection, bytes]:
        """The connection, and the frame that begins the call there, not yet written."""
        channel = self._channel
        connection = channel._connection
        if connection is None or not connection.usable:
            connection = await self._connected()
        while not connection.has_room:
            await self._wait(connection.when_room())
            if not connection.usable:
                raise StreamTerminatedError("Connection lost")
        while connection.is_paused and connection.usable:
            await self._wait(connection.when_written())
        if self._failure is not None:
            raise self._failure
        if not connection.usable:
            raise StreamTerminatedError("Connection lost")
        path = _paths.get(self._name)
        if path is None:
            encoded = self._name.encode()
            path = _paths[self._name] = len(encoded).to_bytes(2, "little") + encoded
        body = path + headers(pairs_of(self._metadata))
        if self._timer is not None:
            left = max(0.0, self._timer.when() - asyncio.get_running_loop().time())
            body += headers((("grpc-timeout", encode_timeout(left)),))
        self._connection, self._number, self._has_begun = connection, connection.begin(self), True
        return connection, frame(REQUEST, self._number, body)

    async def _connected(self) -> Connection:
        left = None
        if self._timer is not None:
            left = max(0.0, self._timer.when() - asyncio.get_running_loop().time())
        try:
            # The attempt is shared, so that only the waiting ends with this call's time.
            return await asyncio.wait_for(asyncio.shield(self._channel.connected()), left)
        except Refused as refused:
            # The client asks again, and is then served the official way.
            self._channel.refused()
            raise StreamTerminatedError(f"Connection lost: {refused}") from refused

    async def _send_large(self, connection: Connection, begin: bytes, data: bytes) -> None:
        """Announces a message and sends it in parts, between which others get their turn."""
        self._granted = False
        connection.write(begin + frame(MESSAGE, self._number, LENGTH.pack(len(data))))
        while not self._granted and not self._ended:
            await self._wait()
        self._granted = False
        view = memoryview(data)
        for start in range(0, len(data), PART_BYTES):
            if self._ended:
                return
            connection.write(frame(PART, self._number, bytes(view[start : start + PART_BYTES])))
            connection.flush()
            while connection.is_paused and not self._ended:
                await self._wait(connection.when_written())

    async def _wait(self, what: "asyncio.Future[None] | None" = None) -> None:
        """Waits for something of this call to happen, or for something else."""
        self._waiter = what if what is not None else asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _expire(self) -> None:
        self.lost(asyncio.TimeoutError("Deadline exceeded"))

    def lost(self, error: Exception) -> None:
        """The call ends without an answer."""
        if not self._ended:
            self._failure = error
            self._wake()

    def replied(self, data: bytes) -> None:
        """The one message of the answer, and its end."""
        self._messages.append(data)
        self._is_over = True
        self._wake()

    def arrived(self, kind: int, body: bytes) -> None:
        """A frame of this call."""
        if kind == MESSAGE:
            (self._expected,) = LENGTH.unpack_from(body)
            self._gathered = bytearray(memoryview(body)[LENGTH.size :])
        elif kind == PART and self._gathered is not None:
            self._gathered += body
        elif kind == GRANT:
            self._granted = True
        elif kind == END:
            self._end(body)
        else:
            raise Malformed(f"an unexpected frame of kind {kind}")
        gathered = self._gathered
        if gathered is not None and len(gathered) >= self._expected:
            self._gathered = None
            self._messages.append(bytes(gathered))
        self._wake()

    def _end(self, body: bytes) -> None:
        code, text, details = read_end(body)
        if code != 0:
            self._failure = failure_of(code, text, details)
        self._is_over = True


def read_end(body: bytes) -> tuple[int, str, bytes]:
    """Status, message and details of a call that has ended; its warnings are shown."""
    code, text, details, warnings = end_of_call(body)
    if warnings:
        from modal._utils.grpc_utils import SERVER_WARNING_HEADER, _issue_server_warnings

        _issue_server_warnings(_Warnings(SERVER_WARNING_HEADER, warnings))
    return code, text, details


class _Warnings:
    """Warnings as the client finds them among the trailers of an answer."""

    def __init__(self, name: str, texts: list[str]) -> None:
        self._name = name
        self._texts = texts

    def items(self) -> list[tuple[str, str]]:
        from urllib.parse import quote

        return [(self._name, quote(text)) for text in self._texts]


def failure_of(code: int, text: str, details: bytes) -> GRPCError:
    """What the client raises for a status."""
    from modal._utils.grpc_utils import custom_detail_codec

    try:
        status = Status(code)
    except ValueError:
        return GRPCError(Status.UNKNOWN, f"Invalid grpc-status: {code!r}")
    return GRPCError(status, text, custom_detail_codec.decode(status, text, details) if details else None)
