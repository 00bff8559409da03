"""The agent's HTTP server, and cold starts measured against a real model server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from prometheus_client import CollectorRegistry

from agent.core.assignment import Assignment, EndpointWant
from agent.core.clock import SystemClock
from agent.core.errors import Permanent
from agent.core.inventory import Inventory
from agent.core.latest import Latest
from agent.core.refs import EndpointKey
from agent.kube.objects import Condition, ContainerStatusView, ContainerView, NodeView, PodSpecView, PodView
from agent.kube.watch import Listing
from agent.observe.answers import MAX_BODY_BYTES, AnswerReader
from agent.observe.coldstart import Answers, ColdStarts
from agent.observe.http import HttpServer
from agent.observe.metrics import Metrics
from tests.bed.modelserver import weights

PATIENCE_SECONDS = 30.0
KEY = EndpointKey(namespace="shop", name="chat")
NODE = NodeView(name="n1", labels={"karpenter.sh/nodepool": "gpu"})
LABELS = {
    "namespace": "shop",
    "endpoint": "chat",
    "size_class": "none",
    "node_pool": "gpu",
    "warm": "cold",
    "outcome": "ok",
}


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


class Served:
    """A server on a free port, and what it says of readiness."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.red: list[str] = []
        self.http = HttpServer("127.0.0.1:0", self.registry, lambda: self.red)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.port}{path}"


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    made = Served()
    await made.http.start()
    yield made
    await made.http.close()


async def test_live_answers_as_soon_as_it_is_bound(served: Served) -> None:
    served.red = ["everything"]
    assert await get(served.url("/livez")) == (200, "ok\n")


async def test_ready_says_what_is_red(served: Served) -> None:
    assert await get(served.url("/readyz")) == (200, "ok\n")
    served.red = ["gpu: has not completed a cycle yet", "publisher: a withdrawal has waited for 9 s"]
    assert await get(served.url("/readyz")) == (
        503,
        "gpu: has not completed a cycle yet\npublisher: a withdrawal has waited for 9 s\n",
    )


async def test_metrics_are_in_the_text_format(served: Served) -> None:
    Metrics(served.registry).xid("fatal")
    status, text = await get(served.url("/metrics"))
    assert status == 200
    assert 'prewarm_gpu_xids_total{class="fatal"} 1.0\n' in text


async def test_other_paths_and_methods_are_refused(served: Served) -> None:
    assert (await get(served.url("/")))[0] == 404
    async with aiohttp.ClientSession() as session, session.post(served.url("/metrics")) as response:
        assert response.status == 405


async def test_an_address_in_use_is_told_with_its_setting(served: Served) -> None:
    second = HttpServer(f"127.0.0.1:{served.http.port}", CollectorRegistry(), list)
    with pytest.raises(Permanent, match=rf"127.0.0.1:{served.http.port}: .*in use.*http_address"):
        await second.start()


async def test_run_serves_until_it_is_cancelled() -> None:
    http = HttpServer("127.0.0.1:0", CollectorRegistry(), list)
    await http.start()
    task = asyncio.create_task(http.run(), name="http")
    url = f"http://127.0.0.1:{http.port}/livez"
    assert (await get(url))[0] == 200
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(url)


async def test_a_huge_metrics_page_is_read_in_bounds_and_a_redirect_is_not_followed() -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 64 * MAX_BODY_BYTES:
            await response.write(b"x" * 65536)
            sent += 65536
        return response

    async def away(request: web.Request) -> web.Response:
        raise web.HTTPFound("/answered")

    async def answered(request: web.Request) -> web.Response:
        return web.Response(text="tgi_request_success 1\n")

    app = web.Application()
    app.add_routes([web.get("/endless", endless), web.get("/away", away), web.get("/answered", answered)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    reader = AnswerReader()
    try:
        assert await reader.has_answered("127.0.0.1", ((port, "/endless"),)) is False
        assert sent < 32 * MAX_BODY_BYTES
        assert await reader.has_answered("127.0.0.1", ((port, "/away"),)) is False
        assert await reader.has_answered("127.0.0.1", ((1, "/metrics"), (port, "/answered"))) is True
    finally:
        await reader.close()
        await runner.cleanup()


def pod(port: int, created: datetime) -> PodView:
    return PodView(
        namespace="shop",
        name="chat-0",
        uid="u1",
        owner_kind="StatefulSet",
        owner_name="chat",
        pod_ip="127.0.0.1",
        created=created,
        spec=PodSpecView(containers=(ContainerView(name="server", image="server:1", ports=(port,)),)),
    )


def running(pod: PodView) -> PodView:
    assert pod.created
    status = ContainerStatusView(name="server", started_at=pod.created + timedelta(seconds=3))
    return replace(pod, containers=(status,))


def ready(pod: PodView) -> PodView:
    assert pod.created
    since = pod.created + timedelta(seconds=10)
    return replace(running(pod), conditions=(Condition(type="Ready", status="True", since=since),))


class Watched:
    """ColdStarts on a cell of pods."""

    def __init__(self, answers: Answers | None = None) -> None:
        self.registry = CollectorRegistry()
        self.pods = Latest[Listing[PodView]](Listing())
        self.inventory = Inventory(proved=True)
        self.service = ColdStarts(
            pods=self.pods,
            assignment=lambda: Assignment(endpoints=(EndpointWant(key=KEY),)),
            inventory=lambda: self.inventory,
            node=lambda: NODE,
            clock=SystemClock(),
            observer=Metrics(self.registry),
            answers=answers or AnswerReader(),
        )

    async def show(self, *pods: PodView) -> None:
        """Have the watch show these pods, and let the service take them in."""
        self.pods.set(Listing(items={pod.name: pod for pod in pods}, synced=True))
        for _ in range(5):
            await asyncio.sleep(0)

    def read(self, name: str, what: str = "count", **labels: str) -> float | None:
        return self.registry.get_sample_value(f"{name}_seconds_{what}", LABELS | labels)

    async def until_counted(self, name: str) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self.read(name):  # noqa: ASYNC110 (the registry tells nobody)
                await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def watched() -> AsyncIterator[Watched]:
    made = Watched()
    task = asyncio.create_task(made.service.run(), name="cold starts")
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[int]:
    """The bed's model server with a small model; its port."""
    weights.write_model(tmp_path / "model", 1 << 20)
    program = Path(weights.__file__).with_name("server.py")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), "--port", "0", "--model", str(tmp_path / "model")),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    yield int((await process.stdout.readline()).decode().partition('"port": ')[2].partition("}")[0])
    process.kill()
    await process.communicate()


