"""Where the past is read from: who is sent a token, and what is said of a memory that cannot be read."""

from __future__ import annotations

import argparse
import base64
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent.cli import traffic
from agent.config import Settings
from agent.kube.api import KubeApi
from tests.fakes.api_server import DirectApi, FakeApiServer


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("same", [False, True])
async def test_the_settings_token_is_sent_to_the_settings_server_only(tmp_path: Path, same: bool, flag: bool) -> None:
    sent = list[str | None]()

    async def answer(request: web.Request) -> web.Response:
        sent.append(request.headers.get("Authorization"))
        return web.json_response({"status": "success", "data": {"resultType": "matrix", "result": []}})

    app = web.Application()
    app.router.add_post("/api/v1/query_range", answer)
    for name in ("settings", "flag"):
        (tmp_path / name).write_text(f"of-{name}\n")
    async with TestServer(app) as server:
        url = str(server.make_url("")).rstrip("/")
        options = argparse.Namespace(from_prometheus=url, token_file=tmp_path / "flag" if flag else None)
        named = url if same else "http://prometheus.monitoring:9090"
        settings = replace(Settings(), prometheus_url=named, prometheus_token_file=tmp_path / "settings")
        async with traffic.prometheus_of(options, settings) as prometheus:
            assert prometheus is not None
            await prometheus.levels("up", 0, 1)
    assert sent == ["Bearer of-flag" if flag else "Bearer of-settings" if same else None]


async def test_a_memory_that_cannot_be_read_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FakeApiServer()
    damaged = {"binaryData": {"history": base64.b64encode(b"PWH\x01damaged").decode()}}
    await server.put("/api/v1/namespaces/prewarm/configmaps/prewarm-history-3", damaged)

    async def connect(kubeconfig: str) -> KubeApi:
        return DirectApi(server)

    monkeypatch.setattr(KubeApi, "connect", connect)
    options = argparse.Namespace(command="recommend", planner_namespace="prewarm", kubeconfig="")
    assert await traffic.remembered(options, []) == {}
    said = "cannot read ConfigMap prewarm-history-3: a damaged history: its checksum differs"
    assert capsys.readouterr().err == f"prewarm recommend: {said}\n"
