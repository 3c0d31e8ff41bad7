"""Dict and Queue as clients and containers use them: what they promise, their limits, and a server that dies."""

import json

import pytest
from support.client import Client, Run
from support.server import Server

DICT = """
app = modal.App("dicts")

@app.function()
def inside(name):
    d = modal.Dict.from_name(name)
    d["from inside"] = d["count"] + 1
    return sorted(d.keys())

@app.local_entrypoint()
def main():
    name = f"e2e-dict-{time.time_ns()}"
    report("missing", attempt(modal.Dict.from_name(name).hydrate))
    d = modal.Dict.from_name(name, create_if_missing=True)
    d["count"] = 1
    report("get", [d["count"], d.get("count"), d.get("no"), d.get("no", 7)])
    report("no key", attempt(lambda: d["no"]))
    report("contains", ["count" in d, d.contains("no")])
    report("put", [d.put("a", 1), d.put("a", 2), d.put("a", 3, skip_if_exists=True), d["a"]])
    report("new", d.put("b", 4, skip_if_exists=True))
    d.update({"c": 5, 6: [7]}, k=None)
    report("items", sorted(map(repr, d.items())))
    report("values", sorted(map(repr, d.values())))
    report("len", d.len())
    report("pop", [d.pop("c"), d.pop("c", "gone"), attempt(lambda: d.pop("c"))["kinds"][0]])
    del d["b"]
    d.pop(6)
    report("inside", inside.remote(name))
    large = os.urandom(3_000_000)
    d["large"] = large
    report("large", [d["large"] == large, dict(d.items())["large"] == large, d.pop("large") == large])
    d.update({i: i for i in range(1200)})
    report("many", [d.len(), sum(k for k in d.keys() if isinstance(k, int))])
    report("too many", attempt(d.update, {i: i for i in range(10_001)}))
    report("too large", attempt(d.put, "x", bytes((100 << 20) + 1)))
    info = d.info()
    report("info", [info.name == name, bool(info.created_by), abs(info.created_at.timestamp() - time.time()) < 120])
    d.clear()
    report("cleared", [d.len(), list(d.keys())])
    report("exists", attempt(modal.Dict.objects.create, name))
    modal.Dict.objects.create(name, allow_existing=True)
    modal.Dict.objects.delete(name)
    report("deleted", attempt(lambda: d["count"]))
    report("delete again", attempt(modal.Dict.objects.delete, name))
    modal.Dict.objects.delete(name, allow_missing=True)
    with modal.Dict.ephemeral() as e:
        e["x"] = 1
        report("ephemeral", modal.Dict.from_id(e.object_id)["x"])
"""


@pytest.fixture(scope="module")
def dicts(module_client: Client) -> Run:
    return module_client.program(DICT, "dicts.py").ok()


