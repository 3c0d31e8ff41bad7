"""How functions are scaled as users see it: concurrency, batches, settings changed live, who called whom."""

from support.client import Client
from support.server import Server

DEPLOYED = """
app = modal.App("scaling-deployed")

@app.cls(image=modal.Image.debian_slim().env({"VERSION": os.environ.get("VERSION", "")}))
class Model:
    name: str = modal.parameter(default="plain")

    @modal.method()
    def describe(self):
        return [self.name, os.environ["VERSION"], os.environ.get("EXTRA")]
"""


def test_inputs_share_a_container_and_batches_are_lists(client: Client) -> None:
    run = client.program(
        """
        app = modal.App("shared")

        @app.function(max_containers=1)
        @modal.concurrent(max_inputs=8)
        def together(seconds):
            time.sleep(seconds)
            return os.environ["MODAL_TASK_ID"]

        @app.function(max_containers=1)
        @modal.batched(max_batch_size=4, wait_ms=500)
        def doubled(xs):
            return [ValueError("three") if x == 3 else (2 * x, len(xs)) for x in xs]

        @app.cls(max_containers=1)
        class Pair:
            @modal.batched(max_batch_size=2, wait_ms=300)
            def joined(self, xs):
                return [list(xs)] * len(xs)

        @app.local_entrypoint()
        def main():
            begin = time.monotonic()
            report("containers", list(together.map([1] * 8)))
            report("seconds", time.monotonic() - begin)
            report("batches", [repr(x) for x in doubled.map(range(6), return_exceptions=True)])
            report("methods", list(Pair().joined.map(range(4))))
        """
    ).ok()
    assert len(run["containers"]) == 8 and len(set(run["containers"])) == 1
    assert run["seconds"] < 7.5, "eight seconds of work took turns"
    wanted = ["(0, 4)", "(2, 4)", "(4, 4)", "ValueError('three')", "(8, 2)", "(10, 2)"]
    assert run["batches"] == wanted
    assert run["methods"] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_settings_are_read_and_changed_live(client: Client) -> None:
    run = client.program(
        """
        from dataclasses import asdict
        app = modal.App("settings")

        @app.function(scaledown_window=7)
        def idle():
            return 1

        @app.local_entrypoint()
        def main():
            report("before", asdict(idle.autoscaler.settings()))
            report("none", idle.get_current_stats().num_total_runners)
            report("changed", asdict(idle.autoscaler.update(min_containers=2, max_containers=3)))
            for _ in range(100):
                stats = idle.get_current_stats()
                if stats.input_headroom == 2:
                    break
                time.sleep(0.2)
            report("stats", asdict(stats))
            report("refused", attempt(idle.autoscaler.update, max_containers=1))
            report("unbounded", asdict(idle.autoscaler.update(min_containers=None, max_containers=None)))
        """
    ).ok()
    assert run["before"] == {
        "min_containers": 0, "max_containers": None, "scaledown_window": 7, "buffer_containers": 0
    }  # fmt: skip
    assert run["none"] == 0
    assert (run["changed"]["min_containers"], run["changed"]["max_containers"]) == (2, 3)
    stats = {"backlog": 0, "num_total_runners": 2, "num_running_inputs": 0, "input_headroom": 2}
    assert run["stats"] == stats
    assert "min_containers (2)" in run["refused"]["error"]
    assert run["unbounded"] == run["before"]


def test_the_tree_of_a_call(client: Client) -> None:
    run = client.program(
        """
        app = modal.App("tree")

        @app.function()
        def leaf(x):
            if x < 0:
                raise ValueError(x)
            return x

        @app.cls()
        class Middle:
            @modal.method()
            def add(self, x):
                return sum(leaf.map([x, x]))

        @app.function()
        def top(x):
            try:
                leaf.remote(-1)
            except ValueError:
                return Middle().add.remote(x)

        def tree(nodes):
            return sorted([n.function_name, n.status.name, tree(n.children)] for n in nodes)

        @app.local_entrypoint()
        def main():
            call = top.spawn(3)
            report("result", call.get())
            report("tree", tree(call.get_call_graph()))
        """
    ).ok()
    assert run["result"] == 6
    leaves = [["leaf", "SUCCESS", []]] * 2
    below = [["Middle.add", "SUCCESS", leaves], ["leaf", "FAILURE", []]]
    assert run["tree"] == [["top", "SUCCESS", below]]


