"""Images: what recipes may say beside the common steps."""

import gzip
import hashlib
import io
import platform
import tarfile
from pathlib import Path
from secrets import token_hex

import pytest
from support.client import Client
from support.registry import Registry, tree_as_layer
from support.server import Server


def _is_python(path: str) -> bool:
    return "python" in path or path.split("/")[-1].startswith("pip")


def _standalone(base: Path) -> bytes:
    """The Python of a Debian as an archive of the layout that standalone Pythons have."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        library = base / "usr/lib/python3.11"
        for path in sorted(library.rglob("*")):
            if "__pycache__" not in path.parts and not (path.is_symlink() and str(path.readlink()).startswith("/")):
                archive.add(path, f"python/lib/python3.11/{path.relative_to(library)}", recursive=False)
        archive.add(base / "usr/bin/python3.11", "python/bin/python3.11", recursive=False)
        link = tarfile.TarInfo("python/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, "python3.11"
        archive.addfile(link)
    return gzip.compress(out.getvalue(), 1)


@pytest.fixture(scope="module")
def bare(server: Server, registry: Registry) -> str:
    """The tag of `team/bare`, an image without Python; the Python is published beside it."""
    base = server.base_layer()
    tag = token_hex(8)
    layer = tree_as_layer(base, lambda path: not _is_python(path))
    registry.push("team/bare", tag, [layer], {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]})
    archive = _standalone(base)
    name = f"cpython-3.11.5+20230826-{platform.machine()}-unknown-linux-gnu-install_only.tar.gz"
    registry.files[f"pythons/20230826/{name}"] = archive
    sums = f"{hashlib.sha256(archive).hexdigest()}  {name}\n"
    registry.files["pythons/20230826/SHA256SUMS"] = sums.encode()
    return tag


ADDED = """
reference = "registry.example/team/bare:" + os.environ.get("E2E_TAG", "")
from_registry = modal.Image.from_registry(reference, add_python=os.environ.get("E2E_PYTHON", "3.11"))
if modal.is_local():
    open("Dockerfile", "w").write(f"FROM {reference}\\nRUN echo $E2E > /built\\nENV FROM_FILE=yes\\n")
    from_file = modal.Image.from_dockerfile("Dockerfile", add_python="3.11", env={"E2E": "made"})
else:
    from_file = None
app = modal.App("add-python")

def look():
    where = {name: os.path.realpath("/usr/local/bin/" + name) for name in ("python", "python3")}
    made = open("/built").read().strip() if os.path.exists("/built") else None
    return [sys.prefix, where, os.stat(sys.executable).st_uid, made, os.environ.get("FROM_FILE")]

@app.function(image=from_registry)
def one():
    return look()

@app.function(image=from_file)
def two():
    return look()

@app.local_entrypoint()
def main():
    report("one", one.remote())
    report("two", two.remote())
"""


def test_a_python_is_added_to_an_image_without_one(bare: str, client: Client, registry: Registry) -> None:
    run = client.program(ADDED, env={"E2E_TAG": bare}).ok()
    where = {"python": "/usr/local/bin/python3.11", "python3": "/usr/local/bin/python3.11"}
    assert run["one"] == ["/usr/local", where, 0, None, None]
    assert run["two"] == ["/usr/local", where, 0, "made", "yes"]
    fetched = [path for path in registry.asked if path.endswith("install_only.tar.gz")]
    assert len(fetched) == 1, fetched


def test_a_python_that_is_not_to_be_had_says_what_to_do(bare: str, client: Client) -> None:
    run = client.program(ADDED, env={"E2E_TAG": bare, "E2E_PYTHON": "3.13"}).failed()
    for part in ("Python 3.13.0", "cpython-3.13.0+20241008-", "images.standalone_python"):
        assert part in run.flat, run.describe()