async def complete(port: int) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(PATIENCE_SECONDS):
        while True:
            async with session.post(f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "hi"}) as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.02)


async def test_a_start_moves_each_of_the_three_histograms_by_one(watched: Watched, server: int) -> None:
    await watched.show()
    created = datetime.now(UTC) - timedelta(seconds=12)
    await watched.show(pod(server, created))
    await watched.show(running(pod(server, created)))
    await watched.show(ready(pod(server, created)))
    assert (watched.read("image_pull"), watched.read("image_pull", "sum")) == (1, 3)
    assert (watched.read("model_load"), watched.read("model_load", "sum")) == (1, 7)
    assert watched.read("cold_start_total") is None
    await complete(server)
    await watched.until_counted("cold_start_total")
    total = watched.read("cold_start_total", "sum")
    assert total is not None
    assert 12 <= total < 12 + PATIENCE_SECONDS
    await complete(server)
    await watched.show()
    counts = [watched.read(name) for name in ("image_pull", "model_load", "cold_start_total")]
    assert counts == [1, 1, 1]


async def test_a_pod_that_already_ran_when_the_agent_started_is_not_counted(watched: Watched, server: int) -> None:
    created = datetime.now(UTC) - timedelta(seconds=3)
    await watched.show(running(pod(server, created)))
    await watched.show(ready(pod(server, created)))
    assert watched.read("image_pull") is None


async def test_two_pods_are_counted_apart_and_one_that_never_answers_holds_up_nobody(
    watched: Watched, server: int
) -> None:
    await watched.show()
    created = datetime.now(UTC)
    silent = replace(pod(1, created), name="chat-1", uid="u2")
    good = pod(server, created)
    await watched.show(silent, good)
    await watched.show(ready(silent), ready(good))
    await complete(server)
    await watched.until_counted("cold_start_total")
    assert (watched.read("image_pull"), watched.read("cold_start_total")) == (2, 1)


async def test_how_warm_a_node_was_before_its_first_proof_is_unknown_not_cold(watched: Watched) -> None:
    watched.inventory = Inventory()
    await watched.show()
    started = pod(1, datetime.now(UTC))
    await watched.show(started)
    watched.inventory = Inventory(proved=True)
    await watched.show(ready(started))
    assert watched.read("image_pull") is None
    assert watched.read("image_pull", warm="unknown") == 1


class OneHangs:
    """Answers of two pods: the first keeps whoever asks, the second has answered when it is asked for the second time."""

    def __init__(self) -> None:
        self.asked = 0

    async def has_answered(self, ip: str, targets: tuple[tuple[int, str], ...]) -> bool:
        if targets[0][0] == 1:
            await asyncio.Event().wait()
        self.asked += 1
        return self.asked > 1

    async def close(self) -> None:
        pass


async def test_a_pod_that_keeps_whoever_asks_does_not_delay_what_another_answered() -> None:
    watched = Watched(OneHangs())
    task = asyncio.create_task(watched.service.run(), name="cold starts")
    try:
        await watched.show()
        created = datetime.now(UTC)
        pods = replace(pod(1, created), name="chat-1", uid="u2"), pod(2, created)
        await watched.show(*pods)
        await watched.show(*map(ready, pods))
        async with asyncio.timeout(5):
            await watched.until_counted("cold_start_total")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
