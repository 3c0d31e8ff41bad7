"""Volumes: what clients do with them from outside, and what containers see, change, commit and reload."""

import json
import sys
from pathlib import Path
from secrets import token_hex

from support.client import Client
from support.server import Server
from support.waits import wait_until

CLIENT_VERBS = """
import io

def read(vol, path):
    return b"".join(vol.read_file(path))

version = {version}
with modal.Volume.ephemeral(version=version) as vol:
    report("empty", vol.listdir("/"))
    large = os.urandom(9 << 20) + bytes(9 << 20) + b"end"
    with vol.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"hello"), "/a/x.txt", mode=0o755)
        batch.put_file(io.BytesIO(b""), "empty")
        batch.put_file(io.BytesIO(b"z" + bytes(100)), "zeros")
        batch.put_file(io.BytesIO(large), "/a/large")
    report("all", sorted((e.path, e.type.name, e.size) for e in vol.listdir("/", recursive=True)))
    report("folder", sorted(e.path for e in vol.listdir("/a/")))
    report("itself", [e.path for e in vol.iterdir("a/x.txt")])
    expected = {"a/x.txt": b"hello", "empty": b"", "zeros": b"z" + bytes(100)}
    report("same", [read(vol, path) == content for path, content in expected.items()])
    whole = io.BytesIO()
    vol.read_file_into_fileobj("a/large", whole)
    report("large", [whole.getvalue() == large, read(vol, "/a/large") == large])

    def put(force, path="/a/x.txt"):
        with vol.batch_upload(force=force) as batch:
            batch.put_file(io.BytesIO(b"new"), path)

    report("again", attempt(put, False))
    put(True)
    report("forced", read(vol, "a/x.txt") == b"new")
    report("onto a folder", attempt(put, True, "/a"))
    report("below a file", attempt(put, True, "/empty/x"))
    vol.copy_files(["a/x.txt"], "b.txt")
    vol.copy_files(["b.txt", "empty"], "/a")
    report("recursive", attempt(vol.copy_files, ["a"], "c", recursive=True))
    report("removed folder", attempt(vol.remove_file, "a"))
    vol.remove_file("a/x.txt")
    vol.remove_file("a", recursive=True)
    report("left", sorted(e.path for e in vol.listdir("/", recursive=True)))
    report("missing", [attempt(read, vol, "a/x.txt"), attempt(vol.remove_file, "nope")])
    report("bad paths", [attempt(vol.listdir, "../x"), attempt(vol.remove_file, "/", recursive=False)])
    report("outside", [attempt(vol.commit), attempt(vol.reload)])
"""


def test_clients_put_read_list_copy_and_remove(client: Client) -> None:
    for version in (1, 2, None):
        program = client.write("verbs.py", CLIENT_VERBS.replace("{version}", str(version)))
        found = client.start(sys.executable, str(program)).end().ok()
        assert found["empty"] == []
        assert found["all"] == [
            ["a", "DIRECTORY", 0],
            ["a/large", "FILE", (18 << 20) + 3],
            ["a/x.txt", "FILE", 5],
            ["empty", "FILE", 0],
            ["zeros", "FILE", 101],
        ]
        assert found["folder"] == ["a/large", "a/x.txt"]
        assert found["itself"] == ["a/x.txt"]
        assert found["same"] == [True, True, True]
        assert found["large"] == [True, True]
        assert "FileExistsError" in found["again"]["kinds"]
        assert found["forced"] is True
        assert "directory" in found["onto a folder"]["error"]
        assert "not a directory" in found["below a file"]["error"]
        copied = [] if version == 1 else ["c", "c/b.txt", "c/empty", "c/large", "c/x.txt"]
        assert found["left"] == ["b.txt", *copied, "empty", "zeros"]
        assert "InvalidError" in found["removed folder"]["kinds"]
        assert all("FileNotFoundError" in missing["kinds"] for missing in found["missing"])
        assert all("InvalidError" in bad["kinds"] for bad in found["bad paths"])
        assert all("RuntimeError" in outside["kinds"] for outside in found["outside"])


