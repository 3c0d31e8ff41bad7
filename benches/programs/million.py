"""The no-op beside a function whose inputs are stored and never run, to measure calls with a full store."""

import asyncio
import os
import pickle
import time

import modal

app = modal.App("bench-million", image=modal.Image.debian_slim())

# Inputs in one request, and in one call.
PER_REQUEST = 1_000
PER_CALL = 50_000


@app.function(max_containers=1, scaledown_window=1200)
def noop(question=None):
    return os.environ.get("MODAL_TASK_ID") if question == "who" else None


@app.function(max_containers=1, timeout=24 * 3600)
def held(_number):
    """Its first input keeps its only container busy, so that all others wait."""
    time.sleep(24 * 3600)


def fill(_noop, count, cancel):
    """Has that many inputs stored; with `cancel` they end at once, else they wait."""
    begin = time.perf_counter()
    calls = asyncio.run(fill_async(held.object_id, count, cancel))
    return {"seconds": time.perf_counter() - begin, "calls": calls}


async def fill_async(function_id, count, cancel):
    from modal.client import _Client
    from modal_proto import api_pb2

    async def put(stub, call, first):
        payload = pickle.dumps(((first,), {}), protocol=4)
        item = api_pb2.FunctionInput(args=payload, data_format=api_pb2.DATA_FORMAT_PICKLE)
        items = [api_pb2.FunctionPutInputsItem(idx=index, input=item) for index in range(first, first + PER_REQUEST)]
        request = api_pb2.FunctionPutInputsRequest(function_id=function_id, function_call_id=call, inputs=items)
        await stub.FunctionPutInputs(request)

    token = os.environ["MODAL_TOKEN_ID"], os.environ["MODAL_TOKEN_SECRET"]
    calls = []
    async with _Client(os.environ["MODAL_SERVER_URL"], api_pb2.CLIENT_TYPE_CLIENT, token) as client:
        for _ in range(count // PER_CALL):
            begun = await client.stub.FunctionMap(
                api_pb2.FunctionMapRequest(
                    function_id=function_id,
                    function_call_type=api_pb2.FUNCTION_CALL_TYPE_MAP,
                    function_call_invocation_type=api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC,
                )
            )
            call = begun.function_call_id
            for first in range(0, PER_CALL, PER_REQUEST):
                await put(client.stub, call, first)
            if cancel:
                await client.stub.FunctionCallCancel(api_pb2.FunctionCallCancelRequest(function_call_id=call))
            calls.append(call)
    return calls


def who(noop):
    return {"task": noop.remote("who")}


if __name__ == "__main__":
    import driver

    driver.COMMANDS.update({"fill": fill, "who": who})
    driver.serve(app, noop)
