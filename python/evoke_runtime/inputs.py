"""Inputs of plain sync functions without the way through the client's thread: they are fetched and answered by the
thread that runs them.

Plain is a function that is sync, no generator, takes one input at a time and no batches. What is unusual even then (an
exception, a result too large for a message, an argument in a blob, a call that fails and has to be repeated) is left
to the official runtime, in its own thread and with its own bookkeeping. Cancelling, heartbeats, and everything that
user code calls are not touched.
"""

import asyncio
import inspect
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from evoke_runtime.lean import Unfit
from evoke_runtime.line import Line
from evoke_runtime.transport import answering

# What the official runtime's parts are expected to take.
SIGNATURES = {
    "run_inputs_outputs": ["self", "finalized_functions", "batch_max_size", "batch_wait_ms"],
    "handle_input_exception": ["self", "io_context", "started_at"],
    "push_outputs": ["self", "io_context", "started_at", "output_data"],
    "exit_context": ["self", "io_context"],
}


def run_beside_the_client() -> None:
    """Has containers of plain functions run their inputs this way."""
    from modal._runtime import container_io_manager as official

    implementation, manager = official._ContainerIOManager, official.ContainerIOManager
    for name, expected in SIGNATURES.items():
        found = list(inspect.signature(inspect.unwrap(getattr(implementation, name))).parameters)
        if found != expected:
            raise Unfit(f"{name} takes {found}")
    original = vars(manager)["run_inputs_outputs"]

    class RunInputsOutputs:
        """The official method, with another way for its blocking form."""

        def __get__(self, instance: Any, owner: Any = None) -> Any:
            bound = original.__get__(instance, owner)
            if instance is None:
                return bound

            def run(finalized_functions: Any, batch_max_size: int = 0, batch_wait_ms: int = 0) -> Iterator[Any]:
                plain = Inputs.of(instance, finalized_functions, batch_max_size)
                if plain is None:
                    return bound(finalized_functions, batch_max_size, batch_wait_ms)
                return plain.run()

            run.aio = bound.aio  # type: ignore[attr-defined]
            return run

    manager.run_inputs_outputs = RunInputsOutputs()


class _HandOver:
    """Awaited where the rest of a coroutine belongs to the client's thread."""

    def __await__(self) -> Generator[None, None, None]:
        yield


def _method_over(line: Line, official: Any) -> Any:
    """A stub whose first attempt goes over the line, run by the calling thread. If that fails, the official retry
    goes on with it, under the same idempotency key, in the client's thread and over the client's connection."""
    from grpclib import GRPCError
    from grpclib.exceptions import StreamTerminatedError
    from modal._grpc_client import UnaryUnaryWrapper

    class OverLine(UnaryUnaryWrapper):  # type: ignore[type-arg]
        is_driven = False

        async def direct(self, req: Any, *, timeout: float | None = None, metadata: Any = None) -> Any:
            if not self.is_driven:
                return await super().direct(req, timeout=timeout, metadata=metadata)
            if line.usable and timeout is None and not self.client._snapshotted:
                try:
                    answer = line.call(self.name, req.SerializeToString(), metadata)
                    return self.wrapped_method.reply_type.FromString(answer)
                except (GRPCError, StreamTerminatedError, OSError) as failure:
                    failed: Exception | None = failure
            else:
                failed = None
            self.is_driven = False
            await _HandOver()
            if failed is not None:
                raise failed
            return await super().direct(req, timeout=timeout, metadata=metadata)

    return OverLine(official.wrapped_method, official.client, official.server_url)


