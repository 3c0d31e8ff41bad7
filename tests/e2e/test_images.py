"""Images: every kind of step, what is cached, what a failure says, and bases from a registry."""

import base64
import json
import sys
from secrets import token_hex

import pytest
from support.client import Client, Run
from support.registry import Registry, files_as_layer, tree_as_layer
from support.server import Server

BUILDS = """
token = os.environ.get("E2E_TOKEN", "")
# Another one in each session, so that the steps below are built and not found.
base = modal.Image.debian_slim().env({"E2E_TOKEN": token})
app = modal.App("builds", image=base)

def prepare(name):
    print("preparing", name, flush=True)
    with open(f"/prepared-{name}", "w") as file:
        file.write(os.environ["E2E_TOKEN"])

with_pip = base.pip_install("six==1.16.0")
with_uv = base.uv_pip_install("toolz==0.12.1")
with_apt = base.apt_install("tree")
with_commands = (
    base.run_commands("mkdir -p /data/deep", "echo $E2E_TOKEN > /data/token && ln -s token /data/link")
    .run_commands("rm -r /data/deep && echo made $(whoami) in $(pwd)")
    .workdir("/data")
    .env({"SECOND": "2"})
)
with_function = base.run_function(prepare, args=("one",))
copied = (
    base.add_local_file("files/one.txt", "/copied/one.txt", copy=True)
    .add_local_dir("files", "/copied/files", copy=True, ignore=["*.log", "skip"])
    .run_commands("cat /copied/one.txt /copied/files/deep/two.txt > /copied/both.txt")
)
mounted = (
    base.add_local_file("files/one.txt", "/mounted/one.txt")
    .add_local_dir("files", "/mounted/files", ignore=lambda path: path.suffix == ".log")
    .add_local_python_source("e2e_helper")
)
from_file = modal.Image.from_dockerfile("Dockerfile", context_dir=".") if modal.is_local() else None

with with_pip.imports():
    import six

@app.function(image=with_pip)
def pip():
    return six.__version__

@app.function(image=with_uv)
def uv():
    import toolz
    return toolz.__version__

@app.function(image=with_apt)
def apt():
    import subprocess
    return subprocess.run(["tree", "--version"], capture_output=True, text=True).stdout.split()[0]

@app.function(image=with_commands)
def commands():
    there = {name: os.path.exists(f"/data/{name}") for name in ("token", "link", "deep")}
    return [open("/data/link").read().strip(), there, os.getcwd(), os.environ["SECOND"], os.environ["E2E_TOKEN"]]

@app.function(image=with_function)
def function():
    return open("/prepared-one").read()

def tree(folder):
    return sorted(
        os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names
    )

@app.function(image=copied)
def copies():
    return [tree("/copied"), open("/copied/both.txt").read()]

@app.function(image=mounted)
def mounts():
    import e2e_helper
    return [tree("/mounted"), open("/mounted/one.txt").read(), e2e_helper.double(21)]

@app.function(image=base)
def plain():
    import importlib.util
    found = {name: importlib.util.find_spec(name) is not None for name in ("six", "toolz", "e2e_helper")}
    return [found, os.path.exists("/prepared-one"), sys.version.split()[0]]

@app.function(image=from_file, serialized=True)
def dockerfile():
    import os
    return [open("/app/one.txt").read(), os.environ["FROM_FILE"], os.getcwd()]

@app.local_entrypoint()
def main():
    for name in ("pip", "uv", "apt", "commands", "function", "copies", "mounts", "plain", "dockerfile"):
        report(name, attempt(globals()[name].remote))
"""

DOCKERFILE = """
FROM python:{version}-slim-bookworm
ARG who=nobody
ENV FROM_FILE="$who else"
WORKDIR /app
COPY files/one.txt ./
RUN echo built by $who && test -f one.txt
"""


def _write_files(client: Client) -> None:
    files = {"one.txt": "one\n", "deep/two.txt": "two\n", "noise.log": "no", "skip/three.txt": "three\n"}
    for name, text in files.items():
        client.write(f"files/{name}", text, prelude=False)
    client.write("e2e_helper.py", "def double(x):\n    return x * 2\n", prelude=False)


@pytest.fixture(scope="module")
def builds(module_client: Client) -> tuple[Run, Run]:
    """The program with everything built, and once more with everything there."""
    _write_files(module_client)
    version = ".".join(map(str, sys.version_info[:2]))
    module_client.write("Dockerfile", DOCKERFILE.format(version=version), prelude=False)
    env = {"E2E_TOKEN": token_hex(8)}
    first = module_client.program(BUILDS, "builds.py", timeout_s=600, env=env).ok()
    second = module_client.program(BUILDS, "builds.py", env=env).ok()
    first.reports.append(("token", env["E2E_TOKEN"], 0.0))
    return first, second


