"""Containers whose program a template forked: that a user's program cannot tell, that nothing is lost whatever
happens to templates, and that they leave nothing behind."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.client import Client
from support.server import Server

# Whether a container's program was forked: then it has a system call filter more.
FORKED = """
    def forked():
        return "Seccomp_filters:\t2" in open("/proc/self/status").read()

    def until_forked(function):
        begin = time.monotonic()
        while not function.remote():
            assert time.monotonic() < begin + 60, "no container was forked"
"""

# What a program sees of itself and of its surroundings, without what differs between any two containers.
LOOK = """
    def look():
        import atexit, platform, resource, signal, stat, subprocess, threading
        status = dict(line.strip("\\n").split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
        kept = ("PPid", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd",
                "CapAmb", "NoNewPrivs", "Seccomp")
        mask = os.umask(0o22)
        own = ("MODAL_TASK_ID", "HOSTNAME")
        return {
            "status": {name: status[name] for name in kept},
            "session": os.getsid(0) == os.getpid() == os.getpgid(0),
            "cwd": os.getcwd(),
            "argv": sys.argv,
            "orig_argv": sys.orig_argv,
            "path": sys.path,
            "flags": str(sys.flags),
            "executable": sys.executable,
            "main": [sys.modules["__main__"].__name__, sys.modules["__main__"].__file__],
            "env": {name: value for name, value in sorted(os.environ.items()) if name not in own},
            "given_env": subprocess.run(["env"], capture_output=True, text=True).stdout.count("\\n"),
            "umask": mask,
            "limits": [resource.getrlimit(number) for number in range(16)],
            "standard": [stat.S_IFMT(os.fstat(number).st_mode) for number in range(3)],
            "descriptors": len(os.listdir("/proc/self/fd")),
            "buffering": [sys.stdout.line_buffering, sys.stdout.encoding, sys.stderr.errors],
            "handlers": {int(n): str(signal.getsignal(n)).split(" at ")[0] for n in (2, 10, 13, 15, 17)},
            "main_thread": threading.main_thread().name,
            "oom": open("/proc/self/oom_score_adj").read(),
            "groups": [open(f"/proc/{who}/cgroup").read() for who in (1, "self")],
            "mounts": sorted(line.split()[4] for line in open("/proc/self/mountinfo")),
            "host": platform.node(),
            "root": sorted(os.listdir("/")),
            "commands": open("/proc/self/cmdline").read(),
            "name": open("/proc/self/comm").read(),
            "niceness": os.nice(0),
            "modules": "evoke_runtime.template" in sys.modules,
        }
"""


@pytest.fixture(scope="module")
def server(evoke_bin: Path, folders: Path) -> Iterator[Server]:
    """A server of this file's own, with this machine's files as the base."""
    data = folders / "templates"
    data.mkdir()
    (data / "evoke.toml").write_text('[images]\norder = ["host"]\n[containers]\ntemplates = true\n')
    server = Server(evoke_bin, data).start()
    yield server
    assert server.stop() == 0, server.log_tail()
    assert server.leftovers() == []


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Iterator[Client]:
    client = Client(tmp_path, server.client_env())
    yield client
    client.close()


def path_of(server: Server, task: str) -> str:
    return server.explain(task)["start_path"]


def templates() -> list[int]:
    """The interpreters that are templates."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                is_template = b"EVOKE_TEMPLATE=1" in file.read().split(b"\0")
            with open(f"/proc/{name}/status") as file:
                # What it forked was started with the same environment, deeper in pid namespaces.
                depth = next(line for line in file if line.startswith("NSpid:")).count("\t")
        except (OSError, StopIteration):
            continue
        if is_template and depth == 2:
            found.append(int(name))
    return found


def test_a_program_cannot_tell_that_it_was_forked(server: Server, client: Client) -> None:
    program = (
        FORKED
        + LOOK
        + """
    app = modal.App("templates-look")

    @app.function(single_use_containers=True, secrets=[modal.Secret.from_dict({"GREETING": "hello"})])
    def seen():
        return os.environ["MODAL_TASK_ID"], look()

    @app.function(single_use_containers=True, secrets=[modal.Secret.from_dict({"GREETING": "hello"})])
    def is_forked():
        return forked()

    @app.local_entrypoint()
    def main():
        report("seen", seen.remote())
        until_forked(is_forked)
        report("seen", seen.remote())
    """
    )
    seen: list[tuple[str, dict[str, Any]]] = client.program(program).ok().reported("seen")
    assert [path_of(server, task) for task, _ in seen] == ["plain", "fork"], server.log_tail()
    (_, plain), (_, forked) = seen
    for name in plain:
        assert forked[name] == plain[name], name
    assert forked["env"]["GREETING"] == "hello"


def test_forks_differ_where_chance_decides_and_end_as_programs_do(server: Server, client: Client) -> None:
    program = (
        FORKED
        + """
    app = modal.App("templates-chance")

    @app.function(single_use_containers=True)
    def is_forked():
        return forked()

    @app.function(single_use_containers=True)
    def chance():
        import random, secrets, tempfile, uuid
        drawn = [random.random(), secrets.token_hex(8), str(uuid.uuid4()), tempfile.mktemp(), os.urandom(8).hex()]
        return os.environ["MODAL_TASK_ID"], drawn

    @app.function(single_use_containers=True)
    def work():
        import atexit, concurrent.futures, multiprocessing, subprocess, threading
        atexit.register(lambda: print("said at exit", flush=True))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            threads = sum(pool.map(lambda n: n * n, range(10)))
        forked = multiprocessing.get_context("fork").Pool(2).map(abs, [-1, -2])
        spawned = multiprocessing.get_context("spawn").Pool(1).map(abs, [-3])
        code = subprocess.run([sys.executable, "-c", "import sys; sys.exit(7)"]).returncode
        print("to stdout"); print("to stderr", file=sys.stderr)
        return os.environ["MODAL_TASK_ID"], [threads, forked, spawned, code]

    @app.function(single_use_containers=True)
    def dies(how):
        os.kill(os.getpid(), how)
        time.sleep(60)

    @app.function(single_use_containers=True)
    def raises():
        raise KeyError("mine")

    @app.local_entrypoint()
    def main():
        until_forked(is_forked)
        for _ in range(3):
            report("chance", chance.remote())
        report("work", work.remote())
        report("raises", attempt(raises.remote))
        report("dies", attempt(dies.remote, 9))
    """
    )
    run = client.program(program).ok()
    forks = [drawn for task, drawn in run.reported("chance") if path_of(server, task) == "fork"]
    assert len(forks) >= 2
    for drawn in zip(*forks, strict=True):
        assert len(set(drawn)) == len(drawn), drawn
    task, found = run["work"]
    assert path_of(server, task) == "fork"
    assert found == [285, [1, 2], [3], 7]
    assert run.flat.count("to stdout") == run.flat.count("to stderr") == run.flat.count("said at exit") == 1
    assert "KeyError" in run["raises"]["kinds"] and "mine" in run["raises"]["error"]
    assert "error" in run["dies"]


def test_no_call_is_lost_when_templates_are_killed(server: Server, client: Client) -> None:
    program = """
    app = modal.App("templates-killed")

    @app.function(single_use_containers=True, max_containers=4)
    def square(n):
        return n * n, os.environ["MODAL_TASK_ID"]

    @app.local_entrypoint()
    def main():
        report("first", square.remote(0))
        found = list(square.map(range(60)))
        report("results", [result for result, _ in found])
        report("tasks", [task for _, task in found])
    """
    over = threading.Event()
    kills = []

    def kill_some() -> None:
        chance = random.Random(5)
        while not over.wait(chance.uniform(0.05, 1.5)):
            for pid in templates():
                how = chance.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
                try:
                    os.kill(pid, how)
                    kills.append(how)
                except ProcessLookupError:
                    pass

    killer = threading.Thread(target=kill_some)
    killer.start()
    try:
        run = client.program(program).ok()
    finally:
        over.set()
        killer.join()
    assert run["results"] == [n * n for n in range(60)]
    assert len(set(run["tasks"])) == 60
    assert kills, "no template was there to be killed"


def test_containers_live_on_when_the_server_is_killed_and_templates_are_made_anew(
    server: Server, client: Client
) -> None:
    program = (
        FORKED
        + """
    app = modal.App("templates-restart")

    @app.function(single_use_containers=True)
    def is_forked():
        return forked()

    @app.function()
    def slow(seconds):
        print("it runs", flush=True)
        time.sleep(seconds)
        return os.environ["MODAL_TASK_ID"]

    @app.local_entrypoint()
    def main():
        until_forked(is_forked)
        call = slow.spawn(6)
        report("slow", call.get())
        until_forked(is_forked)
    """
    )
    process = client.start_program(program)
    process.wait_for_text("it runs")
    before = set(templates())
    server.kill_server()
    run = process.end().ok()
    assert path_of(server, run["slow"]) == "fork"
    # It ran once, in a container that lived on.
    assert run.flat.count("it runs") == 1
    assert before and not before & set(templates())
