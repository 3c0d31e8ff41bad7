"""What clients and containers do with a volume, timed; run by the benchmark."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import modal

app = modal.App("bench-volumes", image=modal.Image.debian_slim())
large = modal.Volume.from_name("bench-large", create_if_missing=True)
many = modal.Volume.from_name("bench-many", create_if_missing=True)
FOLDERS = 100


def read_through(path):
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        begin = time.perf_counter()
        while file.readinto(buffer):
            pass
        return time.perf_counter() - begin


@app.function(max_containers=1, volumes={"/large": large}, timeout=900)
def read(rounds):
    """Reads a file of the volume and its copy on the container's own file system, in turns, both in memory."""
    shutil.copyfile("/large/file", "/root/copy")
    seconds = {"volume": [], "local": []}
    for turn in range(rounds + 1):
        found = {"volume": read_through("/large/file"), "local": read_through("/root/copy")}
        if turn:  # the first one is the disk's
            for name, took in found.items():
                seconds[name].append(took)
    return seconds


@app.function(max_containers=1, volumes={"/many": many}, timeout=1800)
def fill(files):
    for number in range(files):
        folder = f"/many/{number % FOLDERS}"
        if number < FOLDERS:
            os.makedirs(folder, exist_ok=True)
        Path(f"{folder}/{number}").write_text(str(number))
    many.commit()
    return {"files": files}


@app.function(max_containers=1, volumes={"/many": many}, timeout=900)
def change(rounds):
    seconds = []
    for turn in range(rounds):
        Path("/many/7/7").write_text(f"changed {turn}")
        begin = time.perf_counter()
        many.commit()
        seconds.append(time.perf_counter() - begin)
    return {"commit": seconds, "files": sum(len(names) for _, _, names in os.walk("/many"))}


@app.function(single_use_containers=True, volumes={"/many": many})
def mounted():
    return os.environ["MODAL_TASK_ID"], os.path.exists("/many/7/7")


@app.function(single_use_containers=True)
def plain():
    return os.environ["MODAL_TASK_ID"], True


def upload(_, size, rounds):
    """The same bytes put into the volume, and copied and hashed beside it; new ones each round."""
    work = Path(os.environ["BENCH_WORK"])
    source, copy = work / "source", work / "copy"
    seconds = {"upload": [], "cp and sha256sum": []}
    for _ in range(rounds):
        with source.open("wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        begin = time.perf_counter()
        with large.batch_upload(force=True) as batch:
            batch.put_file(str(source), "/file")
        uploaded = time.perf_counter()
        subprocess.run(["cp", str(source), str(copy)], check=True)
        subprocess.run(["sha256sum", str(copy)], check=True, stdout=subprocess.DEVNULL)
        ended = time.perf_counter()
        seconds["upload"].append(uploaded - begin)
        seconds["cp and sha256sum"].append(ended - uploaded)
    source.unlink()
    copy.unlink()
    return seconds


if __name__ == "__main__":
    import driver

    driver.COMMANDS.update(
        upload=upload,
        read=lambda _, rounds: read.remote(rounds),
        fill=lambda _, files: fill.remote(files),
        change=lambda _, rounds: change.remote(rounds),
        starts=lambda _: {"mounted": mounted.remote(), "plain": plain.remote()},
    )
    driver.serve(app, None)
