"""Buckets of an object store in containers, served by rclone, against a store on this machine."""

import hashlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.buckets import KEY_ID, ObjectStore
from support.client import Client
from support.server import Server, on_this_machine
from support.waits import wait_until

SECRET = "a-secret-that-nobody-sees"

pytestmark = pytest.mark.skipif(
    shutil.which("rclone") is None or not os.path.exists("/dev/fuse"),
    reason="needs rclone (scripts/setup test installs it) and /dev/fuse",
)


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    store = ObjectStore().start()
    yield store
    store.stop()


@pytest.fixture(scope="module")
def machine(evoke_bin: Path, folders: Path) -> Iterator[Server]:
    with on_this_machine(evoke_bin, folders / "buckets") as server:
        yield server


def program(store: ObjectStore, functions: str) -> str:
    head = f"""
app = modal.App("buckets")
URL = {store.address!r}
secret = modal.Secret.from_dict({{"AWS_ACCESS_KEY_ID": {KEY_ID!r}, "AWS_SECRET_ACCESS_KEY": {SECRET!r}}})
wrong = modal.Secret.from_dict({{"AWS_ACCESS_KEY_ID": "AKIDWRONG", "AWS_SECRET_ACCESS_KEY": "x"}})

def bucket(name="data", secret=secret, **more):
    return modal.CloudBucketMount(name, bucket_endpoint_url=URL, secret=secret, **more)
"""
    return head + functions


def serving() -> list[int]:
    """The processes that serve buckets of this test's store."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if command.split(b"\0")[0].endswith(b"rclone") and b"/buckets/tasks/" in command:
            assert SECRET.encode() not in command
            found.append(pid)
    return found


def test_files_of_a_bucket_are_read_written_and_removed(machine: Server, store: ObjectStore, folders: Path) -> None:
    large = os.urandom(12 << 20)
    store.buckets["data"] = {"top.txt": b"top", "in/one.txt": b"one", "in/deep/two.bin": large}
    client = Client(folders / "bucket-client", machine.client_env())
    text = """
@app.function(volumes={"/all": bucket(), "/in": bucket(key_prefix="in/", read_only=True)})
def use():
    import hashlib
    seen = {"all": sorted(os.listdir("/all")), "in": sorted(os.listdir("/in"))}
    seen["one"] = open("/in/one.txt").read()
    seen["sum"] = hashlib.sha256(open("/in/deep/two.bin", "rb").read()).hexdigest()
    os.makedirs("/all/new/folder")
    with open("/all/new/folder/made.bin", "wb") as file:
        for number in range(8):
            file.write(bytes([number]) * (1 << 20))
    open("/all/top.txt", "w").write("changed")
    seen["top"] = open("/all/top.txt").read()
    os.remove("/all/in/one.txt")
    seen["owner"] = os.stat("/all/top.txt").st_uid
    seen["read-only"] = attempt(open, "/in/x", "w")["error"]
    seen["secrets"] = [name for name, value in os.environ.items() if "nobody-sees" in value]
    return seen

@app.function(volumes={"/x": bucket("nowhere")})
def no_bucket():
    pass

@app.function(volumes={"/x": bucket(secret=wrong)})
def no_right():
    pass

@app.function(volumes={"/x": modal.CloudBucketMount("data", oidc_auth_role_arn="arn:aws:iam::1:role/x")})
def by_token():
    pass

@app.local_entrypoint()
def main():
    report("use", use.remote())
    report("no_bucket", attempt(no_bucket.remote))
    report("no_right", attempt(no_right.remote))
    report("by_token", attempt(by_token.remote))
"""
    run = client.program(program(store, text)).ok()
    seen = run["use"]
    assert seen["all"] == ["in", "top.txt"] and seen["in"] == ["deep", "one.txt"]
    assert seen["one"] == "one" and seen["sum"] == hashlib.sha256(large).hexdigest()
    assert seen["top"] == "changed" and seen["owner"] == 0 and seen["secrets"] == []
    assert "Read-only file system" in seen["read-only"]
    made = b"".join(bytes([number]) * (1 << 20) for number in range(8))
    data = store.buckets["data"]
    assert data["new/folder/made.bin"] == made and data["top.txt"] == b"changed"
    assert "in/one.txt" not in data
    assert "nowhere" in run["no_bucket"]["error"] and "cannot be mounted" in run["no_bucket"]["error"]
    assert "InvalidAccessKeyId" in run["no_right"]["error"] or "403" in run["no_right"]["error"]
    assert "oidc_auth_role_arn" in run["by_token"]["error"]
    wait_until(lambda: serving() == [], "the end of what served the buckets", 30)
    for log in machine.data.glob("*.log"):
        assert SECRET not in log.read_text(errors="replace")


def test_a_bucket_outlives_a_killed_server_and_not_its_container(
    machine: Server, store: ObjectStore, folders: Path
) -> None:
    store.buckets["data"] = {"before.txt": b"before"}
    client = Client(folders / "bucket-kill", machine.client_env())
    text = """
@app.function(volumes={"/all": bucket()})
def slow():
    print("waiting", os.listdir("/all"), flush=True)
    time.sleep(5)
    open("/all/after.txt", "w").write("after")
    return sorted(os.listdir("/all"))

@app.local_entrypoint()
def main():
    report("slow", slow.remote())
"""
    process = client.start_program(program(store, text))
    process.wait_for_text("waiting")
    served = serving()
    assert len(served) == 1
    machine.kill_server()
    run = process.end().ok()
    assert run["slow"] == ["after.txt", "before.txt"] and store.buckets["data"]["after.txt"] == b"after"
    wait_until(lambda: serving() == [], "the end of what served the bucket", 30)


def test_what_serves_a_bucket_is_swept_with_everything_else(machine: Server, store: ObjectStore, folders: Path) -> None:
    store.buckets["data"] = {}
    client = Client(folders / "bucket-sweep", machine.client_env())
    text = """
@app.function(volumes={"/all": bucket()})
def hang():
    print("hanging", os.listdir("/all"), flush=True)
    time.sleep(600)

@app.local_entrypoint()
def main():
    hang.remote()
"""
    process = client.start_program(program(store, text))
    process.wait_for_text("hanging")
    process.kill()
    assert len(serving()) == 1
    status = machine.status()
    os.kill(status["holder_pid"], signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{status['server_pid']}").exists(), "the server's end", 60)
    wait_until(lambda: serving() == [], "the end of what served the bucket", 60)
    machine.start()