def test_packages_by_pip_uv_and_apt(builds: tuple[Run, Run]) -> None:
    first, _ = builds
    assert first["pip"]["value"] == "1.16.0"
    assert first["uv"]["value"] == "0.12.1"
    assert first["apt"]["value"] == "tree"


def test_commands_environment_and_working_folder(builds: tuple[Run, Run]) -> None:
    first, _ = builds
    there = {"token": True, "link": True, "deep": False}
    assert first["commands"]["value"] == [first["token"], there, "/data", "2", first["token"]]
    assert "made root in" in first.output


def test_a_function_runs_at_build_time(builds: tuple[Run, Run]) -> None:
    first, _ = builds
    assert first["function"]["value"] == first["token"]
    assert "preparing one" in first.output


def test_local_files_copied_and_mounted(builds: tuple[Run, Run]) -> None:
    first, _ = builds
    names, both = first["copies"]["value"]
    assert names == ["both.txt", "files/deep/two.txt", "files/one.txt", "one.txt"]
    assert both == "one\ntwo\n"
    names, one, doubled = first["mounts"]["value"]
    assert names == ["files/deep/two.txt", "files/one.txt", "files/skip/three.txt", "one.txt"]
    assert (one, doubled) == ("one\n", 42)


def test_images_do_not_leak_into_each_other(builds: tuple[Run, Run]) -> None:
    first, _ = builds
    found, prepared, _ = first["plain"]["value"]
    assert found == {"six": False, "toolz": False, "e2e_helper": False}
    assert prepared is False


def test_a_dockerfile(builds: tuple[Run, Run]) -> None:
    first, _ = builds
    assert first["dockerfile"]["value"] == ["one\n", "nobody else", "/app"]


def test_a_second_build_is_instant(builds: tuple[Run, Run]) -> None:
    first, second = builds
    names = [name for name, _, _ in second.reports]
    assert [second[name]["value"] for name in names] == [first[name]["value"] for name in names]
    assert "=> Step" in first.output and "=> Step" not in second.output
    assert "preparing one" not in second.output

    def until_objects(run: Run) -> float:
        return next(line.at for line in run.lines if "Created objects" in line.text) - run.lines[0].at

    # Eight images, found: the client asks for each of their layers.
    assert until_objects(second) < 5.0


def test_force_build_builds_again(client: Client) -> None:
    program = """
        base = modal.Image.debian_slim().env({"E2E_TOKEN": os.environ.get("E2E_TOKEN", "")})
        force = os.environ.get("E2E_FORCE") == "yes"
        image = base.run_commands("head -c 8 /dev/urandom | od -An -tx1 > /stamp", force_build=force)
        app = modal.App("force", image=image)

        @app.function()
        def stamp():
            return open("/stamp").read().strip()

        @app.local_entrypoint()
        def main():
            report("stamp", stamp.remote())
        """
    env = {"E2E_TOKEN": token_hex(8)}
    stamps = [client.program(program, env={**env, "E2E_FORCE": force}).ok()["stamp"] for force in ("no", "no", "yes")]
    assert stamps[0] == stamps[1] != stamps[2]


def test_ignore_cache_builds_beside_what_is_cached(client: Client) -> None:
    program = """
        base = modal.Image.debian_slim()
        image = base.run_commands("echo $E2E && head -c 8 /dev/urandom | od -An -tx1 > /stamp", env={"E2E": "TOKEN"})
        app = modal.App("ignore", image=image)

        @app.function()
        def stamp():
            return open("/stamp").read().strip()

        @app.local_entrypoint()
        def main():
            report("stamp", stamp.remote())
        """.replace("TOKEN", token_hex(8))
    stamps = [
        client.program(program, env={"MODAL_IGNORE_CACHE": ignore} if ignore else {}).ok()["stamp"]
        for ignore in ("", "1", "")
    ]
    assert stamps[0] == stamps[2] != stamps[1]


def test_a_failing_build_shows_its_log_and_line_and_is_not_cached(client: Client) -> None:
    program = """
        base = modal.Image.debian_slim().env({"E2E_TOKEN": os.environ.get("E2E_TOKEN", "")})
        image = base.run_commands("echo this worked", "echo about to fail >&2; cat /nowhere-$E2E_TOKEN; exit 7")
        app = modal.App("failing", image=image)

        @app.function()
        def never():
            return 1

        @app.local_entrypoint()
        def main():
            report("never", never.remote())
        """
    env = {"E2E_TOKEN": token_hex(8)}
    for _ in range(2):
        run = client.program(program, env=env).failed()
        assert "about to fail" in run.output and f"/nowhere-{env['E2E_TOKEN']}" in run.output, run.describe()
        # The command itself, and how it ended.
        assert "cat /nowhere-$E2E_TOKEN" in run.flat, run.describe()
        assert "7" in run.flat.rsplit("exit", 1)[-1] or "status 7" in run.flat, run.describe()


