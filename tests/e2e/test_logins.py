"""Logins from other machines: the official client's token flow, approved here; tokens that are listed and revoked."""

import json
import re
from pathlib import Path

from support.client import Client, Line
from support.server import Server

CODE = re.compile(r"Enter this code: ([A-Z]{4}-[A-Z]{4})")


def _elsewhere(server: Server, folder: Path) -> Client:
    """A person who knows the server's address and nothing else."""
    config = {"MODAL_CONFIG_PATH": str(folder / "modal.toml"), "BROWSER": "/bin/true"}
    return Client(folder, {"MODAL_SERVER_URL": server.client_env()["MODAL_SERVER_URL"], **config})


def _listed(server: Server) -> dict[str, str]:
    return {token["name"]: token["id"] for token in json.loads(server.evoke("token", "list", "--json").stdout)}


def test_a_login_is_approved_here_and_taken_back_at_once(server: Server, tmp_path: Path) -> None:
    client = _elsewhere(server, tmp_path)
    refused = client.modal("app", "list").failed().stderr
    assert "modal token new" in refused, refused

    login = client.start_modal("token", "new")

    def shown(lines: list[Line]) -> bool:
        return any(CODE.search(line.text) for line in lines)

    lines = login.wait_for(shown, "the code of a login")
    code = next(found[1] for line in lines if (found := CODE.search(line.text)))
    assert any("/login?code=" in line.text for line in lines)
    wrong = server.evoke("token", "approve", "XXXX-XXXX", check=False)
    assert wrong.returncode != 0 and "modal token new" in wrong.stderr, wrong.stderr
    approved = server.evoke("token", "approve", code.lower(), "--name", "bob")
    assert approved.stdout.startswith("bob is in: token ak-"), approved.stdout
    assert "Token verified successfully" in login.end().ok().stdout
    assert server.evoke("token", "approve", code, check=False).returncode != 0, "a code is good once"

    assert "bob" in client.modal("token", "info").ok().stdout
    written = (tmp_path / "modal.toml").read_text()
    assert "[main]" in written and "active = true" in written and _listed(server)["bob"] in written

    server.kill_server()
    client.modal("app", "list").ok()
    assert "bob" in client.modal("workspace", "member-tokens", "list").ok().stdout
    server.evoke("token", "revoke", _listed(server)["bob"])
    assert "modal token new" in client.modal("app", "list").failed().stderr
    assert "bob" not in _listed(server)
    client.close()


def test_tokens_are_made_here_and_set_there(server: Server, tmp_path: Path) -> None:
    client = _elsewhere(server, tmp_path)
    made = json.loads(server.evoke("token", "create", "--name", "ci", "--days", "1", "--json").stdout)
    words = ["--token-id", made["id"], "--token-secret", made["secret"]]
    client.modal("token", "set", *words, "--no-activate", env={"MODAL_PROFILE": "other"}).ok()
    client.modal("app", "list", env={"MODAL_PROFILE": "other"}).ok()
    assert made["expires_ms"] - made["created_ms"] == 24 * 3600 * 1000
    # Disabled tokens are kept, and taken again once they are enabled.
    owner = Client(tmp_path / "owner", server.client_env())
    owner.modal("workspace", "member-tokens", "disable", made["id"], "--yes").ok()
    client.modal("app", "list", env={"MODAL_PROFILE": "other"}).failed()
    owner.modal("workspace", "member-tokens", "enable", made["id"], "--yes").ok()
    client.modal("app", "list", env={"MODAL_PROFILE": "other"}).ok()
    own = server.client_env()["MODAL_TOKEN_ID"]
    refused = server.evoke("token", "revoke", own, check=False)
    assert refused.returncode != 0 and "token.json" in refused.stderr, refused.stderr
    assert made["secret"] not in server.evoke("token", "list", "--json").stdout
    server.evoke("token", "revoke", made["id"])
    client.close()
    owner.close()
