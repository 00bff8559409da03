"""Histories read from a real Prometheus, by the built-in query of each kind of server; and from one that answers nonsense."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agent.config import Settings
from agent.core.errors import Permanent, Transient
from agent.core.latest import Latest
from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint, WorkloadRef
from agent.demand.history import History, slot_of, track_of
from agent.demand.history_shards import decode
from agent.fleet.history import HistoryKeeper, HistoryReport
from agent.fleet.history_reader import HistoryReader, refusals
from agent.fleet.prometheus import MAX_ANSWER_BYTES, MAX_SERIES, Prometheus
from agent.fleet.sources import Sources
from tests.bed import needs
from tests.bed.prometheus import PrometheusServer, Sample
from tests.fakes.api_server import DirectApi, FakeApiServer

BEGIN = datetime(2026, 3, 2, tzinfo=UTC)
FIRST = slot_of(BEGIN)
SLOTS = 72  # twelve hours of samples, a minute apart
NOW = BEGIN + timedelta(minutes=10 * SLOTS, seconds=80)
AWAY = range(40, 46)  # Prometheus did not run
BORN = 6  # before that nobody had heard of the endpoint


def at(minute: int) -> int:
    """When a minute's scrape was."""
    return int(BEGIN.timestamp()) + minute * 60 + 7


class Pod:
    """A pod that is scraped from `since` until before `until`, in minutes since BEGIN; its counter rises in `busy` slots."""

    def __init__(self, since: int, until: int, busy: set[int], *, value: int = 0) -> None:
        self.minutes, self.busy, self.value = range(since, until), busy, value

    def samples(self, series: str) -> Iterator[Sample]:
        value = self.value
        for minute in self.minutes:
            value += minute // 10 in self.busy and minute % 10 == 5
            if minute // 10 not in AWAY:
                yield Sample(series=series, value=value, at=at(minute))


# Awake in slots 6 to 11, asleep; awake for one request that its first scrape finds done; asleep; awake through the gap.
PODS = (Pod(60, 120, {8, 9}), Pod(203, 207, set(), value=1), Pod(380, 600, {38, 50, 59}))
ACTIVE = {8, 9, 20, 38, 50, 59}


def expected() -> list[bool | None]:
    """What is known of each slot, counted from PODS alone; right after the gap a counter's rise cannot be told from its past."""
    return [None if slot in (*AWAY, AWAY.stop) or slot < BORN else slot in ACTIVE for slot in range(SLOTS)]


def endpoint(name: str, kind: str = "Deployment", history: str = "") -> Endpoint:
    ref = WorkloadRef(api_version="v1", kind=kind, namespace="shop", name=name, uid="u")
    return Endpoint(key=EndpointKey(namespace="shop", name=name), workload=ref, history=history)


# What is scraped of each kind, `{pod}` being its pod's name.
SERVERS: dict[str, tuple[Endpoint, str]] = {
    "vllm": (endpoint("v"), 'vllm:request_success_total{namespace="shop",pod="v-7d9c-x2x4z",finished_reason="stop"}'),
    "triton": (endpoint("t", "StatefulSet"), 'nv_inference_request_success{namespace="shop",pod="t-0",model="m"}'),
    "leaderworkerset": (
        endpoint("l", "LeaderWorkerSet"),
        'vllm:request_success_total{namespace="shop",pod="l-0",finished_reason="stop"}',
    ),
    "knative": (endpoint("k", "Service"), 'revision_request_count{namespace_name="shop",service_name="k"}'),
    "activator": (endpoint("a", "Service"), 'activator_request_count{namespace_name="shop",service_name="a"}'),
    "knative-1.19": (
        endpoint("n", "Service"),
        'kn_serving_invocation_duration_seconds_count{namespace="shop",pod="n-00002-deployment-7d9c-x2x4z"}',
    ),
    "kserve": (
        endpoint("i", "InferenceService"),
        'request_predict_seconds_count{namespace="shop",pod="i-predictor-00001-deployment-7d9c-x2x4z"}',
    ),
    "istio": (
        endpoint("m"),
        'istio_requests_total{reporter="destination",destination_workload_namespace="shop",destination_workload="m"}',
    ),
}
STRANGERS = (  # other people's, one letter away
    'vllm:request_success_total{namespace="shop",pod="v-2-7d9c-x2x4z",finished_reason="stop"}',
    'vllm:request_success_total{namespace="other",pod="v-7d9c-x2x4z",finished_reason="stop"}',
    'istio_requests_total{reporter="source",destination_workload_namespace="shop",destination_workload="m"}',
)
STREAM = 'vllm:num_requests_running{namespace="shop",pod="s-7d9c-x2x4z"}'