def test_many_steps_make_an_image_in_which_the_last_word_counts(client: Client) -> None:
    run = client.program(
        """
        token = os.environ.get("E2E_TOKEN", "")
        step = "RUN rm -f /step-* && echo {0} > /step-{0} && echo {1} > /kept-{0}"
        steps = [step.format(number, token) for number in range(150)]
        app = modal.App("steps", image=modal.Image.debian_slim().dockerfile_commands(steps))

        @app.function()
        def seen():
            kept = [name for name in os.listdir("/") if name.startswith("kept-")]
            return [name for name in os.listdir("/") if name.startswith("step-")], len(kept)

        @app.local_entrypoint()
        def main():
            report("seen", seen.remote())
        """,
        env={"E2E_TOKEN": token_hex(8)},
    ).ok()
    assert run["seen"] == [["step-149"], 150]


def test_an_image_that_a_function_with_arguments_makes_is_ready_when_it_returns(client: Client) -> None:
    run = client.program(
        """
        def prepare(token):
            open("/prepared", "w").write(token)

        image = modal.Image.debian_slim().run_function(prepare, args=(os.environ.get("E2E_TOKEN", ""),))
        app = modal.App("prepared")

        @app.local_entrypoint()
        def main():
            report("built", attempt(image.build, app)["seconds"])
        """,
        env={"E2E_TOKEN": token_hex(8)},
    ).ok()
    # Far less than the time for which an idle container of a function is kept.
    assert run["built"] < 30.0


def test_a_published_image_is_found_by_its_name_with_its_log(client: Client) -> None:
    publish = """
        token = os.environ.get("E2E_TOKEN", "")
        built = modal.Image.debian_slim().env({"E2E_TOKEN": token}).run_commands("echo made-$E2E_TOKEN | tee /made")
        failing = built.run_commands("echo woe-$E2E_TOKEN; exit 3")
        app = modal.App("publish")

        @app.local_entrypoint()
        def main():
            built.build(app)
            built.publish(f"e2e-{token}:one")
            built.publish(f"e2e-{token}")
            report("log", [entry.message for entry in built.logs.fetch()])
            report("chain", [entry.message for entry in built.logs.fetch(layers=None)])
            report("failed", attempt(failing.build, app))
            report("woe", [entry.message for entry in failing.logs.tail(1)])
        """
    use = """
        app = modal.App("named", image=modal.Image.from_name(f"e2e-{os.environ.get('E2E_TOKEN')}:one"))

        @app.function()
        def made():
            return open("/made").read()

        @app.local_entrypoint()
        def main():
            report("made", made.remote())
        """
    token = token_hex(8)
    run = client.program(publish, env={"E2E_TOKEN": token}).ok()
    assert client.program(use, env={"E2E_TOKEN": token}).ok()["made"] == f"made-{token}\n"
    assert any(f"made-{token}" in line for line in run["log"]), run["log"]
    assert len(run["chain"]) > len(run["log"])
    assert run["failed"]["kinds"][0] == "ImageBuildError"
    assert run["woe"] == [f"woe-{token}\n"]
    listed = json.loads(client.modal("image", "names", "list", "--json", "--prefix", f"e2e-{token}").ok().stdout)
    assert [item["tag"] for item in listed] == [f"e2e-{token}:latest", f"e2e-{token}:one"]
    image = listed[0]["image_id"]
    assert f"made-{token}" in client.modal("image", "logs", image).ok().stdout
    client.modal("image", "names", "delete", f"e2e-{token}:one", "--yes").ok()
    gone = client.modal("image", "names", "delete", f"e2e-{token}:one", "--yes").failed()
    assert "There is no image named" in gone.flat, gone.describe()


def test_a_failing_build_function_shows_its_traceback(client: Client) -> None:
    run = client.program(
        """
        def prepare():
            raise RuntimeError("cannot prepare")

        app = modal.App("failing", image=modal.Image.debian_slim().run_function(prepare))

        @app.function()
        def never():
            return 1

        @app.local_entrypoint()
        def main():
            report("never", never.remote())
        """
    ).failed()
    assert "cannot prepare" in run.output and "in prepare" in run.output, run.describe()


