"""Web functions served by the container itself: the gateway connects to it and passes requests on as they are, instead
of turning each message of a request into a call to the platform.

Only the way of the messages is replaced. The application is the object that the official runtime made, in the same
event loop, with the same lifespan, enter and exit hooks; the official loop for inputs runs beside it, takes the kill
switch, and serves whatever the platform gives it all the same.
"""

import inspect
import os
from collections.abc import AsyncIterator
from typing import Any

from evoke_runtime.lean import Unfit

# Where the container listens, and what the gateway shows: `PORT KEY`. The container's programs need none of it.
WEB = "EVOKE_WEB"


def serve_beside_the_inputs() -> None:
    """Has containers of web functions serve requests themselves."""
    given = os.environ.pop(WEB, "")
    if not given:
        # It is not for the web, or the platform cannot reach it.
        return
    port, _, key = given.partition(" ")
    _serve(_capture_applications(), int(port), key.encode())


def _capture_applications() -> dict[Any, Any]:
    """Every application that the official runtime wraps from now on, by what it makes of it: its lifespan, which
    keeps it and its state."""
    from modal._runtime import asgi

    official = asgi.asgi_app_wrapper
    if list(inspect.signature(official).parameters) != ["asgi_app", "container_io_manager"]:
        raise Unfit("applications are wrapped differently")
    if list(inspect.signature(asgi.LifespanManager).parameters) != ["asgi_app", "state"]:
        raise Unfit("lifespans are kept differently")
    captured: dict[Any, Any] = {}

    def wrapper(asgi_app: Any, container_io_manager: Any) -> Any:
        made, lifespan = official(asgi_app, container_io_manager)
        captured[made] = lifespan
        return made, lifespan

    asgi.asgi_app_wrapper = wrapper
    return captured


def _serve(captured: dict[Any, Any], port: int, key: bytes) -> None:
    from modal._runtime import container_io_manager as official
    from modal._utils.async_utils import synchronizer

    implementation, manager = official._ContainerIOManager, official.ContainerIOManager
    found = list(inspect.signature(inspect.unwrap(implementation.run_inputs_outputs)).parameters)
    if found != ["self", "finalized_functions", "batch_max_size", "batch_wait_ms"]:
        raise Unfit(f"run_inputs_outputs takes {found}")
    original = vars(manager)["run_inputs_outputs"]
    concurrency = vars(manager)["input_concurrency_enabled"]

    def is_ours(wrapper: Any) -> bool:
        return _is_for_the_web(synchronizer._translate_in(wrapper).function_def, len(captured))

    class RunInputsOutputs:
        """The official method, with a server beside its form for concurrent inputs."""

        def __get__(self, instance: Any, owner: Any = None) -> Any:
            bound = original.__get__(instance, owner)
            if instance is None or not is_ours(instance):
                return bound

            async def aio(functions: Any, batch_max_size: int = 0, batch_wait_ms: int = 0) -> AsyncIterator[Any]:
                from evoke_runtime.web_server import Server

                lifespans = {name: captured[function.callable] for name, function in functions.items()}
                server = await Server.start(synchronizer._translate_in(instance), lifespans, port, key)
                try:
                    async for context in bound.aio(functions, batch_max_size, batch_wait_ms):
                        yield context
                    await server.finish()
                finally:
                    await server.stop()

            def run(*args: Any) -> Any:
                return bound(*args)

            run.aio = aio  # type: ignore[attr-defined]
            return run

    # Else the official loop keeps the thread between two inputs, and nothing else would run.
    manager.input_concurrency_enabled = property(
        lambda self: True if is_ours(self) else concurrency.__get__(self, type(self))
    )
    manager.run_inputs_outputs = RunInputsOutputs()


def _is_for_the_web(definition: Any, captured: int) -> bool:
    """Whether everything that a container does is to answer requests by applications."""
    from modal_proto import api_pb2

    served = {
        api_pb2.WEBHOOK_TYPE_ASGI_APP,
        api_pb2.WEBHOOK_TYPE_WSGI_APP,
        api_pb2.WEBHOOK_TYPE_FUNCTION,
    }
    methods = definition.method_definitions.values() if definition.is_class else [definition]
    return (
        captured == len(methods)
        and all(method.webhook_config.type in served for method in methods)
        and not definition.single_use_containers
        and not definition.max_inputs
        and not definition.pty_info.pty_type
        and not definition._experimental_group_size
    )
