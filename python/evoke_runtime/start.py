"""A shorter start: stubs of RPCs are made when they are used, and the greeting is not waited for."""

import asyncio
import concurrent.futures
from typing import Any

from evoke_runtime.lean import Unfit


def stubs_on_first_use() -> None:
    """Has clients make the stub of an RPC when it is first called, instead of all of them at once."""
    import grpclib.client
    from modal import _grpc_client
    from modal_proto import api_pb2, modal_api_grpc

    official = modal_api_grpc.ModalClientModal
    service = api_pb2.DESCRIPTOR.services_by_name["ModalClient"]
    methods = service.methods_by_name
    first = methods["ContainerHello"]
    if first.input_type._concrete_class is None or first.server_streaming or first.client_streaming:
        raise Unfit("descriptors do not say what a stub needs")

    class StubsOnFirstUse(official):  # type: ignore[misc, valid-type]
        def __init__(self, channel: Any, client: Any, server_url: str) -> None:
            self._made_with = (channel, client, server_url)

        def __getattr__(self, name: str) -> Any:
            # Only called for what is not there yet.
            try:
                method = methods[name]
            except KeyError:
                raise AttributeError(name) from None
            channel, client, server_url = self._made_with
            if method.client_streaming:
                # No such RPC has a wrapper in this release; the official stubs know what becomes of one.
                return getattr(official(official_stubs(channel), client, server_url), name)
            kind, wrapper = (
                (grpclib.client.UnaryStreamMethod, _grpc_client.UnaryStreamWrapper)
                if method.server_streaming
                else (grpclib.client.UnaryUnaryMethod, _grpc_client.UnaryUnaryWrapper)
            )
            request, reply = method.input_type._concrete_class, method.output_type._concrete_class
            stub = wrapper(kind(channel, f"/{service.full_name}/{name}", request, reply), client, server_url)
            setattr(self, name, stub)
            return stub

    def official_stubs(channel: Any) -> Any:
        from modal_proto.api_grpc import ModalClientStub

        return ModalClientStub(channel)

    async def create(cls: type, client: Any, server_url: str) -> StubsOnFirstUse:
        return StubsOnFirstUse(await client._get_channel(server_url), client, server_url)

    if not isinstance(vars(official).get("_create"), classmethod):
        raise Unfit("stubs are made differently")
    official._create = classmethod(create)


def say_hello_beside() -> None:
    """Sends the container's greeting without waiting for its answer, which says nothing."""
    from modal._runtime import container_io_manager
    from modal._utils.async_utils import synchronizer

    manager = container_io_manager.ContainerIOManager
    if not callable(getattr(manager, "hello", None)) or not hasattr(synchronizer, "_translate_in"):
        raise Unfit("the greeting is said differently")

    def hello(self: Any) -> None:
        loop = synchronizer._get_loop(start=True)
        asyncio.run_coroutine_threadsafe(synchronizer._translate_in(self).hello(), loop).add_done_callback(_said)

    manager.hello = hello


def _said(greeting: "concurrent.futures.Future[None]") -> None:
    from modal.config import logger

    if greeting.cancelled():
        return
    error = greeting.exception()
    if error is not None:
        # Whatever keeps it from being said keeps the container from asking for inputs too, which fails loudly.
        logger.debug(f"evoke: the greeting failed: {error!r}")
