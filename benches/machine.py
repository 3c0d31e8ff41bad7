"""What the kernel knows of processes: CPU time and memory."""

import os
import time
from pathlib import Path

# Of a process's clocks, the one that counts the scheduler's exact run time (linux/posix-timers.h).
CPUCLOCK_SCHED = 2
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def children_of(pid: int) -> list[int]:
    """The processes that a process started, whichever of its threads did."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time so far, ended threads included; as fine as a tick."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def cpu_seconds_exact(pid: int) -> float:
    """CPU time so far, ended threads included, exact: for times too short for ticks."""
    # The number that Linux gives the CPU clock of a process (clock_getcpuclockid); Python has no call for it.
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)


def pss_bytes(pid: int) -> int:
    """Memory, what is shared counted by its share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel tells no PSS of process {pid}")


def steal_seconds() -> float:
    """Time that this machine's processors were not given to it."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) / TICKS_PER_S


def busy_seconds() -> float:
    """CPU time that everything on this machine used."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS_PER_S