def recorded() -> Iterator[Sample]:
    yield from Pod(0, SLOTS * 10, set(), value=1).samples('up{job="any"}')
    for _, series in SERVERS.values():
        for pod in PODS:
            yield from pod.samples(series)
    for series in STRANGERS:
        yield from Pod(0, SLOTS * 10, set(range(SLOTS))).samples(series)
    for minute in range(60, 300):  # a request that streams for half an hour
        running = 1 if 133 <= minute < 163 else 0
        yield Sample(series=STREAM, value=running, at=at(minute))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    if reason := needs.why_not("prometheus"):
        pytest.skip(f"no Prometheus: {reason}")
    made = PrometheusServer(tmp_path_factory.mktemp("prometheus"))
    made.load(recorded())
    with made:
        yield made


@asynccontextmanager
async def asking(url: str, token: Path | None = None) -> AsyncIterator[Prometheus]:
    prometheus = Prometheus(url, token)
    try:
        yield prometheus
    finally:
        await prometheus.close()


def states(history: History, one: Endpoint, slots: int = SLOTS) -> list[bool | None]:
    return [history.track(one.key).state(FIRST + n) for n in range(slots)]


async def test_each_kind_of_server_is_read_by_its_built_in_query(server: PrometheusServer) -> None:
    history, endpoints = History(), [one for one, _ in SERVERS.values()]
    async with asking(server.url) as prometheus:
        reader = HistoryReader(prometheus, {})
        await reader.read(endpoints, history, NOW)
    assert reader.problems == {}
    assert reader.failures_total == 0
    wrong = {
        f"{name}: slot {n}": (found, right)
        for name, (one, _) in SERVERS.items()
        for n, (found, right) in enumerate(zip(states(history, one), expected(), strict=True))
        if found is not right
    }
    assert wrong == {}


async def test_a_request_that_runs_for_long_keeps_its_slots_active(server: PrometheusServer) -> None:
    history, one = History(), endpoint("s")
    async with asking(server.url) as prometheus:
        await HistoryReader(prometheus, {}).read([one], history, NOW)
    assert {n for n, state in enumerate(states(history, one)) if state} == {13, 14, 15, 16}


async def test_slots_are_read_as_they_end_and_replicas_count_where_there_are_no_samples(
    server: PrometheusServer,
) -> None:
    history, one = History(), SERVERS["vllm"][0]
    async with asking(server.url) as prometheus:
        reader = HistoryReader(prometheus, {})
        await reader.read([one], history, BEGIN + timedelta(minutes=200, seconds=80))
        assert states(history, one, 22) == [*expected()[:20], None, None]
        history.tell(one.key, track_of(FIRST + 20, [False, True, False]))  # what the planner saw of replicas
        await reader.read([one], history, BEGIN + timedelta(minutes=230, seconds=80))
    assert states(history, one, 24) == [*expected()[:20], True, True, False, None]


async def test_an_endpoint_that_prometheus_never_saw_stays_unknown(server: PrometheusServer) -> None:
    history, one = History(), endpoint("nobody")
    async with asking(server.url) as prometheus:
        await HistoryReader(prometheus, {}).read([one], history, NOW)
    assert states(history, one) == [None] * SLOTS


async def test_a_query_of_one_s_own_is_asked_as_it_is_and_a_bad_one_is_told(server: PrometheusServer) -> None:
    good = endpoint("g", history='sum(increase(nv_inference_request_success{pod="t-0"}[10m]))')
    bad = endpoint("b", history="sum(increase(")
    history = History()
    async with asking(server.url) as prometheus:
        reader = HistoryReader(prometheus, {"vllm": "sum(("})
        await reader.read([good, bad, endpoint("v")], history, NOW)
    assert states(history, good)[50:60] == expected()[50:60]
    assert set(reader.problems) == {bad.key, endpoint("v").key}
    (event,) = refusals([good, bad, endpoint("v")], reader.problems)
    assert (event.about.name, event.reason) == ("b", "HistoryUnreadable")
    assert event.message.startswith("prewarm.dev/history: Prometheus refuses the query: ")
    assert "parse error" in event.message


async def test_while_prometheus_is_away_nothing_is_entered_and_later_all_of_it(tmp_path: Path) -> None:
    if reason := needs.why_not("prometheus"):
        pytest.skip(f"no Prometheus: {reason}")
    server, history, one = PrometheusServer(tmp_path), History(), endpoint("v")
    server.load([Sample(series='up{job="any"}', value=1, at=at(n)) for n in range(600)])
    async with asking(server.url) as prometheus:
        reader = HistoryReader(prometheus, {})
        await reader.read([one], history, NOW)
        assert (history.tracks, reader.failures_total) == ({}, 1)
        await asyncio.to_thread(server.start)
        try:
            await reader.read([endpoint("u", history="sum(up)")], history, NOW)
        finally:
            server.stop()
    assert states(history, endpoint("u"))[:60] == [None] + [True] * 59
    assert reader.failures_total == 1


