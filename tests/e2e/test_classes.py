"""Classes as users see them: hooks at every end, parameters and options with pools of their own, inheritance."""

from support.client import Client
from support.server import Server

# Hooks write into a named Queue, which outlives their container, their app and the server.
LIVED = """
app = modal.App("classes-lived")
events = modal.Queue.from_name("classes-events", create_if_missing=True)
image = modal.Image.debian_slim().env({"VERSION": os.environ.get("VERSION", "")})

@app.cls(image=image, scaledown_window=300, enable_memory_snapshot=True)
class Lived:
    name: str = modal.parameter()
    steps: list = modal.parameter(init=False)

    @modal.enter(snap=True)
    def first(self):
        self.steps = ["first"]

    @modal.enter()
    async def second(self):
        self.steps.append("second")

    @modal.method()
    def step(self, x):
        self.steps.append(x)
        return self.steps

    @modal.exit()
    def last(self):
        events.put([self.name, os.environ["VERSION"], self.steps])
"""

WATCH = """
app = modal.App("watch")

def wait_for(name):
    print(name, "is awaited", flush=True)
    while not os.path.exists(name):
        time.sleep(0.05)

@app.local_entrypoint()
def main():
    Lived = modal.Cls.from_name("classes-lived", "Lived")
    events = modal.Queue.from_name("classes-events", create_if_missing=True)
    report("kept", [Lived(name="redeployed").step.remote(x) for x in "ab"][-1])
    report("missing", attempt(Lived().step.remote, 1))
    report("unknown", attempt(lambda: Lived(name="x", colour="y").step.remote(1)))
    Lived.with_options(scaledown_window=2)(name="idle").step.remote("x")
    report("idle", events.get(timeout=20))
    wait_for("deployed")
    report("redeployed", events.get(timeout=20))
    Lived(name="stopped").step.remote("y")
    wait_for("stopped")
    report("stopped", events.get(timeout=20))
"""


def test_exit_hooks_run_at_every_graceful_end(client: Client, server: Server) -> None:
    program = str(client.write("lived.py", LIVED))
    client.modal("deploy", program, env={"VERSION": "1"}).ok()
    watch = client.start_program(WATCH, name="watch.py")
    watch.wait_for_text("deployed is awaited")
    client.modal("deploy", program, env={"VERSION": "2"}).ok()
    (client.folder / "deployed").touch()
    watch.wait_for_text("stopped is awaited")
    client.modal("app", "stop", "-y", "classes-lived").ok()
    (client.folder / "stopped").touch()
    run = watch.end().ok()
    assert run["kept"] == ["first", "second", "a", "b"]
    assert "name" in run["missing"]["error"] and "colour" in run["unknown"]["error"]
    assert run["idle"] == ["idle", "1", ["first", "second", "x"]]
    assert run["redeployed"] == ["redeployed", "1", ["first", "second", "a", "b"]]
    assert run["stopped"] == ["stopped", "2", ["first", "second", "y"]]

    # An app that ends with its client, and the server itself.
    ended = client.program(
        LIVED
        + """
@app.local_entrypoint()
def main():
    report("steps", Lived(name="ended").step.remote("z"))
""",
        name="ended.py",
        env={"VERSION": "3"},
    ).ok()
    assert ended["steps"] == ["first", "second", "z"]
    client.modal("deploy", program, env={"VERSION": "4"}).ok()
    left = """
app = modal.App("left")

@app.local_entrypoint()
def main():
    if os.environ["VERSION"] == "4":
        modal.Cls.from_name("classes-lived", "Lived")(name="down").step.remote("w")
    else:
        events = modal.Queue.from_name("classes-events", create_if_missing=True)
        report("events", [events.get(timeout=20) for _ in range(2)])
        modal.Queue.objects.delete("classes-events")
"""
    client.program(left, name="left.py", env={"VERSION": "4"}).ok()
    assert server.stop() == 0
    server.start()
    again = Client(client.folder, server.client_env())
    events = again.program(left, name="left.py", env={"VERSION": ""}).ok()["events"]
    again.modal("app", "stop", "-y", "classes-lived").ok()
    assert events == [["ended", "3", ["first", "second", "z"]], ["down", "4", ["first", "second", "w"]]]


