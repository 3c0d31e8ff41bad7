"""Containers: what code inside can see and reach, limits, deaths, and logs."""

import os
import signal

import pytest
from support.client import Client, Run
from support.inside import InsideOf, processes_of
from support.leftovers import container_traces
from support.server import Server
from support.waits import wait_until

ISOLATION = """
import socket, subprocess
app = modal.App("isolation")

@app.function()
def look():
    def read(path):
        try:
            with open(path) as file:
                return file.read()
        except OSError as error:
            return f"{type(error).__name__}"
    def refused(action, *args):
        try:
            action(*args)
        except OSError as error:
            return error.strerror
        return "allowed"
    shm = os.statvfs("/dev/shm")
    libc = __import__("ctypes").CDLL(None, use_errno=True)
    def call(name, *args):
        return "allowed" if getattr(libc, name)(*args) == 0 else os.strerror(__import__("ctypes").get_errno())
    return {
        "uid": os.getuid(),
        "hostname": socket.gethostname(),
        "pids": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "init": read("/proc/1/comm").strip(),
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "routes": read("/proc/net/route"),
        "shm": shm.f_blocks * shm.f_frsize,
        "shm type": [line.split()[2] for line in read("/proc/mounts").splitlines() if line.split()[1] == "/dev/shm"],
        "kernel memory": read("/proc/kcore")[:20],
        "set hostname": refused(socket.sethostname, "other"),
        "sysctl": refused(lambda: open("/proc/sys/kernel/core_pattern", "w").write("x")),
        "mount": call("mount", b"none", b"/mnt", b"tmpfs", 0, None),
        "unshare": call("unshare", 0x10000000),
        "module": call("syscall", 313, -1, b"", 0),
        "devices": sorted(os.listdir("/dev")),
        "terminal": refused(lambda: [os.close(fd) for fd in os.openpty()]),
        "writable": refused(lambda: open("/root/file", "w").write("mine")),
        "env": {k: v for k, v in os.environ.items() if k.startswith("MODAL_")},
        "secrets": [k for k in os.environ if "TOKEN" in k and os.environ[k]],
    }

@app.function()
def stay():
    import signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    print("here", os.environ["MODAL_TASK_ID"], flush=True)
    return signal.sigtimedwait({signal.SIGUSR2}, 60) is not None

@app.function(block_network=True)
def cut_off():
    def reach(address):
        try:
            socket.create_connection(address, 2).close()
        except OSError as error:
            return type(error).__name__ + str(error.errno)
        return "reached"
    return [sorted(os.listdir("/sys/class/net")), reach(("1.1.1.1", 80)), look_up("example.com")]

def look_up(name):
    try:
        socket.getaddrinfo(name, 80)
    except OSError:
        return "no"
    return "yes"

@app.local_entrypoint()
def main():
    report("look", look.remote())
    report("stay", stay.remote())
    report("cut off", cut_off.remote())
"""


@pytest.fixture(scope="module")
def isolation(module_client: Client) -> Run:
    process = module_client.start_program(ISOLATION, "isolation.py")
    task_id = process.wait_for_text("here ta-").text.split()[1]
    inside = InsideOf(task_id)
    outside = {name: inside.status(name) for name in ("Uid", "CapEff", "Seccomp", "NoNewPrivs")}
    shared = inside.shares()
    os.kill(inside.pid, signal.SIGUSR2)
    run = process.end().ok()
    run.reports += [("outside", outside, 0.0), ("shared", shared, 0.0), ("pid", inside.pid, 0.0)]
    return run


def test_root_inside_is_nobody_outside(isolation: Run) -> None:
    assert isolation["look"]["uid"] == 0
    # Every container's users are a range of its own far above the machine's.
    assert all(int(uid) >= 0x7000_0000 for uid in isolation["outside"]["Uid"].split())


def test_no_namespace_is_shared_with_the_machine(isolation: Run) -> None:
    assert isolation["shared"] == []
    look = isolation["look"]
    assert len(look["pids"]) < 20, look["pids"]
    assert look["hostname"] != os.uname().nodename


