"""A template: an interpreter that has imported the client, and forks for each container that asks for it.

It runs in a container of its own, in whose namespaces those containers are made. EVOKE_TEMPLATE says that this
interpreter is one; its standard input is then the socket by which it is asked. Each question comes with two
descriptors: the container's init, and a line to it. What is forked enters the container's namespaces, gives up what
the init says on that line, is told there what it is to run, and then is no different from a program that was executed.
"""

import array
import contextlib
import gc
import json
import os
import socket
import struct
import sys
from typing import Any

# Says that this interpreter is a template.
ASKED = "EVOKE_TEMPLATE"

# The entrypoint, of which everything is imported but itself.
ENTRYPOINT = "modal._container_entrypoint"
# What the lean ways add, whichever of them a container takes.
LEAN = ("connection", "frames", "inputs", "line", "start", "stream", "transport")

# How messages are packed: see the guest's packets.
INLINE = b"\0"
IN_FILE = 1
PACKET_MAX = (32 << 10) + 1
DESCRIPTORS_MAX = 8

CLONE_NEWPID = 0x20000000
# Mounts, control groups, host name, interprocess communication, users, network.
CLONE_OTHERS = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x40000000
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION_3 = 0x20080522
CAPABILITIES = 64


def serve() -> None:
    """Answers questions until nobody can ask any more, then exits. Returns in what was forked, once it is told what
    it is to run."""
    control = socket.socket(fileno=os.dup(0))
    put_null_at_standard_input()
    try:
        import_everything()
        own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        kernel = Kernel()
    except BaseException as error:
        say(control, {"Failed": {"why": f"{type(error).__name__}: {error}"}})
        os._exit(1)
    gc.collect()
    # What is there now is shared by all forks; looking at it would copy it.
    gc.freeze()
    say(control, "Ready")
    while True:
        try:
            asked = hear(control)
        except (OSError, KeyboardInterrupt):
            os._exit(0)
        if asked is None:
            os._exit(0)
        _, descriptors = asked
        if len(descriptors) != 2:
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        init, line = descriptors[0], socket.socket(fileno=descriptors[1])
        if fork_into(kernel, init, line, control, own_pids):
            return
        line.close()
        os.close(init)


def fork_into(kernel: "Kernel", init: int, line: socket.socket, control: socket.socket, own_pids: int) -> bool:
    """Forks into a container; whether this is what was forked."""
    between = 0
    try:
        kernel.enter(init, CLONE_NEWPID)
        try:
            between = os.fork()
        finally:
            if between != 0:
                # Else the next fork would be in that container too.
                kernel.enter(own_pids, CLONE_NEWPID)
        if between == 0:
            part(kernel, init, line, control, own_pids)
            return True
        # Once it has ended, what it forked is the child of the container's init.
        os.waitpid(between, 0)
        say(line, "Parted")
    except OSError as error:
        complain(line, error)
        if between == 0:
            # Where its children would be born is not known any more.
            os._exit(1)
    return False


def part(kernel: "Kernel", init: int, line: socket.socket, control: socket.socket, own_pids: int) -> None:
    """In what was forked, which is in the container's pid namespace: forks once more and ends, so that the container's
    init becomes the parent. Returns in the second fork, as the container's program."""
    try:
        pid = os.fork()
        if pid:
            say(line, {"Forked": {"pid": pid}})
            os._exit(0)
        control.close()
        os.close(own_pids)
        kernel.enter(init, CLONE_OTHERS)
        os.close(init)
        os.setsid()
        rules = told(line)[0]
        kernel.give_up(rules["capabilities"], rules["filter"])
        say(line, "Ready")
        program, descriptors = told(line)
        become(program, descriptors)
        line.close()
    except BaseException as error:
        complain(line, error)
        os._exit(1)