def test_the_command_line_manages_volumes(server: Server, client: Client, tmp_path: Path) -> None:
    name = f"e2e-{token_hex(4)}"
    data, out = tmp_path / "data", tmp_path / "out"
    (data / "sub").mkdir(parents=True)
    (data / "1.txt").write_text("one")
    (data / "sub" / "2.txt").write_text("two")
    out.mkdir()
    client.modal("volume", "create", name).ok()
    assert client.modal("volume", "create", name).code != 0
    client.modal("volume", "put", name, str(data), "/models").ok()
    again = client.modal("volume", "put", name, str(data / "1.txt"), "/models/1.txt")
    assert again.code != 0 and "already exists" in again.flat
    client.modal("volume", "cp", "-r", name, "models", "copy").ok()
    client.modal("volume", "rm", "-r", name, "models/sub").ok()
    listed = client.modal("volume", "ls", name, "copy")
    assert listed.stdout.split() == ["copy/1.txt", "copy/sub"]
    client.modal("volume", "get", name, "copy", str(out)).ok()
    assert (out / "copy" / "sub" / "2.txt").read_text() == "two"
    assert "one" in client.modal("volume", "get", name, "models/1.txt", "-").stdout
    log = server.evoke("volume", "log", name, "--json").stdout
    first = min(version["version"] for version in json.loads(log))
    assert "- models/sub" in server.evoke("volume", "diff", name, str(first)).stdout
    server.evoke("volume", "restore", name, str(first))
    restored = client.modal("volume", "ls", name).stdout.split()
    assert restored == ["models"]
    client.modal("volume", "rename", "-y", name, f"{name}-b").ok()
    assert f"{name}-b" in client.modal("volume", "list", "--json").stdout
    client.modal("volume", "delete", "-y", f"{name}-b").ok()
    gone = client.modal("volume", "ls", f"{name}-b")
    assert gone.code != 0 and f"no volume '{name}-b'" in gone.flat


MOUNTED = """
import subprocess

app = modal.App("volumes")
vol = modal.Volume.from_name(os.environ.get("E2E_VOLUME", "none"), create_if_missing=True)

def tree(folder):
    found = []
    for at, folders, files in os.walk(folder):
        found += [os.path.relpath(os.path.join(at, name), folder) for name in folders + files]
    return sorted(found)

@app.function(volumes={"/data": vol})
def write():
    os.makedirs("/data/d/e")
    with open("/data/d/e/f", "w") as file:
        file.write("one")
    os.chmod("/data/d/e/f", 0o755)
    os.symlink("d/e", "/data/l")
    vol.commit()
    before = open("/data/l/f").read()
    os.rename("/data/d/e", "/data/moved")
    os.remove("/data/l")
    vol.commit()
    return {"owner": os.stat("/data").st_uid, "before": before, "after": tree("/data")}

@app.function(volumes={"/data": vol})
def busy():
    with open("/data/open", "w") as file:
        file.write("first")
        file.flush()
        vol.commit()
        refused = attempt(vol.reload)
        file.write(" second")
    vol.reload()
    return refused, open("/data/open").read()

@app.function(volumes={"/data": vol})
def leaves_it():
    with open("/data/uncommitted", "w") as file:
        file.write("left at the end")

@app.function(volumes={"/data": vol}, timeout=60)
def killed():
    with open("/data/killed", "w") as file:
        file.write("written before the end")
    os.kill(os.getpid(), 9)

@app.function(volumes={"/ro": vol.with_mount_options(read_only=True)})
def read_only():
    return tree("/ro"), attempt(open, "/ro/x", "w")

@app.function(volumes={"/sub": vol.with_mount_options(sub_path="new/sub")})
def sub_path():
    before = tree("/sub")
    open("/sub/inside", "w").close()
    return before

@app.function(volumes={"/etc": vol})
def on_files():
    return "never"

@app.cls(volumes={"/data": vol}, max_containers=1)
class Watcher:
    @modal.method()
    def look(self):
        return tree("/data")
    @modal.method()
    def reload(self):
        vol.reload()
        return tree("/data")

@app.local_entrypoint()
def main():
    watcher = Watcher()
    report("watched", watcher.look.remote())
    report("write", write.remote())
    report("as it was", watcher.look.remote())
    report("reloaded", watcher.reload.remote())
    with vol.batch_upload() as batch:
        batch.put_file(__file__, "from-outside")
    vol.remove_file("d", recursive=True)
    report("outside", watcher.reload.remote())
    report("busy", busy.remote())
    leaves_it.remote()
    attempt(killed.remote)
    sub_path.remote()
    report("refused", attempt(on_files.remote))

@app.local_entrypoint()
def later():
    report("read only", read_only.remote())
    report("content", b"".join(vol.read_file("uncommitted")).decode())
"""


