"""Volumes: what clients do with them from outside, and what containers see, change, commit and reload."""

import sys
from pathlib import Path
from secrets import token_hex

from support.client import Client

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
    vol.copy_files(["a/x.txt", "empty"], "/a")
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
        copied = [] if version == 1 else ["c", "c/empty", "c/large", "c/x.txt"]
        assert found["left"] == ["b.txt", *copied, "empty", "zeros"]
        assert "InvalidError" in found["removed folder"]["kinds"]
        assert all("FileNotFoundError" in missing["kinds"] for missing in found["missing"])
        assert all("InvalidError" in bad["kinds"] for bad in found["bad paths"])
        assert all("RuntimeError" in outside["kinds"] for outside in found["outside"])


def test_the_command_line_manages_volumes(client: Client, tmp_path: Path) -> None:
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
    client.modal("volume", "rename", "-y", name, f"{name}-b").ok()
    assert f"{name}-b" in client.modal("volume", "list", "--json").stdout
    client.modal("volume", "delete", "-y", f"{name}-b").ok()
    gone = client.modal("volume", "ls", f"{name}-b")
    assert gone.code != 0 and f"no volume '{name}-b'" in gone.flat
