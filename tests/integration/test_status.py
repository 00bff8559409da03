"""`prewarm status`: what it shows, of whom, and whom it asks."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from agent.cli import status
from tests.integration.test_local_api import serving
from tests.unit.node.making import warm

NODES: list[dict[str, Any]] = [
    {
        "node": name,
        "status": {},
        "endpoints": [{"namespace": "team", "name": "chat", "readyBy": ""}],
    }
    for name in ("n1", "n2")
]


async def asked(*words: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "status", *words), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return json.loads(out)


async def test_a_nodes_endpoints_are_those_of_the_namespace_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        node.prove(warm())
        socket = ("--json", "--socket", str(tmp_path / "run" / "admin.sock"))
        everything, other = await asked(*socket), await asked(*socket, "-n", "other")
    assert [e["endpoint"] for e in everything["endpoints"]] == ["team.chat"]
    assert other["endpoints"] == []


def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    async def ask(_kubeconfig: str, _namespace: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
        return NODES, {}

    monkeypatch.setattr(status, "_ask_api_server", ask)
    from agent.cli import main

    assert main(["status", "--fleet", *words]) == 0
    return capsys.readouterr().out


def test_one_node_of_the_fleet_is_shown_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads(show(monkeypatch, capsys, "--node", "n1", "--json"))
    assert [n["node"] for n in told["nodes"]] == ["n1"]
    assert [e["node"] for e in told["endpoints"]] == ["n1"]


def test_what_is_not_found_is_not_taken_for_nothing_at_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--node", "n3"], ["-n", "other"]):
        told = show(monkeypatch, capsys, *words)
        assert told.startswith(f"no endpoint{' of namespace other' if '-n' in words else ''} is assigned to ")
        assert words[1] in told


def test_what_a_node_says_of_itself_commands_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"key": "team.chat", "stage": "ready", "reason": "\x1b[2J\nteam   chat   n2   ready"}
    item = {"ref": "s3://b/m/", "level": "absent", "reason": "\x1b[31m"}
    monkeypatch.setitem(NODES[0], "status", {"endpoints": [said], "items": [item]})
    told = show(monkeypatch, capsys, "--node", "n1")
    assert "\x1b" not in told
    assert len([line for line in told.splitlines() if line.startswith("team")]) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")
def test_who_may_not_ask_the_admin_socket_asks_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as directory:
        admin, agent = Path(directory) / "admin.sock", Path(directory) / "agent.sock"
        for path, mode in ((Path(directory), 0o755), (admin, 0o600), (agent, 0o666)):
            path.touch()
            path.chmod(mode)
        monkeypatch.setattr(status, "_SOCKETS", (admin, agent))
        assert status.found_socket() == admin
        os.seteuid(65534)
        try:
            assert status.found_socket() == agent
        finally:
            os.seteuid(0)