def become(program: dict[str, Any], descriptors: list[int]) -> None:
    """Takes on what a program has that was executed."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(program["env"])
    folder = program["cwd"] or "/"
    try:
        os.chdir(folder)
    except FileNotFoundError:
        os.makedirs(folder)
        os.chdir(folder)
    if not getattr(sys.flags, "safe_path", False):
        # As `python -m` begins: with the folder that it was started in.
        sys.path[0] = os.getcwd()
    # What the folders of the path held is not what they hold here.
    sys.path_importer_cache.clear()
    # What is a template's alone.
    sys.modules.pop(__name__, None)


def import_everything() -> None:
    """What a container's program imports before it knows whose it is."""
    import importlib

    importlib.import_module(ENTRYPOINT)
    # It is run as the main module; one that is there already would be warned of.
    package, _, name = ENTRYPOINT.rpartition(".")
    del sys.modules[ENTRYPOINT]
    vars(sys.modules[package]).pop(name, None)
    for module in LEAN:
        importlib.import_module(f"evoke_runtime.{module}")
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"{threads} threads run after the imports, and a fork has only one of them")


class Kernel:
    """The system calls that Python has no names for in every release."""

    def __init__(self) -> None:
        import ctypes

        self._ctypes = ctypes
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
        self._libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]

    def enter(self, process: int, kinds: int) -> None:
        """Enters the namespaces of a process, or one by its own descriptor."""
        self._check(self._libc.setns(process, kinds), "entering namespaces")

    def give_up(self, capabilities: int, instructions: list[tuple[int, int, int, int]]) -> None:
        """Keeps these capabilities of the container's root and no others, and takes on a system call filter."""
        ctypes = self._ctypes
        os.setresgid(0, 0, 0)
        os.setgroups([])
        os.setresuid(0, 0, 0)
        for number in range(CAPABILITIES):
            # The kernel refuses numbers that it does not know.
            if not capabilities >> number & 1 and self._libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
                break
        self._check(self._libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient capabilities")
        low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
        head = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        sets = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
        self._check(self._libc.capset(head, sets), "reducing the capabilities")
        # Changing the user cleared it, and a program could not look at itself.
        self._check(self._libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "opening /proc/self")

        # The kernel's `struct sock_filter`s, and the `struct sock_fprog` that names them.
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in instructions))
        program = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(code)))
        address = ctypes.addressof(program)
        self._check(self._libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, address, 0, 0), "the system call filter")

    def _check(self, result: int, what: str) -> None:
        if result != 0:
            error = self._ctypes.get_errno()
            raise OSError(error, f"{what}: {os.strerror(error)}")


def put_null_at_standard_input() -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def say(to: socket.socket, message: Any) -> None:
    to.sendall(INLINE + json.dumps(message).encode())


def complain(line: socket.socket, error: BaseException) -> None:
    # Whoever would hear it may have given up.
    with contextlib.suppress(OSError):
        say(line, {"Failed": {"why": f"{type(error).__name__}: {error}"}})


def told(line: socket.socket) -> tuple[Any, list[int]]:
    heard = hear(line)
    if heard is None:
        raise EOFError("the container does not want it any more")
    body, descriptors = heard
    return json.loads(body), descriptors


def hear(socket_: socket.socket) -> tuple[bytes, list[int]] | None:
    """One message with its descriptors; none once the other end is closed."""
    size = array.array("i").itemsize
    room = socket.CMSG_SPACE(DESCRIPTORS_MAX * size)
    body, ancillary, _, _ = socket_.recvmsg(PACKET_MAX, room, socket.MSG_CMSG_CLOEXEC)
    if not body:
        return None
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(data[: len(data) - len(data) % size])
    descriptors = list(numbers)
    if body[0] != IN_FILE:
        return body[1:], descriptors
    # Too long for a packet: the first descriptor is a file that holds it.
    file = descriptors.pop(0)
    try:
        return os.pread(file, int.from_bytes(body[1:9], "little"), 0), descriptors
    finally:
        os.close(file)