def test_containers_see_change_commit_and_reload(client: Client) -> None:
    name = f"e2e-{token_hex(4)}"
    path = str(client.write("mounted.py", MOUNTED))
    env = {"E2E_VOLUME": name}
    run = client.modal("run", f"{path}::main", env=env).ok()
    assert run["watched"] == []
    assert run["write"] == {"owner": 0, "before": "one", "after": ["d", "moved", "moved/f"]}
    assert run["as it was"] == []
    assert run["reloaded"] == ["d", "moved", "moved/f"]
    assert run["outside"] == ["from-outside", "moved", "moved/f"]
    refused, content = run["busy"]
    assert "open files" in refused["error"] and "path open is open" in refused["error"]
    assert content == "first second"
    # Where the base is this machine's own, its files are mounts themselves.
    assert any(text in run["refused"]["error"] for text in ("non-empty path", "inside another mount"))
    # What containers leave is committed as they end, which is by now or soon.
    wanted = {"uncommitted", "killed", "new/sub/inside", "open", "from-outside"}

    def all_there() -> bool:
        listed = client.modal("run", f"{path}::later", env=env).ok()
        files, denied = listed["read only"]
        assert "Read-only" in denied["error"]
        return wanted <= set(files) and listed["content"] == "left at the end"

    wait_until(all_there, "what the containers left is in the volume", 60)
    client.modal("volume", "delete", "-y", name).ok()


SHARED = """
import io, warnings

warnings.simplefilter("ignore")
app = modal.App("shared")
nfs = modal.NetworkFileSystem.from_name(os.environ.get("E2E_VOLUME", "none"), create_if_missing=True)
vol = modal.Volume.from_name(os.environ.get("E2E_VOLUME", "none"), create_if_missing=True)

def download():
    with open("/cache/model", "w") as file:
        file.write("weights")

image = modal.Image.debian_slim().run_function(download, volumes={"/cache": vol})

@app.function(image=image)
def without():
    return os.path.lexists("/cache")

@app.function(image=image, volumes={"/cache": vol})
def within():
    return open("/cache/model").read()

@app.function(network_file_systems={"/nfs": nfs})
def live():
    with open("/nfs/from-container", "w") as file:
        file.write("live")
    return open("/nfs/a/x").read()

@app.local_entrypoint()
def main():
    nfs.write_file("/a/x", io.BytesIO(b"hello"))
    nfs.write_file("/large", io.BytesIO(bytes(5 << 20)))
    report("live", live.remote())
    report("listed", [[entry.path for entry in nfs.listdir(path)] for path in ("/", "a/**")])
    report("read", [len(b"".join(nfs.read_file(path))) for path in ("from-container", "large")])
    nfs.remove_file("a", recursive=True)
    report("missing", attempt(lambda: list(nfs.read_file("a/x"))))
    report("image", [without.remote(), within.remote()])
"""


IN_BUILDS = """
import io

app = modal.App("in-builds")
vol = modal.Volume.from_name("E2E_NAME", create_if_missing=True)
fixed = modal.Volume.from_name("E2E_NAME-fixed", create_if_missing=True)
fixed_view = fixed.with_mount_options(read_only=True)
base = modal.Image.debian_slim()
image = base.run_commands(
    "cat /fixed/given > /seen && if echo x > /fixed/x; then exit 9; fi",
    "mkdir -p /cache/deep && echo first > /cache/deep/one && ln -s one /cache/deep/link && (sleep 300 &)",
    "cat /cache/deep/link >> /seen && rm /cache/deep/link && echo second > /cache/two",
    volumes={"/cache": vol, "/fixed": fixed_view},
)
failing = base.run_commands("echo third > /cache/three && exit 7", volumes={"/cache": vol})
elsewhere = base.run_commands("test ! -e /cache && ls /other > /seen", volumes={"/other": vol})

@app.function(image=image)
def one():
    return [open("/seen").read(), os.path.lexists("/cache"), os.path.lexists("/fixed")]

@app.local_entrypoint()
def main():
    report("seen", one.remote())
    other = modal.App("other")
    with other.run():
        report("failing", attempt(failing.build, other))
        elsewhere.build(other)
    report("left", sorted((e.path, e.type.name) for e in vol.listdir("/", recursive=True)))
    report("deep", b"".join(vol.read_file("deep/one")).decode())
"""