def test_the_kernel_is_closed_as_far_as_it_can_be(isolation: Run) -> None:
    assert isolation["outside"]["Seccomp"] == "2"
    assert isolation["outside"]["NoNewPrivs"] == "1"
    look = isolation["look"]
    for name in ("set hostname", "sysctl", "mount", "unshare", "module"):
        assert look[name] != "allowed", name
    assert look["kernel memory"] in ("", "PermissionError", "FileNotFoundError")
    assert look["writable"] == "allowed"


def test_the_usual_devices_and_a_shared_memory_of_its_own(isolation: Run) -> None:
    devices = set(isolation["look"]["devices"])
    assert {"null", "zero", "full", "random", "urandom", "tty", "shm", "fd", "stdin", "stdout", "stderr"} <= devices
    assert not {name for name in devices if name.startswith(("sd", "vd", "nvme", "mem", "kmsg", "loop"))}
    assert isolation["look"]["terminal"] == "allowed"
    assert isolation["look"]["shm type"] == ["tmpfs"]
    assert isolation["look"]["shm"] >= 64 << 20


def test_the_network_is_eth0_or_nothing(isolation: Run) -> None:
    look = isolation["look"]
    assert look["interfaces"] == ["eth0", "lo"]
    assert any(line.split()[1] == "00000000" for line in look["routes"].splitlines()[1:]), look["routes"]
    interfaces, reached, resolved = isolation["cut off"]
    assert interfaces == ["lo"]
    assert reached != "reached" and resolved == "no"


def test_a_container_holds_no_credentials(isolation: Run) -> None:
    assert isolation["look"]["secrets"] == []
    assert isolation["stay"] is True


DEATHS = """
app = modal.App("deaths")

@app.function(memory=(128, 256), max_containers=1)
def hungry(mib):
    data = bytearray(mib << 20)
    data[:: 4096] = b"x" * len(data[:: 4096])
    return len(data)

@app.function(max_containers=1)
def drops_dead(how):
    if how == "exit":
        os._exit(7)
    if how == "segfault":
        import ctypes
        ctypes.string_at(0)
    if how == "kill":
        os.kill(os.getpid(), 9)
    return how

@app.function(retries=2, max_containers=1)
def survives_a_retry():
    marker = modal.current_input_id()
    return marker

@app.local_entrypoint()
def main():
    report("enough", hungry.remote(64))
    report("too much", attempt(hungry.remote, 1024))
    report("after", hungry.remote(8))
    for how in ("exit", "segfault", "kill", "live"):
        report(how, attempt(drops_dead.remote, how))
"""


@pytest.fixture(scope="module")
def deaths(module_client: Client) -> Run:
    return module_client.program(DEATHS, "deaths.py").ok()


def test_memory_beyond_the_hard_limit_is_an_error_that_says_so(deaths: Run) -> None:
    assert deaths["enough"] == 64 << 20
    assert "memory" in deaths["too much"]["error"].lower(), deaths["too much"]
    assert deaths["after"] == 8 << 20


def test_a_container_that_dies_fails_its_call_and_says_how(deaths: Run) -> None:
    assert "status 7" in deaths["exit"]["error"], deaths["exit"]
    assert "signal 11" in deaths["segfault"]["error"], deaths["segfault"]
    assert "signal 9" in deaths["kill"]["error"], deaths["kill"]
    assert deaths["live"]["value"] == "live"


@pytest.mark.parametrize(
    ("line", "says"),
    [("raise ImportError('no such thing here')", "no such thing here"), ("os._exit(3)", "status 3")],
)
def test_a_crash_loop_is_a_clear_failure(client: Client, line: str, says: str) -> None:
    run = client.program(
        f"""
        app = modal.App("crash-loop")

        if not modal.is_local():
            {line}

        @app.function()
        def never():
            return 1

        @app.local_entrypoint()
        def main():
            report("never", attempt(never.remote))
        """
    ).ok()
    found = run["never"]
    assert "error" in found and found["seconds"] < 60, found
    assert says in found["error"] + run.output, run.describe()