class Still:
    """A clock that stands at NOW; seconds pass as they do."""

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def test_the_planner_reads_what_is_past_and_keeps_it(server: PrometheusServer) -> None:
    api, sources, report = FakeApiServer(), Sources(), Latest(HistoryReport())
    one, bad = SERVERS["triton"][0], endpoint("b", history="sum(")
    endpoints = Latest[tuple[Endpoint, ...] | None]((one,))
    settings = Settings(prometheus_url=server.url)
    keeper = HistoryKeeper(DirectApi(api), settings, sources, endpoints, report, clock=Still())
    task = asyncio.create_task(keeper.run(), name="keeper")
    async with asyncio.timeout(60):
        async for found in report.follow():
            if one.key in found.tracks:
                break
        endpoints.set((one, bad))
        async for told in keeper.refused.follow():
            if told:
                break
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    kept = api.get("/api/v1/namespaces/prewarm/configmaps/prewarm-history-0")
    assert kept is not None
    track = decode(base64.b64decode(kept["binaryData"]["history"])).tracks[one.key]
    assert [track.state(FIRST + n) for n in range(SLOTS)] == expected()
    assert [event.about.name for event in told] == ["b"]
    assert report.get().failures == {"read": 1}
    assert report.get().complete


# -- one that answers nonsense -----------------------------------------------------------------------------------------


def matrix(*series: Any) -> bytes:
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": list(series)}}).encode()


@asynccontextmanager
async def answering(status: int, content: bytes, **headers: str) -> AsyncIterator[tuple[str, list[web.Request]]]:
    asked: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request)
        await request.post()
        return web.Response(status=status, body=content, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/base", asked
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "content", "error", "said"),
    [
        (200, b"<html>", Transient, "no Prometheus"),
        (200, b"[1]", Transient, "no Prometheus"),
        (200, b"[" * 100_000, Transient, "no Prometheus"),
        (200, b'{"status":"success","data":{"resultType":"matrix","result":{}}}', Transient, "no Prometheus"),
        (200, b'{"status":"success","data":{"resultType":"scalar","result":[1,"1"]}}', Permanent, "scalar"),
        (200, matrix(*[{}] * (MAX_SERIES + 1)), Permanent, f"{MAX_SERIES + 1} series"),
        (200, b" " * (MAX_ANSWER_BYTES + 1), Permanent, "8 MiB"),
        (302, b"", Transient, "302"),
        (400, b'{"error":"1:1: parse\\nerror"}', Permanent, "refuses the query: 1:1: parse error"),
        (422, b"", Permanent, "status 422"),
        (401, b"", Transient, "prometheus_token_file"),
        (503, b'{"error":"overloaded"}', Transient, "503: overloaded"),
        (404, b"no", Transient, "--from-prometheus, its address?"),
    ],
)
async def test_what_is_no_answer_is_told_in_a_sentence(
    status: int, content: bytes, error: type[Exception], said: str
) -> None:
    async with answering(status, content, Location="http://192.0.2.1/") as (url, _), asking(url) as prometheus:
        with pytest.raises(error, match=said.replace("?", "[?]")) as told:
            await prometheus.track("up", FIRST, 10)
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 400


async def test_samples_that_cannot_be_are_passed_over() -> None:
    end = (FIRST + 1) * 600
    odd: list[Any] = [
        {"values": [[end, "NaN"], [end + 1, "1"], [end + 600, "+Inf"], ["x", "1"], [end, None], 7, [1e400, "1"]]},
        {"values": [[end + 1200, "-1"], [end - 600, "1"], [end + 600 * 99, "1"], [end + 1800, "0"], [10**400, "1"]]},
        {"values": "none"},
        "series",
    ]
    async with answering(200, matrix(*odd)) as (url, asked), asking(url) as prometheus:
        track = await prometheus.track("up", FIRST, 5)
    assert [track.state(FIRST + n) for n in range(-1, 6)] == [None, None, True, False, False, None, None]
    assert [r.path for r in asked] == ["/base/api/v1/query_range"]


async def test_a_token_is_read_for_each_question_and_sent(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    async with answering(200, matrix()) as (url, asked), asking(url, token) as prometheus:
        await prometheus.track("up", FIRST, 1)
        token.write_text("two\n")
        await prometheus.track("up", FIRST, 1)
        token.unlink()
        with pytest.raises(Transient, match="prometheus_token_file"):
            await prometheus.track("up", FIRST, 1)
    assert [r.headers["Authorization"] for r in asked] == ["Bearer one", "Bearer two"]