def test_a_package_that_is_not_there_is_named(client: Client) -> None:
    run = client.program(
        """
        image = modal.Image.debian_slim().pip_install("a-package-that-nobody-would-publish-9f2c==1.0")
        app = modal.App("no-package", image=image)

        @app.function()
        def never():
            return 1

        @app.local_entrypoint()
        def main():
            report("never", never.remote())
        """
    ).failed()
    assert "a-package-that-nobody-would-publish-9f2c" in run.flat, run.describe()


@pytest.fixture(scope="module")
def published(server: Server, module_client: Client, registry: Registry) -> str:
    """An image in the local registry: the server's own base for Debian, and a layer over it."""
    module_client.program(
        """
        app = modal.App("base")

        @app.function()
        def one():
            return 1

        @app.local_entrypoint()
        def main():
            one.remote()
        """
    ).ok()
    whole = server.base_layer()
    marker = token_hex(8)
    above = {
        "opt/marker": marker.encode(),
        "etc/.wh.debian_version": b"",
        "usr/share/doc/.wh..wh..opq": b"",
    }
    config: dict[str, object] = {
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "FROM_CONFIG=yes"],
        "WorkingDir": "/opt",
    }
    # A tag that was pulled once is remembered, also in a data folder that is kept between runs.
    registry.push("team/base", marker, [tree_as_layer(whole), files_as_layer(above)], config)
    return marker


def test_a_base_from_a_registry_through_a_mirror(published: str, client: Client, registry: Registry) -> None:
    program = """
        reference = "registry.example/team/base:" + os.environ.get("E2E_TAG", "")
        image = modal.Image.from_registry(reference).run_commands("cp /opt/marker /opt/second")
        app = modal.App("from-registry", image=image)

        @app.function()
        def look():
            return {
                "marker": open("/opt/second").read(),
                "version": os.path.exists("/etc/debian_version"),
                "docs": os.listdir("/usr/share/doc"),
                "env": os.environ.get("FROM_CONFIG"),
                "cwd": os.getcwd(),
                "su": oct(os.stat("/usr/bin/su").st_mode),
            }

        @app.local_entrypoint()
        def main():
            report("look", look.remote())
        """
    env = {"E2E_TAG": published}
    look = client.program(program, env=env).ok()["look"]
    assert look["marker"] == published
    assert look["version"] is False and look["docs"] == []
    assert look["env"] == "yes"
    assert look["su"].endswith("4755")
    assert "/token" in registry.asked
    before = len(registry.asked)
    assert client.program(program, env=env).ok()["look"] == look
    assert not [path for path in registry.asked[before:] if "/blobs/" in path]


def test_a_private_registry(published: str, client: Client, registry: Registry) -> None:
    program = """
        login = modal.Secret.from_dict(
            {"REGISTRY_USERNAME": "somebody", "REGISTRY_PASSWORD": os.environ.get("E2E_PASSWORD", "")}
        )
        reference = os.environ.get("E2E_REFERENCE", "")
        secret = login if os.environ.get("E2E_LOGIN") else None
        image = modal.Image.from_registry(reference, secret=secret)
        app = modal.App("private", image=image.run_commands("echo ${REGISTRY_PASSWORD:-nothing} > /seen"))

        @app.function()
        def look():
            return [open("/opt/marker").read(), open("/seen").read().strip(), "REGISTRY_PASSWORD" in os.environ]

        @app.local_entrypoint()
        def main():
            report("look", look.remote())
        """
    for image in list(registry.manifests):
        registry.manifests[image.replace("team/", "private/")] = registry.manifests[image]
    password = token_hex(16)
    registry.members.add("Basic " + base64.b64encode(f"somebody:{password}".encode()).decode())
    reference = f"{registry.address.removeprefix('http://')}/private/base:{published}"
    env = {"E2E_REFERENCE": reference, "E2E_PASSWORD": "wrong-" + token_hex(16)}
    nobody = client.program(program, env=env).failed()
    assert "REGISTRY_USERNAME" in nobody.flat, nobody.describe()
    wrong = client.program(program, env={**env, "E2E_LOGIN": "1"}).failed()
    assert "refused the credentials" in wrong.flat, wrong.describe()
    assert env["E2E_PASSWORD"] not in wrong.output
    run = client.program(program, env={**env, "E2E_LOGIN": "1", "E2E_PASSWORD": password}).ok()
    assert run["look"] == [published, "nothing", False]


def test_a_tag_that_a_registry_lacks(published: str, client: Client) -> None:
    run = client.program(
        """
        app = modal.App("no-tag", image=modal.Image.from_registry("registry.example/team/base:2"))

        @app.function()
        def never():
            return 1

        @app.local_entrypoint()
        def main():
            never.remote()
        """
    ).failed()
    assert "registry.example/team/base:2" in run.flat, run.describe()
    assert "127.0.0.1" in run.flat, run.describe()
