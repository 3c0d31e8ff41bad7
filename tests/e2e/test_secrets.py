"""Secrets: what functions see of them, and that nobody else does."""

import hashlib
import os
import re
from pathlib import Path
from secrets import token_hex

import pytest
from support.client import Client, Run
from support.server import Server
from support.waits import wait_until

NAMES = ("FROM_DICT", "FROM_DOTENV", "FROM_LOCAL", "FROM_NAME", "IN_BUILD")
# Others in each run, and long enough that nothing else holds them by chance.
VALUES = {name: f"{name.lower()}-{token_hex(16)}" for name in NAMES}

# Functions answer with digests: results are kept, and must not be what is found when values are looked for.
PROGRAM = """
import hashlib
app = modal.App("secrets")

def digest(name):
    value = os.environ.get(name)
    return value and hashlib.sha256(value.encode()).hexdigest()

values = {}
for name in ("FROM_DICT", "IN_BUILD"):
    values[name] = os.environ.get("TEST_" + name, "")

@app.function(
    secrets=[
        modal.Secret.from_dict({"FROM_DICT": values["FROM_DICT"], "OVERRIDDEN": "first"}),
        modal.Secret.from_dotenv(filename="secrets.env") if modal.is_local() else modal.Secret.from_dict({}),
        modal.Secret.from_local_environ(["FROM_LOCAL"]) if modal.is_local() else modal.Secret.from_dict({}),
        modal.Secret.from_name("e2e-named", required_keys=["FROM_NAME"]),
        modal.Secret.from_dict({"OVERRIDDEN": "last"}),
    ],
)
def look():
    print("looking around", flush=True)
    wanted = ("FROM_DICT", "FROM_DOTENV", "FROM_LOCAL", "FROM_NAME", "OVERRIDDEN", "QUOTED")
    return {name: digest(name) for name in wanted}

@app.function(env={"PLAIN": "visible"}, secrets=[modal.Secret.from_dict({"FROM_DICT": values["FROM_DICT"]})])
def fails():
    raise RuntimeError("failed beside a secret of PLAIN " + os.environ["PLAIN"])

@app.function()
def without():
    return {name: digest(name) for name in ("FROM_DICT", "FROM_NAME", "FROM_LOCAL")}

image = modal.Image.debian_slim().run_commands(
    'test -n "$IN_BUILD" && echo "built with a secret of $(printf %s "$IN_BUILD" | wc -c) letters"',
    secrets=[modal.Secret.from_dict({"IN_BUILD": values["IN_BUILD"]})],
)

@app.function(image=image)
def after_build():
    return os.environ.get("IN_BUILD")

@app.local_entrypoint()
def main():
    report("look", look.remote())
    report("fails", attempt(fails.remote))
    report("without", without.remote())
    report("after build", after_build.remote())
    report("missing key", attempt(lambda: modal.Secret.from_name("e2e-named", required_keys=["OTHER"]).hydrate()))
    report("app", app.app_id)
"""


@pytest.fixture(scope="module")
def secrets(module_client: Client) -> Run:
    env = {f"TEST_{name}": value for name, value in VALUES.items()} | {"FROM_LOCAL": VALUES["FROM_LOCAL"]}
    dotenv = f"FROM_DOTENV={VALUES['FROM_DOTENV']}\n# a comment\nQUOTED='two words'\n"
    (module_client.folder / "secrets.env").write_text(dotenv)
    created = module_client.modal("secret", "create", "--force", "e2e-named", f"FROM_NAME={VALUES['FROM_NAME']}")
    created.ok()
    assert VALUES["FROM_NAME"] not in created.output
    return module_client.program(PROGRAM, "secrets.py", env=env).ok()


def test_functions_see_their_secrets_and_the_last_one_wins(secrets: Run) -> None:
    names = ("FROM_DICT", "FROM_DOTENV", "FROM_LOCAL", "FROM_NAME")
    expected = {name: VALUES[name] for name in names} | {"OVERRIDDEN": "last", "QUOTED": "two words"}
    assert secrets["look"] == {name: hashlib.sha256(value.encode()).hexdigest() for name, value in expected.items()}


def test_functions_see_nothing_else(secrets: Run) -> None:
    assert secrets["without"] == {"FROM_DICT": None, "FROM_NAME": None, "FROM_LOCAL": None}
    assert secrets["after build"] is None


def test_a_key_that_a_secret_lacks_is_named(secrets: Run) -> None:
    assert "OTHER" in secrets["missing key"]["error"], secrets["missing key"]


def test_named_secrets_are_listed_without_their_values(secrets: Run, module_client: Client) -> None:
    listed = module_client.modal("secret", "list").ok()
    assert "e2e-named" in listed.output
    assert VALUES["FROM_NAME"] not in listed.output
    module_client.modal("secret", "delete", "e2e-named", "--yes").ok()
    assert "e2e-named" not in module_client.modal("secret", "list").ok().output


def test_values_are_in_no_output_and_no_log(secrets: Run, server: Server) -> None:
    log = server.log_path.read_text(errors="replace")
    for name, value in VALUES.items():
        assert value not in secrets.output, name
        assert value not in log, name


def test_values_are_nowhere_in_the_data_folder(secrets: Run, server: Server) -> None:
    # Containers that still live have them in memory; what they leave is looked at, too. Others may live on.
    app = re.search(r"/apps/(ap-\w+)", secrets.flat.replace(" ", ""))
    assert app, secrets.flat
    wait_until(lambda: server.explain(app[1])["containers"] == 0, "no containers", 40)
    found = [f"{name} in {path}" for path in _files(server.data) for name in _values_in(path)]
    assert found == []


def _files(folder: Path) -> list[Path]:
    return [Path(at) / name for at, _, names in os.walk(folder) for name in names]


def _values_in(path: Path) -> list[str]:
    if path.is_symlink() or not path.is_file():
        return []
    content = path.read_bytes()
    return [name for name, value in VALUES.items() if value.encode() in content]
