"""The lean ways between a container and the platform: that they are taken, what switches them off, and the cases
that the rest of the suite, which takes them too, does not have."""

from support.client import Client
from support.server import Server

# What a container says of the way that its calls take.
WAYS = """
    def ways():
        from modal.client import _Client
        from modal_proto import modal_api_grpc
        channels = [f.result() for f in _Client._client_from_env._connection_manager._channels.values()]
        transports = sorted({
            "frames" if type(c).__module__.startswith("evoke_runtime") and c._official is None else "official"
            for c in channels
        })
        lazy = type(_Client._client_from_env._stub) is not modal_api_grpc.ModalClientModal
        return transports, "lazy" if lazy else "all"

    def inputs():
        from modal._runtime.container_io_manager import _ContainerIOManager
        from modal._utils.async_utils import synchronizer
        wrapper = synchronizer._translate_out(_ContainerIOManager._singleton)
        return "lean" if "push_outputs" in vars(wrapper) else "official"
"""


def test_each_way_is_taken_and_can_be_switched_off(server: Server, client: Client) -> None:
    program = (
        WAYS
        + """
    app = modal.App("lean-switch")
    switch = lambda value: [modal.Secret.from_dict({"EVOKE_LEAN": value})]

    @app.function(secrets=switch("transport,start"))
    def both():
        return ways()

    @app.function(secrets=switch("transport"))
    def transport():
        return ways()

    @app.function(secrets=switch("start, quick"))
    def start():
        return ways()

    @app.function(secrets=switch("off"))
    def off():
        return ways()

    @app.local_entrypoint()
    def main():
        for name in ("both", "transport", "start", "off"):
            report(name, globals()[name].remote())
    """
    )
    run = client.program(program).ok()
    assert run["both"] == [["frames"], "lazy"]
    assert run["transport"] == [["frames"], "all"]
    assert run["start"] == [["official"], "lazy"]
    assert run["off"] == [["official"], "all"]
    assert "EVOKE_LEAN: there is no 'quick'; what can be on: transport, start, inputs" in run.flat


def test_what_is_unusual_goes_over_frames_too(server: Server, client: Client) -> None:
    program = (
        WAYS
        + """
    app = modal.App("lean-unusual")
    lean = [modal.Secret.from_dict({"EVOKE_LEAN": "transport,start,inputs"})]

    @app.function(secrets=lean)
    def size(data):
        return len(data)

    @app.function(secrets=lean)
    def grown(data):
        return data + b"!"

    @app.function(secrets=lean)
    def forked():
        # The child has no connection of its own and must not touch its parent's.
        queue = modal.Queue.from_name("lean-forked", create_if_missing=True)
        queue.put("parent")
        pid = os.fork()
        if pid == 0:
            try:
                queue.put("child")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        queue.put("parent again")
        return sorted(queue.get_many(10)), ways()

    @app.function(secrets=lean)
    def errors():
        found = attempt(modal.Queue.from_name("lean-nothing").put, 1)
        return found["kinds"]

    @app.function(secrets=lean)
    def streams():
        return list(numbers.remote_gen(5000))

    @app.function(secrets=lean)
    def numbers(n):
        for i in range(n):
            yield i, "x" * 200

    @app.function(secrets=lean)
    def snapshot():
        # What a memory snapshot does with the client before and after it.
        from modal.client import Client, _Client
        from modal._utils.async_utils import synchronizer, synchronize_api
        before = ways()
        import asyncio
        client = _Client._client_from_env
        asyncio.run_coroutine_threadsafe(client._prep_for_snapshot(), synchronizer._get_loop(start=True)).result(10)
        return before, size.remote(b"four"), ways()

    @app.function(secrets=lean)
    def nonsense():
        import socket
        said = []
        for greeting in (b"\\0evoke\\0\\1" + b"\\xff" * 64, b"\\0evoke\\0\\7", b"\\0what", b"\\0evoke\\0\\1"):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.settimeout(10)
                raw.connect(os.environ["EVOKE_PLATFORM_SOCKET"])
                raw.sendall(greeting)
                if len(greeting) <= 8:
                    raw.shutdown(socket.SHUT_WR)
                answer = b""
                while piece := raw.recv(4096):
                    answer += piece
                said.append(answer.decode("latin-1"))
        return said, size.remote(b"12")

    @app.local_entrypoint()
    def main():
        for n in (0, 1, 65_000, 65_536, 70_000, 1_000_000, 3_000_000):
            assert size.remote(b"x" * n) == n, n
            assert len(grown.remote(b"x" * n)) == n + 1, n
        for name in ("forked", "errors", "streams", "snapshot", "nonsense"):
            report(name, globals()[name].remote())
    """
    )
    run = client.program(program).ok()
    assert run["forked"] == [["child", "parent", "parent again"], [["frames"], "lazy"]]
    assert "NotFoundError" in run["errors"]
    assert run["streams"] == [[i, "x" * 200] for i in range(5000)]
    assert run["snapshot"] == [[["frames"], "lazy"], 4, [["frames"], "lazy"]]
    said, length = run["nonsense"]
    assert length == 2
    assert "over the limit" in said[0]
    assert said[1] == "\0evoke\0\1"
    assert said[2].startswith("HTTP/1.1 400")
    assert said[3] == "\0evoke\0\1"