def test_parameters_options_and_inheritance(client: Client) -> None:
    run = client.program(
        """
        from dataclasses import asdict
        app = modal.App("options")
        results = modal.Dict.from_name("classes-results", create_if_missing=True)

        class Base:
            size: int = modal.parameter(default=1)

            @modal.enter()
            def base_enter(self):
                self.order = ["base"]

            @modal.method()
            def inherited(self):
                return ["Base", self.size, self.order]

            @modal.method()
            def replaced(self):
                return "Base"

        @app.cls(max_containers=1)
        class Model(Base):
            flag: bool = modal.parameter(default=False)
            blob: bytes = modal.parameter(default=b"-")

            @modal.enter()
            def own_enter(self):
                self.order.append("own")

            @modal.method()
            def replaced(self):
                return ["Model", self.inherited.local()]

            @modal.method()
            def where(self, seconds=0.0):
                time.sleep(seconds)
                return os.environ["MODAL_TASK_ID"]

            @modal.method()
            def values(self):
                return [self.size, self.flag, self.blob.decode()]

            @modal.method()
            def count(self, n):
                yield from range(n)

            @modal.method()
            def joined(self, xs):
                return [list(xs)] * len(xs)

        @app.function(single_use_containers=True)
        def once(x):
            return os.environ["MODAL_TASK_ID"]

        @app.function(buffer_containers=0)
        @modal.concurrent(target_inputs=2, max_inputs=8)
        def spread(x):
            time.sleep(3)
            return os.environ["MODAL_TASK_ID"]

        @app.function()
        def save(key, value):
            results[key] = value

        @app.local_entrypoint()
        def main():
            report("inherited", Model(size=3).inherited.remote())
            report("replaced", Model().replaced.remote())
            report("values", Model(size=2, flag=True, blob=b"xy").values.remote())
            report("wrong", attempt(lambda: Model(size="two").values.remote()))
            report("generator", list(Model().count.remote_gen(3)))
            pools = [Model(), Model(size=7), Model(size=7), Model.with_options(cpu=0.25)()]
            report("pools", [model.where.remote() for model in pools])
            begin = time.monotonic()
            shared = Model.with_concurrency(max_inputs=4)()
            report("shared", list(shared.where.map([1.0] * 4)))
            report("seconds", time.monotonic() - begin)
            batched = Model.with_batching(max_batch_size=3, wait_ms=400)()
            report("batched", list(batched.joined.map(range(3))))
            report("timeout", attempt(Model.with_options(timeout=1)().where.remote, 20.0))
            report("once", list(once.map(range(3))))
            report("spread", list(spread.map(range(6))))
            save.spawn_map(["a", "b"], [1, 2])
            while results.len() < 2:
                time.sleep(0.05)
            report("saved", [results["a"], results["b"]])
            results.clear()
            model = Model(size=9)
            report("settings", asdict(model.update_autoscaler(min_containers=1, scaledown_window=30)))
        """
    ).ok()
    assert run["inherited"] == ["Base", 3, ["base", "own"]]
    assert run["replaced"] == ["Model", ["Base", 1, ["base", "own"]]]
    assert run["values"] == [2, True, "xy"]
    assert "Expected int" in run["wrong"]["error"]
    assert run["generator"] == [0, 1, 2]
    plain, seven, again, small = run["pools"]
    assert seven == again and len({plain, seven, small}) == 3
    assert len(set(run["shared"])) == 1 and run["seconds"] < 3.5
    assert run["batched"] == [[0, 1, 2]] * 3
    assert "FunctionTimeoutError" in run["timeout"]["kinds"]
    assert len(set(run["once"])) == 3
    assert len(set(run["spread"])) >= 2, "six inputs want three containers of two each"
    assert run["saved"] == [1, 2]
    assert (run["settings"]["min_containers"], run["settings"]["max_containers"]) == (1, 1)