def test_a_dict_is_a_dict(dicts: Run) -> None:
    assert dicts["get"] == [1, 1, None, 7]
    assert dicts["no key"]["kinds"][0] == "KeyError"
    assert dicts["contains"] == [True, False]
    assert dicts["put"] == [True, True, False, 2]
    assert dicts["new"] is True
    assert dicts["items"] == sorted(["('count', 1)", "('a', 2)", "('b', 4)", "('c', 5)", "(6, [7])", "('k', None)"])
    assert dicts["values"] == sorted(["1", "2", "4", "5", "[7]", "None"])
    assert dicts["len"] == 6
    assert dicts["pop"] == [5, "gone", "KeyError"]
    assert dicts["inside"] == ["a", "count", "from inside", "k"]
    assert dicts["large"] == [True, True, True]
    assert dicts["many"] == [1204, 1200 * 1199 // 2]
    assert dicts["info"] == [True, True, True]
    assert dicts["cleared"] == [0, []]
    assert dicts["ephemeral"] == 1


def test_what_a_dict_refuses_says_why(dicts: Run) -> None:
    assert "create_if_missing=True" in dicts["missing"]["error"]
    assert "NotFoundError" in dicts["missing"]["kinds"]
    assert "10000" in dicts["too many"]["error"] and "InvalidError" in dicts["too many"]["kinds"]
    assert "RequestSizeError" in dicts["too large"]["kinds"]
    assert "AlreadyExistsError" in dicts["exists"]["kinds"]
    assert "NotFoundError" in dicts["deleted"]["kinds"]
    assert "NotFoundError" in dicts["delete again"]["kinds"]


def test_of_many_who_put_a_key_if_it_is_missing_one_succeeds(client: Client) -> None:
    run = client.program("""
        import asyncio
        app = modal.App("locks")

        @app.local_entrypoint()
        async def main():
            async with modal.Dict.ephemeral() as d:
                puts = await asyncio.gather(*(d.put.aio("lock", i, skip_if_exists=True) for i in range(100)))
                report("won", [sum(puts), puts.index(True) == await d.get.aio("lock")])
                popped = await asyncio.gather(*(d.pop.aio("lock", None) for _ in range(100)))
                report("popped", sum(p is not None for p in popped))
        """).ok()
    assert run["won"] == [1, True]
    assert run["popped"] == 1


QUEUE = """
import asyncio, queue, threading
app = modal.App("queues")

@app.function()
def consume(name, n):
    q = modal.Queue.from_name(name)
    return [q.get(timeout=20) for _ in range(n)]

@app.local_entrypoint()
def main():
    name = f"e2e-queue-{time.time_ns()}"
    report("missing", attempt(modal.Queue.from_name(name).hydrate))
    q = modal.Queue.from_name(name, create_if_missing=True)
    q.put(1)
    q.put_many([2, 3, 4])
    report("len", q.len())
    report("iterate", list(q.iterate()))
    report("get", [q.get(), q.get_many(2), q.get(block=False), q.get(block=False), q.get_many(5, block=False)])
    empty = attempt(q.get, timeout=0.3)
    report("empty", [empty["kinds"][0], 0.25 < empty["seconds"] < 3])
    q.put("p", partition="one")
    q.put_many(["q", "r"], partition="two")
    report("partitions", [q.len(), q.len(partition="two"), q.len(total=True), q.get(partition="one")])
    q.clear(partition="two")
    report("cleared", [q.len(partition="two"), q.len(total=True)])
    q.put("short", partition="brief", partition_ttl=1)
    before = q.len(partition="brief")
    time.sleep(1.1)
    report("ttl", [before, q.len(partition="brief"), q.get(block=False, partition="brief"), q.len(total=True)])

    q.put_many(list(range(5000)))
    report("full", attempt(q.put, 1, block=False)["kinds"][0])
    report("full in time", attempt(q.put, 1, timeout=0.5)["kinds"][0])
    waiting = threading.Thread(target=lambda: report("waited", attempt(q.put, "waited")))
    waiting.start()
    time.sleep(1.0)
    q.get_many(10)
    waiting.join(30)
    report("after", q.len())
    q.clear(all=True)
    report("all cleared", q.len(total=True))
    report("item too large", attempt(q.put, bytes(1 << 20)))
    report("bad ttl", attempt(q.put, 1, partition_ttl=-5))

    call = consume.spawn(name, 3)
    q.put_many(["a", "b"])
    q.put("c")
    report("inside", call.get())

    def late():
        time.sleep(0.5)
        report("put at", time.monotonic())
        q.put("late")
    threading.Thread(target=late).start()
    report("got", q.get(timeout=10))
    report("got at", time.monotonic())

    def more():
        for i in range(3):
            time.sleep(0.2)
            q.put(i)
    threading.Thread(target=more).start()
    report("followed", list(q.iterate(item_poll_timeout=1.5)))
    info = q.info()
    report("info", [info.name == name, bool(info.created_by)])
    gone = threading.Thread(target=lambda: report("gone", attempt(q.get, timeout=20, partition="nobody")))
    gone.start()
    time.sleep(0.5)
    modal.Queue.objects.delete(name)
    gone.join(10)
    report("deleted", attempt(q.len)["kinds"][0])
    asyncio.run(waiters())

async def waiters():
    async with modal.Queue.ephemeral() as q:
        gets = []
        for i in range(20):
            gets.append(asyncio.ensure_future(q.get.aio(timeout=20)))
            await asyncio.sleep(0.02)
        gets[3].cancel()
        await asyncio.sleep(0.2)
        await q.put_many.aio(list(range(19)))
        report("in line", await asyncio.gather(*(get for i, get in enumerate(gets) if i != 3)))
        report("left", await q.len.aio())
"""


@pytest.fixture(scope="module")
def queues(module_client: Client) -> Run:
    return module_client.program(QUEUE, "queues.py").ok()


def test_a_queue_is_first_in_first_out(queues: Run) -> None:
    assert queues["len"] == 4
    assert queues["iterate"] == [1, 2, 3, 4]
    assert queues["get"] == [1, [2, 3], 4, None, []]
    assert queues["empty"] == ["Empty", True]
    assert queues["partitions"] == [0, 2, 3, "p"]
    assert queues["cleared"] == [0, 0]
    assert queues["ttl"] == [1, 0, None, 0]
    assert queues["inside"] == ["a", "b", "c"]
    assert queues["followed"] == [0, 1, 2]
    assert queues["info"] == [True, True]


def test_a_full_queue_refuses_or_holds(queues: Run) -> None:
    assert queues["full"] == "Full"
    assert queues["full in time"] == "Full"
    assert queues["waited"]["value"] is None, queues["waited"]
    assert queues["waited"]["seconds"] < 10, "the put was held until there was room"
    assert queues["after"] == 4991
    assert queues["all cleared"] == 0
    assert "RequestSizeError" in queues["item too large"]["kinds"]
    assert "partition_ttl" in queues["bad ttl"]["error"]


def test_who_waits_is_served_at_once_and_in_order(queues: Run) -> None:
    assert queues["got"] == "late"
    assert queues["got at"] - queues["put at"] < 1.0
    assert queues["in line"] == list(range(19)), "one of them had gone; its item went to the next"
    assert queues["left"] == 0


def test_what_is_not_there_says_so(queues: Run) -> None:
    assert "create_if_missing=True" in queues["missing"]["error"]
    assert "NotFoundError" in queues["gone"]["kinds"], queues["gone"]
    assert queues["gone"]["seconds"] < 5
    assert queues["deleted"] == "NotFoundError"


def test_listings_come_in_pages_and_miss_nothing(client: Client) -> None:
    run = client.program("""
        import asyncio
        app = modal.App("pages")

        @app.local_entrypoint()
        async def main():
            names = [f"page-{time.time_ns()}-{i}" for i in range(230)]
            await asyncio.gather(*(modal.Dict.objects.create.aio(name) for name in names))
            listed = [d.name for d in await modal.Dict.objects.list.aio()]
            report("all", set(names) <= set(listed) and len(listed) == len(set(listed)))
            report("few", len(await modal.Dict.objects.list.aio(max_objects=7)))
            await asyncio.gather(*(modal.Dict.objects.delete.aio(name) for name in names))
            report("left", [d.name for d in await modal.Dict.objects.list.aio() if d.name in names])
        """).ok()
    assert run["all"] is True
    assert run["few"] == 7
    assert run["left"] == []


def test_the_command_line(client: Client) -> None:
    client.modal("dict", "create", "cli-dict").ok()
    client.modal("queue", "create", "cli-queue").ok()
    client.program("""
        app = modal.App("cli")

        @app.local_entrypoint()
        def main():
            modal.Dict.from_name("cli-dict")["greeting"] = "hello"
            modal.Queue.from_name("cli-queue").put_many(["one", "two"])
        """).ok()
    assert client.modal("dict", "get", "cli-dict", "greeting").ok().stdout.strip() == "hello"
    assert "hello" in client.modal("dict", "items", "cli-dict").ok().output
    assert "cli-dict" in client.modal("dict", "list").ok().output
    assert client.modal("queue", "peek", "cli-queue", "2").ok().stdout.split() == ["one", "two"]
    assert client.modal("queue", "len", "cli-queue").ok().stdout.strip() == "2"
    rows = json.loads(client.modal("queue", "list", "--json").ok().stdout)
    (listed,) = [row for row in rows if row["name"] == "cli-queue"]
    assert listed["total_size"] == 2 and listed["partitions"] == 1
    client.modal("queue", "clear", "cli-queue", "--yes").ok()
    assert client.modal("queue", "len", "cli-queue").ok().stdout.strip() == "0"
    client.modal("dict", "clear", "cli-dict", "--yes").ok()
    client.modal("dict", "delete", "cli-dict", "--yes").ok()
    client.modal("queue", "delete", "cli-queue", "--yes").ok()
    assert "no Dict 'cli-dict'" in client.modal("dict", "get", "cli-dict", "greeting").failed().flat


def test_a_killed_server_loses_no_acknowledged_put_and_repeats_none(server: Server, client: Client) -> None:
    process = client.start_program("""
        app = modal.App("killed")

        @app.local_entrypoint()
        def main():
            d = modal.Dict.from_name("killed", create_if_missing=True)
            q = modal.Queue.from_name("killed", create_if_missing=True)
            got = []
            for i in range(600):
                d[i] = i
                q.put(i)
                if i % 3 == 0:
                    got += q.get_many(2)
                if i == 100:
                    print("puts are under way", flush=True)
            got += q.get_many(5000)
            report("queue", got)
            report("dict", sorted(d.items()))
            modal.Dict.objects.delete("killed")
            modal.Queue.objects.delete("killed")
        """)
    process.wait_for_text("puts are under way", 60)
    server.kill_server()
    run = process.end(120).ok()
    assert run["queue"] == list(range(600))
    assert run["dict"] == [[i, i] for i in range(600)]
