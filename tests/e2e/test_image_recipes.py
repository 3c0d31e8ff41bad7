"""Images: what recipes may say beside the common steps."""

import gzip
import hashlib
import io
import platform
import signal
import tarfile
from pathlib import Path
from secrets import token_hex

import pytest
from support.client import Client, Process
from support.registry import Registry, tree_as_layer
from support.server import Server
from support.waits import wait_until


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
    # None where it is kept from an earlier session.
    assert len(fetched) <= 1, fetched


def test_a_python_that_is_not_to_be_had_says_what_to_do(bare: str, client: Client) -> None:
    run = client.program(ADDED, env={"E2E_TAG": bare, "E2E_PYTHON": "3.13"}).failed()
    for part in ("Python 3.13.0", "cpython-3.13.0+20241008-", "images.standalone_python"):
        assert part in run.flat, run.describe()


def test_what_does_not_depend_on_each_other_is_built_side_by_side(client: Client) -> None:
    # Each takes so long because a registry out of reach may hold up one base, and not the other that is here, for 4 s.
    client.write(
        "Dockerfile",
        """\
FROM python:3.11-slim-bookworm AS one
RUN echo $E2E && date +%s.%N > /one && sleep 9 && date +%s.%N >> /one
FROM python:3.11-slim-bookworm AS two
RUN echo $E2E && date +%s.%N > /two && sleep 9 && date +%s.%N >> /two
FROM python:3.11-slim-bookworm
COPY --from=one /one /one
COPY --from=two /two /two
""",
        prelude=False,
    )
    run = client.program(
        """
        env = {"E2E": os.environ.get("E2E_TOKEN", "")}
        stages = modal.Image.from_dockerfile("Dockerfile", env=env) if modal.is_local() else None
        stamped = "date +%s.%N > /three && sleep 9 && date +%s.%N >> /three"
        other = modal.Image.debian_slim().run_commands(stamped, env=env)
        app = modal.App("side-by-side")

        @app.function(image=stages, serialized=True)
        def of_stages():
            return [[float(line) for line in open(name)] for name in ("/one", "/two")]

        @app.function(image=other, serialized=True)
        def of_other():
            return [float(line) for line in open("/three")]

        @app.local_entrypoint()
        def main():
            report("spans", [*of_stages.remote(), of_other.remote()])
        """,
        env={"E2E_TOKEN": token_hex(8)},
    ).ok()
    one, two, three = run["spans"]
    assert max(one[0], two[0]) < min(one[1], two[1]), (one, two)
    assert max(one[0], three[0]) < min(one[1], three[1]), (one, three)
    assert "one | => Step 1: RUN echo" in run.output and "two | => Step 1: RUN echo" in run.output


def test_a_build_that_is_left_or_killed_leaves_nothing(server: Server, client: Client) -> None:
    program = """
        image = modal.Image.debian_slim().run_commands("echo began-$E2E && sleep 300", env={"E2E": "TOKEN"})
        app = modal.App("left", image=image)

        @app.function()
        def never():
            return 1

        @app.local_entrypoint()
        def main():
            never.remote()
        """

    def builds() -> list[str]:
        return [path.name for path in (server.data / "containers").iterdir() if path.name.startswith("build-")]

    def begin(token: str) -> Process:
        running = client.start_program(program.replace("TOKEN", token))
        running.wait_for_text(f"began-{token}")
        assert builds()
        return running

    token = token_hex(8)
    before = sorted((server.data / "layers").iterdir())
    # Ctrl-C. A second client that waits for the same build keeps it alive, and nobody else.
    left, stays = begin(token), begin(token)
    left.signal(signal.SIGINT)
    left.end()
    assert builds() and not stays.lines[-1].text.startswith("Error")
    stays.kill()
    wait_until(lambda: not builds(), "the end of a build that nobody waits for", 60.0)
    assert sorted((server.data / "layers").iterdir()) == before

    killed = begin(token_hex(8))
    server.kill_server()
    assert "cut off by a restart" in killed.end().flat
    wait_until(lambda: not builds(), "the end of a build whose server was killed", 60.0)
    assert sorted((server.data / "layers").iterdir()) == before


MOUNTS = """\
FROM python:3.11-slim-bookworm AS made
RUN mkdir -p /out/deep && echo made > /out/deep/file && ln -s deep/file /out/link && echo also > /out/other

FROM python:3.11-slim-bookworm
WORKDIR /work
COPY files /copied
RUN --mount=type=bind,source=files,target=/all --mount=source=files/one.txt,target=one.txt,rw \\
    --mount=type=bind,from=made,source=/out,target=/made --mount=from=made,source=/out/other,target=/other <<EOF
set -ex
test "$(cat /all/one.txt one.txt /made/link /other)" = "$(printf 'one\\none\\nmade\\nalso')"
! touch /all/new && ! touch /made/new
echo changed > one.txt
EOF
RUN --mount=type=secret,id=api_key,target=/keys/one,mode=0440 --mount=type=secret,id=API_KEY,env=COPY_OF_KEY \\
    --mount=type=secret,id=absent --mount=type=tmpfs,target=/scratch,size=1m <<EOF
set -e
test "$(cat /keys/one) $COPY_OF_KEY $(stat -c %a /keys/one)" = "$API_KEY $API_KEY 440"
test ! -e /run/secrets/absent
grep ' /scratch tmpfs' /proc/mounts
! head -c 2000000 /dev/zero > /scratch/large
EOF
ARG turn
RUN --mount=type=cache,target=/cache,id=CACHE echo $turn >> /cache/turns && cp /cache/turns /turns
"""


def test_mounts_of_run(client: Client) -> None:
    client.write("Dockerfile", MOUNTS.replace("CACHE", token_hex(8)), prelude=False)
    client.write("files/one.txt", "one\n", prelude=False)
    program = """
        args = {"turn": os.environ.get("E2E_TURN", "")}
        secret = modal.Secret.from_dict({"API_KEY": os.environ.get("E2E_KEY", "")})
        image = modal.Image.from_dockerfile("Dockerfile", build_args=args, secrets=[secret])
        app = modal.App("mounts")

        @app.function(image=image, serialized=True)
        def look():
            import os
            stubs = ["/all", "/made", "/other", "/work/one.txt", "/keys", "/run/secrets", "/scratch", "/cache"]
            return open("/turns").read().split(), [path for path in stubs if os.path.exists(path)]

        @app.local_entrypoint()
        def main():
            report("look", look.remote())
        """
    key = token_hex(8)
    for turns in (["a"], ["a", "b"]):
        run = client.program(program, env={"E2E_TURN": turns[-1], "E2E_KEY": key}).ok()
        assert run["look"] == [turns, []]
        assert key not in run.output