def test_commands_of_a_build_see_volumes_and_what_they_write_stays_there(client: Client, server: Server) -> None:
    name = f"e2e-{token_hex(4)}"
    fill = """
        import io

        with modal.Volume.from_name("E2E_NAME-fixed", create_if_missing=True).batch_upload() as batch:
            batch.put_file(io.BytesIO(b"given"), "given")
    """
    client.start(sys.executable, str(client.write("fill.py", fill.replace("E2E_NAME", name)))).end().ok()
    run = client.program(IN_BUILDS.replace("E2E_NAME", name)).ok()
    assert run["seen"] == ["givenfirst\n", False, False]
    assert "exit code 7" in run["failing"]["error"]
    # A command that fails loses none of what it wrote: what it brought need not be brought again.
    assert run["left"] == [["deep", "DIRECTORY"], ["deep/one", "FILE"], ["three", "FILE"], ["two", "FILE"]]
    assert run["deep"] == "first\n"
    log = server.evoke("volume", "log", name).stdout
    assert log.count("build of im-") == 3, log
    # The image is found again, whatever the volume holds by now: only the failing command runs once more.
    client.program(IN_BUILDS.replace("E2E_NAME", name)).ok()
    assert server.evoke("volume", "log", name).stdout.count("build of im-") == 3


def test_what_leads_out_of_a_volume_is_refused_and_one_that_is_deleted_says_so(client: Client) -> None:
    run = client.program(
        """
        import io

        name = "e2e-refuses"
        vol = modal.Volume.from_name(name, create_if_missing=True)
        app = modal.App("refuses")

        @app.function(volumes={"/data": vol})
        def link():
            os.symlink("/etc/passwd", "/data/whole")
            os.symlink("../../../../etc/passwd", "/data/upwards")
            os.symlink("inside", "/data/fine")
            vol.commit()

        @app.function(volumes={"/data": vol})
        def late():
            modal.Volume.objects.delete(name)
            with open("/data/new", "w") as file:
                file.write("new")
            return attempt(vol.commit)

        def upload(path):
            with vol.batch_upload(force=True) as batch:
                batch.put_file(io.BytesIO(b"text"), path)

        @app.local_entrypoint()
        def main():
            for path in ("/../up", "a/../../up", "nul\\0"):
                report("upload", attempt(upload, path))
            upload("inside")
            link.remote()
            for path in ("whole", "upwards"):
                report("read", attempt(lambda path=path: b"".join(vol.read_file(path)).decode()))
            report("fine", b"".join(vol.read_file("fine")).decode())
            report("names", sorted(entry.path for entry in vol.listdir("/")))
            report("late", late.remote())
        """
    ).ok()
    assert ["InvalidError" in found.get("kinds", []) for found in run.reported("upload")] == [True] * 3
    assert ["FileNotFoundError" in found.get("kinds", []) for found in run.reported("read")] == [True] * 2
    assert run["fine"] == "text"
    assert run["names"] == ["fine", "inside", "upwards", "whole"]
    assert "may have been deleted" in run["late"]["error"], run["late"]


def test_network_file_systems_are_live_and_builds_have_volumes(client: Client) -> None:
    name = f"e2e-{token_hex(4)}"
    path = str(client.write("shared.py", SHARED))
    run = client.modal("run", path, env={"E2E_VOLUME": name}).ok()
    assert run["live"] == "hello"
    assert run["listed"] == [["a", "from-container", "large"], ["a/x"]]
    assert run["read"] == [4, 5 << 20]
    assert "FileNotFoundError" in run["missing"]["kinds"]
    assert run["image"] == [False, "weights"]
    assert name in client.modal("nfs", "list", "--json").stdout
    client.modal("nfs", "delete", "-y", name).ok()
    client.modal("volume", "delete", "-y", name).ok()
