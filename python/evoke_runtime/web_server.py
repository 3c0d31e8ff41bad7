"""The server of a container's web functions: who may ask, how many at a time, and how it ends.

Its one client is the platform's gateway, so it speaks as much of HTTP/1.1 as that does: every request is well formed,
comes alone, and is told apart from anybody else's by a key.
"""

import asyncio
import hmac
from collections import deque
from typing import Any

from evoke_runtime.web_requests import Connection, Request

# How long requests may take to notice that they are cancelled, when the container is told to end at once.
CANCEL_S_MAX = 1.0
# Connections that wait to be accepted.
BACKLOG = 1024


class Server:
    """Serves the applications of one container, in the event loop of user code."""

    def __init__(self, manager: Any, lifespans: dict[str, Any], key: bytes) -> None:
        self.loop = asyncio.get_running_loop()
        self.lifespans = lifespans
        # Inputs by their ids, where cancellations look for them.
        self.inputs: dict[str, Any] = manager.current_inputs
        self._key = key
        self._slots: int = manager.max_concurrency
        self._running: set[Request] = set()
        # Code runs on after its client left; what comes meanwhile waits for the slot.
        self._waiting: deque[Request] = deque()
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._idle: asyncio.Future[None] | None = None

    @classmethod
    async def start(cls, manager: Any, lifespans: dict[str, Any], port: int, key: bytes) -> "Server":
        """Listens, before the container asks for its first input. Where the port is taken nobody connects, and
        requests come as inputs."""
        server = cls(manager, lifespans, key)
        try:
            server._server = await server.loop.create_server(
                lambda: Connection(server), "0.0.0.0", port, backlog=BACKLOG
            )
        except OSError as error:
            from modal.config import logger

            logger.debug(f"evoke: requests come as inputs: {error!r}")
        return server

    def knows(self, key: bytes) -> bool:
        """Whether this is the gateway's."""
        return hmac.compare_digest(key, self._key)

    def connected(self, connection: Connection) -> None:
        self._connections.add(connection)

    def disconnected(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def begin(self, request: Request) -> None:
        """Runs a request once there is a slot."""
        if len(self._running) >= self._slots:
            self._waiting.append(request)
            return
        self._running.add(request)
        self.inputs[request.input_id] = request
        request.start()

    def ended(self, request: Request) -> None:
        """A request's code has returned."""
        self._running.discard(request)
        self.inputs.pop(request.input_id, None)
        while self._waiting and len(self._running) < self._slots:
            following = self._waiting.popleft()
            if not following.is_gone:
                self.begin(following)
        if not self._running and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def finish(self) -> None:
        """Takes nothing more and waits for what runs; the platform bounds how long."""
        if self._server is not None:
            self._server.close()
        if self._running:
            self._idle = self.loop.create_future()
            await self._idle

    async def stop(self) -> None:
        """Ends everything."""
        if self._server is not None:
            self._server.close()
        tasks = [request.task for request in self._running if request.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_S_MAX)
        for connection in list(self._connections):
            connection.close()