def test_variants_follow_their_base_and_settings_last_until_the_next_deployment(client: Client, server: Server) -> None:
    program = str(client.write("deployed.py", DEPLOYED))
    client.modal("deploy", program, env={"VERSION": "1"}).ok()
    user = client.start_program(
        """
        app = modal.App("user")

        @app.local_entrypoint()
        def main():
            Model = modal.Cls.from_name("scaling-deployed", "Model")
            plain, other = Model(), Model.with_options(env={"EXTRA": "yes"})(name="other")
            report("first", [plain.describe.remote(), other.describe.remote()])
            report("refused", attempt(Model.with_options(gpu="H100:64")().describe.remote))
            plain.update_autoscaler(buffer_containers=1)
            print("ready", flush=True)
            while not os.path.exists("restarted"):
                time.sleep(0.1)
            report("kept", plain.update_autoscaler().buffer_containers)
            print("kept", flush=True)
            while not os.path.exists("deployed"):
                time.sleep(0.1)
            report("second", [plain.describe.remote(), other.describe.remote()])
            report("reset", plain.update_autoscaler().buffer_containers)
        """,
        name="user.py",
    )
    user.wait_for_text("ready")
    server.kill_server()
    (client.folder / "restarted").touch()
    user.wait_for_text("kept")
    client.modal("deploy", program, env={"VERSION": "2"}).ok()
    (client.folder / "deployed").touch()
    run = user.end().ok()
    listed = client.modal("function", "variants", "scaling-deployed/Model.*", "--json").ok()
    client.modal("app", "stop", "-y", "scaling-deployed").ok()
    assert run["first"] == [["plain", "1", None], ["other", "1", "yes"]]
    assert "64 x H100" in run["refused"]["error"]
    assert run["kept"] == 1
    assert run["second"] == [["plain", "2", None], ["other", "2", "yes"]]
    assert run["reset"] == 0
    assert '"name": "other"' in listed.stdout


def test_what_functions_did_is_counted_and_listed(client: Client) -> None:
    run = client.program(
        """
        import subprocess
        app = modal.App("counted")

        @app.function(timeout=1, max_containers=1)
        def one(x):
            if x == 3:
                raise ValueError(x)
            time.sleep(5 if x == 4 else 0)

        @app.cls()
        class Model:
            size: int = modal.parameter(default=0)

            @modal.method()
            def describe(self):
                return self.size

        @app.local_entrypoint()
        def main():
            list(one.map(range(5), return_exceptions=True))
            report("sizes", [Model().describe.remote(), Model(size=2).describe.remote()])
            stats = one.stats()
            report("inputs", [stats.input_success_count, stats.input_failure_count, stats.input_timeout_count])
            report("shown", sorted(stats.input_percentile_stats) + sorted(stats.container_percentile_stats))
            report("container", one.stats(container="ta-0000000000000000000000").input_success_count)
            whole = app.stats()
            report("app", {name: row.counts.calls.total for name, row in whole.functions.items()})
            report("failed", whole.functions.total.calls.failed)
            for name, id in {"one": one.object_id, "Model": whole.functions["Model.*"].object_id}.items():
                command = [sys.executable, "-m", "modal", "function", "calls", id, "--all-variants", "--json"]
                for more in [[], ["--since", "1h"]]:
                    listed = json.loads(subprocess.run(command + more, stdout=subprocess.PIPE, check=True).stdout)
                    report(name + "".join(more[:1]), [[call["service_method_name"], call["status"]] for call in listed])
        """
    ).ok()
    assert run["sizes"] == [0, 2]
    assert run["inputs"] == [3, 1, 1]
    assert {"Execution time (s)", "End-to-end latency (s)", "Startup time (s)"} <= set(run["shown"])
    assert run["container"] == 0
    assert run["app"] == {"one": 5, "Model.*": 2}
    assert run["failed"] == 2
    assert sorted(run["one"]) == sorted([[None, s] for s in ["success"] * 3 + ["failure", "timeout"]])
    assert run["one--since"] == run["one"][::-1]
    assert run["Model"] == run["Model--since"] == [["describe", "success"]] * 2
