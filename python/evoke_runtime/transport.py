"""The channel to the container's own platform over frames, in place of HTTP/2.

Only the channel is replaced: stubs, retries, errors, what happens at snapshots and after a fork stay the client's.
A channel to any other address is the official one, and so is this one if the platform does not answer in frames.
"""

import asyncio
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from evoke_runtime.connection import Connection, Refused
from evoke_runtime.lean import Unfit
from evoke_runtime.stream import Stream

# How long the platform may take to answer in frames the first time, before the official way is taken.
FIRST_S_MAX = 5.0
# The same once it has answered before: it is being started again, and the official client would wait as well.
AGAIN_S_MAX = 60.0
# The parameters of the function that is replaced.
SIGNATURE = ["server_url", "metadata", "metadata_provider"]

# Where frames were answered last, and the headers of all requests there.
_answering: tuple[str, dict[str, str]] | None = None


def answering() -> tuple[str, dict[str, str]] | None:
    """Socket and headers of a platform that answers in frames, once one has."""
    return _answering


def replace_channel(own_url: str, socket_path: str) -> None:
    """Has channels to `own_url` speak frames over the socket at `socket_path`."""
    import grpclib.client
    from modal._utils import grpc_utils

    official = grpc_utils.create_channel
    if list(inspect.signature(official).parameters) != SIGNATURE:
        raise Unfit("channels are made from other things")
    if list(inspect.signature(grpc_utils._issue_server_warnings).parameters) != ["metadata"]:
        raise Unfit("warnings are shown differently")
    decode, user_agent = grpc_utils.custom_detail_codec.decode, grpclib.client.USER_AGENT
    if not callable(decode) or not own_url or not socket_path:
        raise Unfit("this container's platform is not known")
    host = own_url.partition("://")[2].partition(":")[0]

    def create_channel(server_url: str, metadata: Mapping[str, str] = {}, metadata_provider: Any = None) -> Any:
        if server_url != own_url or metadata_provider is not None:
            return official(server_url, metadata, metadata_provider)
        headers = {**metadata, "x-modal-host": host, "user-agent": user_agent}
        return Channel(socket_path, headers, lambda: official(server_url, metadata, None))

    grpc_utils.create_channel = create_channel


class Channel:
    """As much of a channel as stubs and the client use."""

    def __init__(self, path: str, headers: dict[str, str], official: Callable[[], Any]) -> None:
        self._path = path
        self._headers = headers
        self._make_official = official
        # Set once frames are refused: from then on this channel is that one.
        self._official: Any = None
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._answered = False
        self._pid = os.getpid()

    async def __connect__(self) -> Any:
        """Connects, and decides between frames and the official way if this is the first time."""
        if self._official is None:
            try:
                return await self.connected()
            except Refused:
                self._take_official_way()
        return await self._official.__connect__()

    def request(
        self,
        name: str,
        cardinality: Any,
        request_type: type,
        reply_type: type,
        *,
        timeout: float | None = None,
        deadline: Any = None,
        metadata: Any = None,
    ) -> Any:
        """A call that has not begun."""
        if self._official is not None:
            return self._official.request(
                name, cardinality, request_type, reply_type, timeout=timeout, deadline=deadline, metadata=metadata
            )
        if deadline is not None:
            left = deadline.time_remaining()
            timeout = left if timeout is None else min(timeout, left)
        return Stream(self, name, cardinality, request_type, reply_type, timeout, metadata)

    def close(self) -> None:
        """Ends the connection and what goes on over it; the next call makes another."""
        connecting, self._connecting = self._connecting, None
        connection, self._connection = self._connection, None
        if self._official is not None:
            self._official.close()
        if self._pid != os.getpid():
            return
        if connecting is not None:
            connecting.cancel()
        if connection is not None:
            connection.close()

    release_connection = close

    async def connected(self) -> Connection:
        """The connection, a new one if there is none. Callers at the same time share the attempt."""
        if self._pid != os.getpid():
            # The connection that was inherited is the parent's: it is neither used nor ended here.
            self._connection, self._connecting, self._pid = None, None, os.getpid()
        if self._connection is not None and self._connection.usable:
            return self._connection
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
        return await asyncio.shield(self._connecting)

    def refused(self) -> None:
        """The platform, started again, does not speak these frames any more."""
        if self._official is None:
            self._take_official_way()

    def _take_official_way(self) -> None:
        from modal.config import logger

        logger.debug("evoke: the platform does not answer in frames")
        self._official = self._make_official()

    async def _connect(self) -> Connection:
        seconds = AGAIN_S_MAX if self._answered else FIRST_S_MAX
        try:
            self._connection = await asyncio.wait_for(Connection.open(self._path, self._headers), seconds)
        except (OSError, asyncio.TimeoutError) as error:
            if self._answered:
                raise ConnectionError(f"The platform cannot be reached: {error!r}") from error
            raise Refused(repr(error)) from error
        self._answered = True
        global _answering
        _answering = (self._path, self._headers)
        return self._connection
