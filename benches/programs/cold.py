"""Two functions of one image: one whose container soon ends, one whose container stays and times the import."""

import importlib.util
import os
import subprocess
import sys
import time

import modal

app = modal.App("bench-cold", image=modal.Image.debian_slim())

IMPORT = "import modal._container_entrypoint"


@app.function(max_containers=1, scaledown_window=2)
def noop():
    return os.environ.get("MODAL_TASK_ID")


@app.function(max_containers=1, scaledown_window=1200)
def time_import():
    """A fresh interpreter in this container's root, from its start to its end, with nothing but the import."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORT], check=True)
    took = time.perf_counter() - begin
    return {"seconds": took, "executable": sys.executable, "compiled": compiled()}


def compiled():
    """Whether the client's modules have their bytecode beside them."""
    entrypoint = importlib.util.find_spec("modal._container_entrypoint")
    return os.path.exists(importlib.util.cache_from_source(entrypoint.origin))


def cold_call(noop, **_):
    begin = time.perf_counter()
    task = noop.remote()
    return {"seconds": time.perf_counter() - begin, "task": task}


def import_call(_noop, **_):
    return time_import.remote()


if __name__ == "__main__":
    import driver

    driver.COMMANDS.update({"cold": cold_call, "import": import_call})
    driver.serve(app, noop)