LOGS = """
app = modal.App("logs")

@app.function(max_containers=1)
def speak(name, n):
    for i in range(n):
        print(f"{name} out {i} {time.time()}")
        print(f"{name} err {i}", file=sys.stderr)
        time.sleep(0.2)
    sys.stdout.write(f"{name} without an end")
    return os.environ["MODAL_TASK_ID"]

@app.function(max_containers=1)
def odd_bytes():
    os.write(1, b"caf\\xc3\\xa9 \\xff\\xfe broken\\n")
    os.system("echo from a child; echo to its stderr >&2")
    return True

@app.local_entrypoint()
def main():
    first, second = speak.spawn("first", 4), speak.spawn("second", 2)
    report("task", first.get())
    second.get()
    report("calls", [first.object_id, second.object_id])
    report("app", app.app_id)
    report("odd", odd_bytes.remote())
"""


@pytest.fixture(scope="module")
def logs(module_client: Client) -> Run:
    return module_client.program(LOGS, "logs.py").ok()


def test_logs_arrive_while_they_are_written(logs: Run) -> None:
    late = [line.at - float(line.text.split()[-1]) for line in logs.lines if " out " in line.text]
    assert len(late) == 6
    # It prints every 0.2 s: a line must not wait for the next ones.
    assert max(late) < 0.6, late
    for i in range(4):
        assert f"first err {i}" in logs.output
    assert "first without an end" in logs.output


def test_logs_are_tagged_with_call_and_container(logs: Run, module_client: Client) -> None:
    first, second = logs["calls"]
    for call, mine, other in ((first, "first", "second"), (second, "second", "first")):
        run = module_client.modal("app", "logs", logs["app"], "--function-call", call, "--tail", "1000").ok()
        assert f"{mine} out 0" in run.stdout and f"{mine} err 1" in run.stdout, run.describe()
        assert other not in run.stdout
    run = module_client.modal("container", "logs", logs["task"], "--all").ok()
    assert "first out 3" in run.stdout and "second out 1" in run.stdout
    run = module_client.modal("app", "logs", logs["app"], "--source", "stderr", "--tail", "1000").ok()
    assert "first err 0" in run.stdout and "first out 0" not in run.stdout


def test_logs_may_hold_anything(logs: Run) -> None:
    assert "café" in logs.output and "broken" in logs.output
    assert "from a child" in logs.output and "to its stderr" in logs.output


def test_a_line_of_100_mb_is_kept_whole_and_harms_nothing(client: Client, server: Server) -> None:
    size = 100_000_000
    # Without the client's own view of the logs, whose handling of a line grows with the square of its length.
    program = client.write(
        "flood.py",
        f"""
        app = modal.App("flood")

        @app.function(max_containers=1)
        def flood(size):
            sys.stdout.write("\\x01" * size + "\\n")
            print("after the flood")
            return size

        @app.function()
        def beside():
            return time.time()

        @app.local_entrypoint()
        def main():
            beside.remote()
            call = flood.spawn({size})
            report("beside", attempt(beside.remote))
            report("flood", call.get())
            report("app", app.app_id)
        """,
    )
    run = client.modal("run", "--quiet", str(program), timeout_s=200).ok()
    assert run["flood"] == size
    assert run["beside"]["seconds"] < 5
    kept = b"".join(path.read_bytes() for path in (server.data / "logs" / run["app"]).iterdir() if path.is_file())
    assert kept.count(b"\x01") >= size
    assert b"after the flood" in kept
    assert server.status()["up"]


def test_nothing_is_left_of_containers_that_ended(client: Client, server: Server) -> None:
    run = client.program(
        """
        app = modal.App("gone")

        @app.function()
        def task_id(i):
            return os.environ["MODAL_TASK_ID"]

        @app.local_entrypoint()
        def main():
            report("tasks", sorted(set(task_id.map(range(20)))))
        """
    ).ok()
    wait_until(lambda: server.status()["containers"] == 0, "no containers", 40)
    wait_until(lambda: not container_traces(server.data), "no traces of containers", 20)
    for task in run["tasks"]:
        assert processes_of(task) == []
