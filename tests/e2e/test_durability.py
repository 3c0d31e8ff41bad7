"""A server that is killed at any instant: what it acknowledged is kept, containers live on, clients do not notice."""

import re
import signal
import sys
import time
import urllib.request
from collections import Counter

from support.client import Client, Line, Run
from support.server import Server
from support.waits import wait_until

# How long the machine is without a server.
AWAY_S = 3.0


def test_a_map_of_5000_survives(server: Server, client: Client) -> None:
    process = client.start_program(
        """
        app = modal.App("big-map")

        @app.function(max_containers=2)
        def work(i):
            print(f"doing <{i}>")
            return [i, i * i, os.environ["MODAL_TASK_ID"]]

        @app.local_entrypoint()
        def main():
            done = []
            for result in work.map(range(5000), order_outputs=False):
                done.append(result)
                if len(done) == 1000:
                    print("a fifth is done", flush=True)
            report("done", done)
        """
    )
    process.wait_for_text("a fifth is done", 90)
    server.kill_server(AWAY_S)
    run = process.end(180).ok()
    done = run["done"]
    assert sorted(i for i, *_ in done) == list(range(5000))
    assert all(square == i * i for i, square, _ in done)
    # Two containers did it all: they lived through it, each with the input it had.
    assert len({task for *_, task in done}) <= 2
    # Each input prints once, so this also says that none ran twice.
    _assert_each_logged_once(run, 5000)


def _assert_each_logged_once(run: Run, count: int) -> None:
    # Anywhere in the output: the program's own lines and the logs may meet on one line.
    logged = Counter(re.findall(r"doing <\d+>", run.output))
    expected = {f"doing <{i}>" for i in range(count)}
    missing = expected - set(logged)
    assert not missing, f"{len(missing)} lines lost, such as {sorted(missing)[:5]}"
    twice = [text for text, times in logged.items() if times != 1]
    assert not twice, f"more than once: {twice[:5]}"


PENDING = """
import threading
app = modal.App("pending")

# One container and one run per input: who ran is counted in the container's own memory and disk.
RUNS = []

@app.function(max_containers=1)
def slow(seconds, name):
    RUNS.append(name)
    print("begin", name, flush=True)
    for i in range(int(seconds * 10)):
        print(f"{name} tick {i}", flush=True)
        time.sleep(0.1)
    print("end", name, flush=True)
    return [name, RUNS, os.environ["MODAL_TASK_ID"]]

@app.function(max_containers=1)
def count(n):
    for i in range(n):
        print("yielding", i, flush=True)
        yield [i, os.environ["MODAL_TASK_ID"]]
        time.sleep(0.1)

@app.function(max_containers=1)
def spawned(seconds):
    RUNS.append(seconds)
    print("spawned runs", flush=True)
    time.sleep(seconds)
    return [len(RUNS), os.environ["MODAL_TASK_ID"]]

@app.local_entrypoint()
def main():
    call = spawned.spawn(6)
    threads = [
        threading.Thread(target=lambda: report("remote", attempt(slow.remote, 6, "a"))),
        threading.Thread(target=lambda: report("spawned", attempt(call.get))),
        threading.Thread(target=lambda: report("generator", attempt(lambda: list(count.remote_gen(60))))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report("again", attempt(modal.FunctionCall.from_id(call.object_id).get))
"""


def test_pending_calls_and_a_running_generator_survive(server: Server, client: Client) -> None:
    process = client.start_program(PENDING)

    def all_run(lines: list[Line]) -> bool:
        texts = {line.text for line in lines}
        return {"begin a", "spawned runs", "yielding 3"} <= texts

    process.wait_for(all_run, "all three run")
    server.kill_server(AWAY_S)
    run = process.end().ok()
    name, runs, _ = run["remote"]["value"]
    assert (name, runs) == ("a", ["a"])
    count, _ = run["spawned"]["value"]
    assert count == 1
    assert run["again"] == {**run["spawned"], "seconds": run["again"]["seconds"]}
    yielded = run["generator"]["value"]
    assert [i for i, _ in yielded] == list(range(60))
    assert len({task for _, task in yielded}) == 1
    texts = Counter(line.text for line in run.lines)
    for text in [*(f"a tick {i}" for i in range(60)), *(f"yielding {i}" for i in range(60)), "begin a", "end a"]:
        assert texts[text] == 1, (text, texts[text])


def test_who_waits_outlives_more_deaths_than_the_client_counts(server: Server, client: Client) -> None:
    process = client.start_program(
        """
        app = modal.App("patient")

        @app.function(max_containers=1, scaledown_window=300)
        def where():
            return os.environ["MODAL_TASK_ID"]

        @app.function()
        def slow():
            print("slow runs", flush=True)
            time.sleep(8)
            return "done"

        @app.local_entrypoint()
        def main():
            before = where.remote()
            call = slow.spawn()
            report("slow", attempt(call.get))
            report("same", where.remote() == before)
        """
    )
    process.wait_for_text("slow runs")
    # The client takes a request for failed when its connection is lost four times in a row.
    for _ in range(7):
        server.kill_server()
        with urllib.request.urlopen(f"{server.status()['address']}/healthz", timeout=30) as answer:
            assert answer.status == 200
        # Time in which those who wait ask again, so that the next death is one more to them.
        time.sleep(0.5)
    run = process.end().ok()
    assert run["slow"]["value"] == "done"
    assert run["same"]