class Inputs:
    """The inputs of one container."""

    def __init__(self, wrapper: Any, manager: Any, functions: Any, line: Line) -> None:
        from modal._utils.async_utils import synchronizer

        self._wrapper = wrapper
        self._manager = manager
        self._functions = functions
        self._line = line
        self._loop: asyncio.AbstractEventLoop = synchronizer._get_loop(start=True)
        stub = manager._client._stub
        self._get_inputs = _method_over(line, stub.FunctionGetInputs)
        self._put_outputs = _method_over(line, stub.FunctionPutOutputs)
        self._handle_exception = wrapper.handle_input_exception
        self._push_outputs = wrapper.push_outputs

    @classmethod
    def of(cls, wrapper: Any, functions: Any, batch_max_size: int) -> "Inputs | None":
        """None where anything is not plain."""
        from modal._utils.async_utils import synchronizer
        from modal_proto import api_pb2

        manager = synchronizer._translate_in(wrapper)
        definition = manager.function_def
        is_plain = (
            threading.current_thread() is threading.main_thread()
            and batch_max_size == 0
            and not manager.input_concurrency_enabled
            and not definition.pty_info.pty_type
            and not definition._experimental_group_size
            and definition.webhook_config.type == api_pb2.WEBHOOK_TYPE_UNSPECIFIED
            and not any(function.is_async or function.is_generator for function in functions.values())
        )
        found = answering() if is_plain else None
        return cls(wrapper, manager, functions, Line(*found)) if found is not None else None

    def run(self) -> Iterator[Any]:
        """Every input with what the official runtime keeps of it, until there are no more."""
        own = vars(self._wrapper)
        own["handle_input_exception"] = self._exceptions
        own["push_outputs"] = self._push
        try:
            yield from self._run()
        finally:
            del own["handle_input_exception"], own["push_outputs"]
            self._line.close()

    def _run(self) -> Iterator[Any]:
        manager, slots = self._manager, self._manager._input_slots
        definition = manager.function_def
        is_single_use = definition.single_use_containers or definition.max_inputs == 1
        while True:
            # The only one there is, given back by `exit_context`.
            slots.active += 1
            item = None
            try:
                item = self._next_item()
            finally:
                if item is None:
                    slots.release()
            if item is None:
                break
            context = self._context(item)
            manager.current_inputs[item.input_id] = context
            manager.current_input_id, manager.current_input_started_at = item.input_id, time.time()
            is_last = item.input.final_input
            yield context
            manager.current_input_id = manager.current_input_started_at = None
            if is_last or is_single_use:
                break
        self._in_client_thread(slots.close())

    def _next_item(self) -> Any:
        """The next input; None if the container is to end."""
        from modal_proto import api_pb2

        manager = self._manager
        request = api_pb2.FunctionGetInputsRequest(
            function_id=manager.function_id, input_concurrency=manager.get_input_concurrency()
        )
        while True:
            reply = self._call(self._get_inputs, request)
            if reply.rate_limit_sleep_duration:
                time.sleep(reply.rate_limit_sleep_duration)
            for item in reply.inputs:
                return None if item.kill_switch else item

    def _context(self, item: Any) -> Any:
        from modal._runtime.container_io_manager import IOContext

        manager = self._manager
        parts = (
            item.input_id,
            item.retry_count,
            item.function_call_id,
            item.attempt_token,
            item.input,
            item.function_call_invocation_type,
        )
        limits = (manager._max_object_size_bytes, manager._max_async_object_size_bytes)
        if item.input.WhichOneof("args_oneof") == "args_blob_id":
            return self._in_client_thread(IOContext.create(manager._client, self._functions, [parts], False, *limits))
        input_id, retry_count, call_id, token, one, kind = parts
        function = self._functions[one.method_name]
        return IOContext(
            [input_id], [retry_count], [call_id], [token], function, [one], [kind], False, manager._client, *limits
        )

    def _exceptions(self, io_context: Any, started_at: float) -> "_Exceptions":
        return _Exceptions(lambda: self._handle_exception(io_context, started_at))

    def _push(self, io_context: Any, started_at: float, output_data: list[Any]) -> None:
        """Answers an input with its result."""
        from grpclib import Status
        from modal._serialization import serialize_data_format
        from modal._utils.grpc_utils import Retry
        from modal_proto import api_pb2

        created_at = time.time()
        output_format = io_context._determine_output_format(io_context.function_inputs[0].data_format)
        try:
            data = serialize_data_format(output_data[0], data_format=output_format)
        except Exception:
            data = None
        limit = io_context._output_size_limit(io_context.function_call_invocation_types[0])
        if data is None or len(data) > limit:
            # Goes by blob, or fails with the official traceback.
            self._push_outputs(io_context, started_at, output_data)
            return
        output = api_pb2.FunctionPutOutputsItem(
            input_id=io_context.input_ids[0],
            input_started_at=started_at,
            output_created_at=created_at,
            result=api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS, data=data),
            data_format=output_format,
            retry_count=io_context.retry_counts[0],
        )
        # As the official runtime: for as long as it takes.
        patient = Retry(additional_status_codes=[Status.RESOURCE_EXHAUSTED], max_retries=None)
        with _cancellation_held():
            self._call(self._put_outputs, api_pb2.FunctionPutOutputsRequest(outputs=[output]), retry=patient)
            self._manager.exit_context(io_context)

    def _call(self, method: Any, *args: Any, **options: Any) -> Any:
        """Drives a call in this thread, and hands it over to the client's where it has to wait."""
        method.is_driven = True
        coroutine = method(*args, **options)
        try:
            coroutine.send(None)
        except StopIteration as done:
            return done.value
        return self._in_client_thread(coroutine)

    def _in_client_thread(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class _Exceptions:
    """What an input raised is handled officially; where it raised nothing, there is nothing to do."""

    def __init__(self, official: Callable[[], Any]) -> None:
        self._official = official

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, raised: BaseException | None, traceback: Any) -> bool:
        if raised is None:
            return False
        official = self._official()
        official.__enter__()
        return bool(official.__exit__(kind, raised, traceback))


@contextmanager
def _cancellation_held() -> Iterator[None]:
    """A cancellation that comes while an answer is on its way comes too late: raised in the middle of a frame it
    would make the rest of the connection meaningless."""

    def too_late(number: int, where: FrameType | None) -> None:
        pass

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGUSR1, too_late)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
