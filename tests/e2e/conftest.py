"""Fixtures: one server for the session, a client per test, and the proof at the end that nothing is left."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client import Client
from support.registry import Registry
from support.server import Server

# The base image is there within this, by the network that the machine has.
BASE_S_MAX = 900.0
# Where data folders go: the service user must be able to pass through every folder above.
FOLDER_PARENT = "/var/tmp"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lean", help="the lean ways that containers take, as EVOKE_LEAN lists them; `off` for none")
    parser.addoption("--templates", choices=("on", "off"), help="whether containers are forked by templates")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0 and items:
        raise pytest.UsageError("the end-to-end tests start a server, which needs root")


@pytest.fixture(scope="session")
def evoke_bin() -> Path:
    """The binary under test, named by EVOKE_BIN."""
    named = os.environ.get("EVOKE_BIN")
    if not named or not Path(named).is_file():
        raise pytest.UsageError("EVOKE_BIN must name the evoke binary to test; `make e2e` does that")
    return Path(named).resolve()


@pytest.fixture(scope="session")
def folders() -> Iterator[Path]:
    """A folder for data folders, which a service user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="evoke-e2e-", dir=FOLDER_PARENT))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """A registry of images, which the server knows as a mirror of `registry.example`."""
    registry = Registry().start()
    yield registry
    registry.stop()


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, evoke_bin: Path, folders: Path, registry: Registry) -> Iterator[Server]:
    """The session's server. EVOKE_E2E_DATA names a data folder to keep, with its images, from run to run."""
    kept = os.environ.get("EVOKE_E2E_DATA")
    data = Path(kept).absolute() if kept else folders / "data"
    data.mkdir(parents=True, exist_ok=True)
    mirrors = f'mirrors = {{ "registry.example" = ["{registry.address}"] }}'
    pythons = f'standalone_python = "{registry.address}/files/pythons"'
    lean = request.config.getoption("--lean")
    templates = request.config.getoption("--templates")
    ways = "[containers]\n"
    if lean is not None:
        ways += f"lean = {json.dumps([] if lean == 'off' else lean.split(','))}\n"
    if templates is not None:
        ways += f"templates = {json.dumps(templates == 'on')}\n"
    (data / "evoke.toml").write_text(f"[images]\n{pythons}\n[images.registry]\n{mirrors}\n{ways}")
    server = Server(evoke_bin, data)
    server.start()
    _have_a_base(server, folders)
    yield server
    assert server.stop() == 0, server.log_tail()
    assert server.leftovers() == []


def _have_a_base(server: Server, folders: Path) -> None:
    """Brings the base image that most tests stand on. The first time it is made from a distribution's packages."""
    client = Client(folders / "first", server.client_env())
    program = """
        app = modal.App("first")

        @app.function()
        def one():
            return 1

        @app.local_entrypoint()
        def main():
            report("one", one.remote())
        """
    assert client.program(program, timeout_s=BASE_S_MAX).ok()["one"] == 1


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Iterator[Client]:
    """A person with the official client, pointed at the session's server."""
    if not server.running:  # a test that stopped it failed before it started it again
        server.start()
    client = Client(tmp_path, server.client_env())
    yield client
    client.close()


@pytest.fixture(scope="module")
def module_client(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The same for a program that a whole file of tests looks at."""
    client = Client(tmp_path_factory.mktemp("module"), server.client_env())
    yield client
    client.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """A failure shows the end of the server's own log."""
    report = yield
    server = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(server, Server):
        report.sections.append(("the server's log", server.log_tail()))
    return report