def test_a_server_that_dies_again_and_again_loses_nothing(server: Server, client: Client) -> None:
    process = client.start_program(
        """
        app = modal.App("again")

        @app.function(max_containers=2)
        def work(i):
            time.sleep(0.02)
            print(f"doing <{i}>")
            return i

        @app.local_entrypoint()
        def main():
            print("started", flush=True)
            report("done", list(work.map(range(400))))
        """
    )
    for wanted in (10, 100, 200, 300):

        def reached(lines: list[Line], wanted: int = wanted) -> bool:
            return sum("doing <" in line.text for line in lines) >= wanted

        process.wait_for(reached, f"{wanted} inputs done")
        server.kill_server()
    run = process.end().ok()
    assert run["done"] == list(range(400))
    _assert_each_logged_once(run, 400)


def test_a_request_whose_answer_was_lost_has_no_second_effect(server: Server, client: Client) -> None:
    process = client.start_program(
        """
        app = modal.App("retried")

        @app.function(max_containers=1)
        def work(i):
            print(f"doing <{i}>")
            return i

        @app.local_entrypoint()
        def main():
            work.remote(0)
            calls = []
            for i in range(1, 300):
                calls.append(work.spawn(i))
                # Not to stdout, where it could meet the logs on one line.
                print(f"spawned <{i}>", file=sys.stderr, flush=True)
            report("ids", [call.object_id for call in calls])
            report("results", [call.get() for call in calls])
        """
    )
    # The client sends one request after the other and repeats what it got no answer to.
    for wanted in (20, 100, 180, 260):

        def reached(lines: list[Line], wanted: int = wanted) -> bool:
            return any(line.text == f"spawned <{wanted}>" for line in lines)

        process.wait_for(reached, f"{wanted} calls spawned")
        server.kill_server()
    run = process.end().ok()
    assert len(set(run["ids"])) == 299
    assert run["results"] == list(range(1, 300))
    _assert_each_logged_once(run, 300)


def test_a_spawned_call_outlives_its_client_and_the_server(server: Server, client: Client) -> None:
    client.write(
        "service.py",
        """
        app = modal.App("e2e-service")

        @app.function(max_containers=1)
        def slow(seconds):
            time.sleep(seconds)
            return seconds
        """,
    )
    client.modal("deploy", "service.py").ok()
    spawn = client.write(
        "spawn.py",
        """
        report("id", modal.Function.from_name("e2e-service", "slow").spawn(2).object_id)
        """,
    )
    fetch = client.write(
        "fetch.py",
        """
        report("result", modal.FunctionCall.from_id(sys.argv[1]).get(timeout=60))
        """,
    )
    try:
        call_id = client.start(sys.executable, str(spawn)).end().ok()["id"]
        server.kill_server(1.0)
        assert client.start(sys.executable, str(fetch), call_id).end().ok()["result"] == 2
        # A whole stop and start in between: the deployment and the result are still there.
        assert server.stop() == 0
        assert server.leftovers() == []
        server.start()
        client.env.update(server.client_env())
        assert client.start(sys.executable, str(fetch), call_id).end().ok()["result"] == 2
        call_id = client.start(sys.executable, str(spawn)).end().ok()["id"]
        assert client.start(sys.executable, str(fetch), call_id).end().ok()["result"] == 2
    finally:
        client.modal("app", "stop", "e2e-service", "--yes")


def test_a_holder_that_is_killed_leaves_nothing_after_the_next_start(server: Server, client: Client) -> None:
    process = client.start_program(
        """
        app = modal.App("orphan")

        @app.function()
        def wait(seconds):
            print("inside", flush=True)
            time.sleep(seconds)

        @app.local_entrypoint()
        def main():
            wait.remote(20)
        """
    )
    process.wait_for_text("inside")
    before = _container_folders(server)
    assert before
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    process.kill()
    # The next start takes away what the last one left, and runs the call again, which nobody answered yet.
    server.start()
    wait_until(lambda: not before & _container_folders(server), "the old containers are gone")
    assert server.stop() == 0
    assert server.leftovers() == []
    server.start()


def test_down_takes_away_what_a_killed_holder_left(server: Server, client: Client) -> None:
    process = client.start_program(
        """
        app = modal.App("orphan")

        @app.function()
        def wait(seconds):
            print("inside", flush=True)
            time.sleep(seconds)

        @app.local_entrypoint()
        def main():
            wait.remote(20)
        """
    )
    process.wait_for_text("inside")
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    process.kill()
    # 3: there was no server to end.
    assert server.evoke("down", check=False).returncode in (0, 3)
    assert server.leftovers(unshipped_logs=True) == []
    server.start()
    assert server.stop() == 0
    assert server.leftovers() == []
    server.start()


def _container_folders(server: Server) -> set[str]:
    return {path.name for path in (server.data / "containers").iterdir() if not path.name.startswith(".")}
