"""Watches and requests when the API server fails, over real connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent.core.errors import Invalid, PrewarmError, Transient
from agent.kube.api import KubeApi
from agent.kube.credentials import FixedServer, find_credentials
from agent.kube.errors import Away, Forbidden, Gone, NotFound, Rejected, Unauthorized
from tests.fakes.api_server import FakeApiServer, Object
from tests.integration.kube.contract import ITEMS, item, texts, until, watching

PATH = "/api/v1/namespaces/s/configmaps"


@pytest_asyncio.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer().serving() as serving:
        yield serving


@pytest_asyncio.fixture
async def api(server: FakeApiServer) -> AsyncIterator[KubeApi]:
    async with KubeApi(FixedServer(server.url)) as connected:
        yield connected


async def put(server: FakeApiServer, name: str, text: str) -> None:
    await server.put(f"{PATH}/{name}", item(name, text, contract="yes"))


async def test_lost_server_leaves_the_state_and_shows_since_when(server: FakeApiServer, api: KubeApi) -> None:
    await put(server, "a", "one")
    async with watching(api, "s") as cell:
        await until(cell, lambda v: v.synced)
        await server.stop()
        lost = await until(cell, lambda v: v.away_since is not None)
        assert texts(lost) == {"a": "one"}
        assert not lost.current
        assert lost.error.startswith(f"GET {PATH}: ")
        await put(server, "b", "two")
        await server.remove(f"{PATH}/a")
        await server.start()
        back = await until(cell, lambda v: v.current and len(v.items) == 1 and "s/b" in v.items)
        assert back.error == ""


async def test_server_absent_at_the_start_is_found_when_it_comes(server: FakeApiServer, api: KubeApi) -> None:
    await server.stop()
    async with watching(api, "s") as cell:
        lost = await until(cell, lambda v: v.away_since is not None)
        assert not lost.synced
        await put(server, "a", "one")
        await server.start()
        assert texts(await until(cell, lambda v: v.current)) == {"a": "one"}


async def test_restarted_server_is_watched_on_without_a_list(server: FakeApiServer, api: KubeApi) -> None:
    async with watching(api, "s") as cell:
        await until(cell, lambda v: v.synced)
        await server.cut_watches()
        await put(server, "a", "one")
        assert texts(await until(cell, lambda v: bool(v.items))) == {"a": "one"}
    assert sum("limit" in r.query for r in server.requests) == 1


async def test_forgotten_history_is_listed_again(server: FakeApiServer, api: KubeApi) -> None:
    await put(server, "a", "one")
    async with watching(api, "s") as cell:
        await until(cell, lambda v: v.synced)
        await server.stop()
        await server.remove(f"{PATH}/a")
        await put(server, "b", "two")
        await server.forget_history()
        await server.start()
        assert texts(await until(cell, lambda v: "s/b" in v.items)) == {"b": "two"}
    assert sum("limit" in r.query for r in server.requests) == 2


async def test_bookmarks_carry_the_version_past_foreign_events(server: FakeApiServer, api: KubeApi) -> None:
    async with watching(api, "s", seconds=1) as cell:
        await until(cell, lambda v: v.synced)
        for number in range(3):
            await server.put(f"/api/v1/namespaces/other/configmaps/x{number}", item("x", "-"))
        async with asyncio.timeout(10):
            while sum("watch" in r.query for r in server.requests) < 2:
                await server.asked.wait()  # the server ends a watch after its second
    versions = [int(r.query["resourceVersion"]) for r in server.requests if "watch" in r.query]
    assert versions[1] >= versions[0] + 3


async def test_refused_watch_is_visible_and_tried_again(server: FakeApiServer, api: KubeApi) -> None:
    server.failures = [403, 403]
    async with watching(api, "s") as cell:
        lost = await until(cell, lambda v: v.away_since is not None)
        assert "403" in lost.error
        await until(cell, lambda v: v.current)


async def test_idle_watch_sends_nothing(server: FakeApiServer, api: KubeApi) -> None:
    async with watching(api, "s") as cell:
        await until(cell, lambda v: v.synced)
        await asyncio.sleep(0.5)  # nothing may happen here
        assert [("watch" in r.query) for r in server.requests] == [False, True]


async def test_equal_object_keeps_its_identity(server: FakeApiServer, api: KubeApi) -> None:
    await put(server, "a", "one")
    await put(server, "b", "one")
    async with watching(api, "s") as cell:
        before = await until(cell, lambda v: v.synced)
        await put(server, "b", "two")
        after = await until(cell, lambda v: v.items["s/b"].text == "two")
        assert after.items["s/a"] is before.items["s/a"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, Rejected),
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (410, Gone),
        (422, Rejected),
        (429, Away),
        (500, Away),
        (503, Away),
        (504, Away),
    ],
)
async def test_status_becomes_its_error(
    server: FakeApiServer, api: KubeApi, status: int, error: type[Exception]
) -> None:
    server.failures = [status, status]
    with pytest.raises(error, match=f"GET {PATH}/a: {status} failing as told"):
        await api.get(ITEMS, "a", namespace="s")


async def test_silent_server_is_away(server: FakeApiServer, api: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.kube.api._LIST_SECONDS", 0.2)
    server.silent = True
    with pytest.raises(Away, match="no answer in time"):
        await api.list(ITEMS, namespace="s")


async def test_unresolvable_server_is_away() -> None:
    async with KubeApi(FixedServer("http://127.0.0.1:1")) as api:
        with pytest.raises(Transient):
            await api.get(ITEMS, "a", namespace="s")


async def test_service_account_token_is_read_again_when_refused(server: FakeApiServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("old\n")
    (tmp_path / "ca.crt").write_text(CA)
    env = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    found = await find_credentials("", env, tmp_path)
    assert found.server == "https://[fd00::1]:443"
    found.server = server.url  # type: ignore[misc]
    await put(server, "a", "one")
    async with KubeApi(found) as api:
        await api.get(ITEMS, "a", namespace="s")
        (tmp_path / "token").write_text("new\n")
        await api.get(ITEMS, "a", namespace="s")
        server.failures = [401]
        assert (await api.get(ITEMS, "a", namespace="s")).text == "one"
    assert [r.authorization for r in server.requests] == ["Bearer old", "Bearer old", "Bearer old", "Bearer new"]


async def test_missing_kubeconfig_is_invalid(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot use kubeconfig"):
        await find_credentials(str(tmp_path / "none"), {})


async def test_kubeconfig_with_a_token_is_used_and_read_again_when_refused(
    server: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config"
    path.write_text(kubeconfig(server.url, "old"))
    monkeypatch.setenv("KUBECONFIG", str(path))
    await put(server, "a", "one")
    async with await KubeApi.connect() as api:
        assert (await api.get(ITEMS, "a", namespace="s")).text == "one"
        assert server.requests[-1].authorization == "Bearer old"
        path.write_text(kubeconfig(server.url, "new"))
        server.failures = [401]
        assert (await api.get(ITEMS, "a", namespace="s")).text == "one"
        assert server.requests[-1].authorization == "Bearer new"


@pytest.mark.parametrize("content", ["", "{]", "a: 1", "clusters: 3"])
async def test_malformed_kubeconfig_is_invalid(tmp_path: Path, content: str) -> None:
    (tmp_path / "config").write_text(content)
    with pytest.raises(Invalid, match="cannot use kubeconfig"):
        await find_credentials(str(tmp_path / "config"), {})


async def raw_server(answer: bytes) -> asyncio.Server:
    """Serve one fixed answer to everything."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "the answer is no JSON: <html>"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n" + b"[" * 90_000, r"the answer is no JSON: \[\[\["),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "the answer is no object"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "not completed"),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 15\r\n\r\n<b>\x1b[31mBad</b>", r"502 <b> \[31mBad</b>"),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "302 without a message"),
        (b"garbage\r\n\r\n", "GET /api"),
        (b"", "GET /api"),
    ],
)
async def test_what_is_no_api_server_is_an_error_with_its_words_cut(answer: bytes, told: str) -> None:
    async with await raw_server(answer) as other:
        port = other.sockets[0].getsockname()[1]
        async with KubeApi(FixedServer(f"http://127.0.0.1:{port}")) as api:
            with pytest.raises(PrewarmError, match=told):
                await api.get(ITEMS, "a", namespace="s")


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[]",
        b'{"a":' * 20_000,
        b'{"type": "ADDED"}',
        b'{"type": "ADDED", "object": 3}',
        b'{"type": "ERROR", "object": {"code": 500, "message": "etcd"}}',
    ],
)
async def test_odd_watch_line_is_a_visible_failure_not_a_crash(
    server: FakeApiServer, api: KubeApi, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    monkeypatch.setattr("tests.fakes.api_server._line", lambda event, item: line + b"\n")
    async with watching(api, "s") as cell:
        await until(cell, lambda v: v.synced)
        await put(server, "a", "one")
        await until(cell, lambda v: v.away_since is not None)


async def test_events_that_came_together_with_a_failure_are_not_lost(
    server: FakeApiServer, api: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        await put(server, name, "one")
    async with watching(api, "s") as cell:
        await until(cell, lambda v: len(v.items) == 2)
        failure = b'{"type": "ERROR", "object": {"code": 500, "message": "etcd"}}\n'
        left = [True]

        def line(event: str, item: Object) -> bytes:
            wanted = json.dumps({"type": event, "object": item}).encode() + b"\n"
            return wanted + (failure if left and left.pop() else b"")

        monkeypatch.setattr("tests.fakes.api_server._line", line)
        await server.remove(f"{PATH}/a")
        await until(cell, lambda v: v.away_since is not None)
        assert texts(await until(cell, lambda v: v.current)) == {"b": "one"}


async def test_a_page_of_huge_objects_is_asked_for_in_smaller_ones(
    server: FakeApiServer, api: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.kube.api._MAX_ANSWER", 30_000)
    for number in range(20):
        await put(server, f"x{number}", "y" * 10_000)
    assert len((await api.list(ITEMS, namespace="s")).items) == 20
    await put(server, "huge", "y" * 40_000)
    with pytest.raises(Away, match="longer than 30000 bytes"):
        await api.list(ITEMS, namespace="s")


def kubeconfig(url: str, token: str) -> str:
    return json.dumps(
        {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": token}}],
        }
    )


CA = """-----BEGIN CERTIFICATE-----
MIIBdDCCARugAwIBAgIUEaSmyziYUlQd2CHHGuDkxkNwX+MwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjMyMTU1MDJaGA8yMTI2MTAzMDIxNTUw
MlowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABOGM
aWyhRVm8FDFC3NiW3ztDa9RMo+3KUeWkVrGBFaAk8d4f3Cbx5DNi+pikYiZYJFSN
QfM5Vfa64rVTVCtvI+ijUzBRMB0GA1UdDgQWBBSnqFQgQbjuaugIdafolOYeJ1Qn
hTAfBgNVHSMEGDAWgBSnqFQgQbjuaugIdafolOYeJ1QnhTAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0cAMEQCIAPg+odTTKtyCs5AA/TKq+jrrAQXwgQuI+OF
uoAhxZ/BAiBuoD3RIVIGPBhqtSi7EKTcbKqO0AYTCvYcQHigf/LcXw==
-----END CERTIFICATE-----
"""