def test_a_killed_server_is_reached_again(server: Server, client: Client) -> None:
    process = client.start_program(
        WAYS
        + """
    app = modal.App("lean-restart")

    @app.function(secrets=[modal.Secret.from_dict({"EVOKE_LEAN": "transport,start,inputs"})])
    def slow(i):
        queue = modal.Queue.from_name("lean-restart", create_if_missing=True)
        if i == 0:
            print("it runs", flush=True)
        time.sleep(4 if i == 0 else 0)
        queue.put(i)
        return i, inputs(), ways()

    @app.local_entrypoint()
    def main():
        report("done", list(slow.map(range(30))))
        report("put", sorted(modal.Queue.from_name("lean-restart").get_many(100, block=False)))
    """
    )
    process.wait_for_text("it runs", 60)
    server.kill_server(1.0)
    run = process.end(120).ok()
    assert [i for i, *_ in run["done"]] == list(range(30))
    assert all(way == ["lean", [["frames"], "lazy"]] for _, *way in run["done"])
    # Repeated requests had no second effect.
    assert run["put"] == list(range(30))


def test_plain_functions_are_fetched_and_answered_in_their_own_thread(server: Server, client: Client) -> None:
    program = (
        WAYS
        + """
    app = modal.App("lean-inputs")
    lean = dict(secrets=[modal.Secret.from_dict({"EVOKE_LEAN": "transport,inputs"})])

    @app.function(**lean)
    def plain():
        return inputs(), os.environ["MODAL_TASK_ID"]

    @app.function(**lean)
    async def asynchronous():
        return inputs()

    @app.function(**lean)
    @modal.concurrent(max_inputs=3)
    def concurrent():
        return inputs()

    @app.function(**lean)
    @modal.batched(max_batch_size=3, wait_ms=50)
    def batched(numbers):
        return [inputs() for _ in numbers]

    @app.function(**lean)
    def generator():
        yield inputs()

    @app.function(single_use_containers=True, **lean)
    def single():
        return inputs(), os.environ["MODAL_TASK_ID"]

    @app.function(**lean)
    def failing():
        raise KeyError("mine")

    @app.function(**lean)
    def unpicklable():
        import threading
        return threading.Lock()

    @app.function(**lean)
    def sleeper(seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.05)
        return inputs(), os.environ["MODAL_TASK_ID"]

    @app.function(retries=modal.Retries(max_retries=2, initial_delay=0.0), **lean)
    def flaky(key):
        tries = modal.Dict.from_name("lean-flaky", create_if_missing=True)
        tries[key] = tries.get(key, 0) + 1
        if tries[key] < 3:
            raise RuntimeError("again")
        return tries[key]

    @app.local_entrypoint()
    def main():
        report("plain", [plain.remote(), plain.remote()])
        report("unusual", [asynchronous.remote(), concurrent.remote(), *batched.map(range(2)), *generator.remote_gen()])
        report("single", [single.remote(), single.remote()])
        report("failing", attempt(failing.remote)["kinds"])
        report("unpicklable", attempt(unpicklable.remote)["error"])
        report("flaky", flaky.remote(os.environ["E2E_REPORT"]))
        before = sleeper.remote(0)
        call = sleeper.spawn(60)
        while not sleeper.get_current_stats().num_running_inputs:
            time.sleep(0.1)
        call.cancel()
        report("cancelled", attempt(call.get, timeout=20)["kinds"])
        report("after", [before, sleeper.remote(0)])
    """
    )
    run = client.program(program).ok()
    plain = run["plain"]
    assert plain[0] == plain[1] and plain[0][0] == "lean"
    assert run["unusual"] == ["official"] * 5
    single = run["single"]
    assert [way for way, _ in single] == ["lean", "lean"] and single[0][1] != single[1][1]
    assert "KeyError" in run["failing"]
    assert "pickle" in run["unpicklable"]
    assert run["flaky"] == 3
    assert "RemoteError" in run["cancelled"] or "InputCancellation" in run["cancelled"]
    # The container that was told of the cancellation lives on.
    before, after = run["after"]
    assert before == after and before[0] == "lean"
