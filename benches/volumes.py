"""Volumes against the plain file system: uploads, reads in containers, small changes of many files, mounts."""

from pathlib import Path

from servers import Evoke
from session import Session
from table import Row, median, spread

UPLOAD_BYTES = 1 << 30
UPLOADS = 3
READS = 7
FILES = 100_000
COMMITS = 10
STARTS = 5
# What a commit of one file among many, and a mount of all of them, may take (milliseconds).
COMMIT_MS, MOUNT_MS = 200.0, 50.0


def measure(evoke: Evoke, work: Path) -> list[Row]:
    with Session("volumes.py", evoke.client_env(), work / "volumes-client", {"BENCH_WORK": str(work)}) as session:
        print(f"  upload of {UPLOAD_BYTES >> 20} MiB: {UPLOADS} times", flush=True)
        uploads = session.do("upload", size=UPLOAD_BYTES, rounds=UPLOADS)
        print(f"  reads in a container: {READS} times", flush=True)
        reads = session.do("read", rounds=READS)
        print(f"  {FILES} files: written and committed, then {COMMITS} commits of one and {STARTS} mounts", flush=True)
        session.do("fill", files=FILES)
        changes = session.do("change", rounds=COMMITS)
        if changes["files"] != FILES:
            raise RuntimeError(f"the volume has {changes['files']} files and not {FILES}")
        starts = [session.do("starts") for _ in range(STARTS)]
        with_volume = [root_ms(evoke, start["mounted"]) for start in starts]
        without = [root_ms(evoke, start["plain"]) for start in starts]
    size = f"{UPLOAD_BYTES >> 20} MiB"
    commits = [seconds * 1e3 for seconds in changes["commit"]]
    return [
        share(f"upload of {size}", uploads, "cp and sha256sum", "upload", 0.5, "new random bytes each round"),
        share(f"sequential read of {size}", reads, "local", "volume", 0.9, "the same bytes, both in memory, in turns"),
        Row(
            f"commit of one file among {FILES}",
            f"VolumeCommit as the container waits for it; {spread(commits, '.0f')} ms",
            median(commits),
            COMMIT_MS,
            "ms",
            evidence="one container, one file written anew before each commit",
            details={"ms": commits},
        ),
        Row(
            f"mount of {FILES} files",
            f"a container is made in {median(with_volume):.0f} ms with the volume, in {median(without):.0f} ms without",
            median(with_volume) - median(without),
            MOUNT_MS,
            "ms",
            evidence=f"{STARTS} containers each, from the decision until the program begins",
            details={"with": with_volume, "without": without},
        ),
    ]


def share(what: str, found: dict[str, list[float]], base: str, ours: str, goal: float, evidence: str) -> Row:
    """How much of the baseline's speed is reached."""
    ratios = [other / mine for other, mine in zip(found[base], found[ours], strict=True)]
    measured = f"{median(found[ours]):.2f} s against {median(found[base]):.2f} s ({base}); rounds {spread(ratios)}"
    return Row(what, measured, median(ratios), goal, "times", False, evidence, dict(found))


def root_ms(evoke: Evoke, served: tuple[str, bool]) -> float:
    """How long a container took from the decision to start it until its program began."""
    task, complete = served
    if not complete:
        raise RuntimeError(f"{task} did not see what is in the volume")
    wanted = ("queued to placed", "placed to root", "root to slot", "queued to slot", "slot to exec")
    return sum(phase["ms"] for phase in evoke.explain(task)["phases"] if phase["phase"] in wanted)
