"""An app of one function that does nothing; run by hand, it measures what it is told to on its standard input."""

import os
import sys

import modal

# These shape the function where it is defined; inside its container they mean nothing.
CONTAINERS_MAX = int(os.environ.get("BENCH_CONTAINERS_MAX", "1")) or None
SCALEDOWN_S = int(os.environ.get("BENCH_SCALEDOWN_S", "1200"))

app = modal.App("bench-noop", image=modal.Image.debian_slim())


@app.function(max_containers=CONTAINERS_MAX, scaledown_window=SCALEDOWN_S)
def noop(question=None):
    return describe() if question == "who" else None


def describe():
    """Where and by what a call was served."""
    import google.protobuf.internal.api_implementation as protobuf
    import grpclib

    return {
        "task": os.environ.get("MODAL_TASK_ID"),
        "pid": os.getpid(),
        "executable": sys.executable,
        # Inside an environment the interpreter that it was made from, which is the same on the machine.
        "base_executable": os.path.realpath(sys.executable),
        "python": sys.version,
        "modal": modal.__version__,
        "grpclib": grpclib.__version__,
        "protobuf": protobuf.Type(),
        "ways": ways(),
    }


def ways():
    """The lean ways that are taken; none is the official way."""
    lean = sys.modules.get("evoke_runtime.lean")
    taken = list(lean.taken) if lean else []
    if "transport" in taken and sys.modules["evoke_runtime.transport"].answering() is None:
        raise RuntimeError("the platform does not answer in frames")
    return taken


if __name__ == "__main__":
    import driver

    driver.serve(app, noop)
