"""What is asked of an older kernel with control groups of version 2 alone: calls, limits, network, an end by memory,
a disk that is full."""

import errno
import subprocess

import modal

MEMORY_MIB_MAX = 160
DISK_MIB_MAX = 48

app = modal.App("control-groups-v2", image=modal.Image.debian_slim())


@app.function()
def square(x: int) -> int:
    print("squaring", x)
    return x * x


@app.function(memory=(64, MEMORY_MIB_MAX), cpu=(0.1, 0.5))
def limits() -> dict[str, str]:
    """The container's own control group, which its view shows as the root."""
    return {name: open(f"/sys/fs/cgroup/{name}").read().strip() for name in ("memory.max", "cpu.max")}


@app.function(memory=(64, MEMORY_MIB_MAX))
def greedy() -> int:
    return sum(bytearray(4 * MEMORY_MIB_MAX << 20)[:: 1 << 12]) or len(b"\1" * (4 * MEMORY_MIB_MAX << 20))


@app.function(ephemeral_disk=DISK_MIB_MAX)
def fill() -> tuple[int, int]:
    """How many MiB could be written, and the error of what came then."""
    written = 0
    try:
        with open("/root/large", "wb", buffering=0) as file:
            while written < 10 * DISK_MIB_MAX << 20:
                written += file.write(bytes(1 << 20))
    except OSError as error:
        return written >> 20, error.errno or 0
    return written >> 20, 0


@app.function()
def interfaces() -> str:
    return open("/proc/net/dev").read()


@app.local_entrypoint()
def main() -> None:
    assert square.remote(7) == 49
    assert list(square.map(range(20))) == [x * x for x in range(20)]
    found = limits.remote()
    assert found == {"memory.max": str(MEMORY_MIB_MAX << 20), "cpu.max": "50000 100000"}, found
    written, why = fill.remote()
    assert DISK_MIB_MAX / 2 <= written <= DISK_MIB_MAX and why in (errno.EDQUOT, errno.ENOSPC), (written, why)
    assert "eth0" in interfaces.remote()
    try:
        greedy.remote()
    except modal.exception.RemoteError as error:
        assert f"{MEMORY_MIB_MAX} MiB" in str(error), error
    else:
        raise AssertionError("a container went over its memory limit and lived")
    print("kernel:", subprocess.check_output(["uname", "-r"], text=True).strip())
