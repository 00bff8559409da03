"""`prewarm replay` and `prewarm recommend` on what a planner remembers, against an API server in memory over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from agent.cli import main
from agent.core.refs import EndpointKey
from agent.demand.history import DAY_SLOTS, slot_of, slot_start, track_of
from agent.demand.history_shards import Shard, encode
from tests.fakes.api_server import FakeApiServer
from tests.integration.test_doctor import write_kubeconfig

ADDED = ("/apis/serving.knative.dev/v1/services", "/apis/serving.kserve.io/v1beta1/inferenceservices")


@pytest_asyncio.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    """An endpoint with pods from eight to noon each day, one of another namespace, and what the planner remembers of the first."""
    async with FakeApiServer().serving() as serving:
        serving.not_installed.update(ADDED)
        for namespace, name, least in (
            ("shop", "chat", "recommend"),
            ("shop", "draw", "off"),
            ("other", "chat", "off"),
        ):
            annotations = {"prewarm.dev/schedule": "0 8 * * *", "prewarm.dev/min-scale": least}
            template = {"spec": {"containers": [{"name": "c", "image": "registry.test/x:1"}]}}
            body = {"metadata": {"annotations": annotations}, "spec": {"template": template}}
            await serving.put(f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}", body)
        now = datetime.now(UTC)
        first = slot_of(now) - 12 * DAY_SLOTS
        used = track_of(first, [8 <= slot_start(first + n).hour < 12 for n in range(12 * DAY_SLOTS)])
        shard = Shard(written_at=now, tracks={EndpointKey(namespace="shop", name="chat"): used})
        await serving.put("/api/v1/namespaces/prewarm/configmaps/prewarm-history-3", config_map(shard))
        yield serving


def config_map(shard: Shard) -> dict[str, object]:
    """A ConfigMap as the planner writes it."""
    return {"binaryData": {"history": base64.b64encode(encode(shard)).decode()}}


Told = tuple[int, str, str]
Prewarm = Callable[..., Awaitable[Told]]


@pytest.fixture
def prewarm(server: FakeApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Prewarm:
    """Run a command on the server; exit code, stdout, stderr."""

    async def run(*words: str) -> Told:
        code = await asyncio.to_thread(main, [*words, "--kubeconfig", str(write_kubeconfig(tmp_path, server.url))])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


async def test_recommend_tells_of_what_the_planner_remembers(prewarm: Prewarm) -> None:
    code, out, err = await prewarm("recommend", "--json", "--days", "30")
    assert (code, err) == (0, "")
    found = json.loads(out)
    [line] = found["recommendations"]
    assert (found["source"], line["namespace"], line["name"]) == ("planner", "shop", "chat")
    assert (line["p95Pods"], line["pods"], line["gpuHoursPerWeek"], line["podHoursPerWeek"]) == (
        1,
        1,
        0,
        pytest.approx(7 * 5 / 60, rel=0.35),
    )
    code, out, _ = await prewarm("recommend")
    assert code == 0
    assert "Name a Prometheus with --from-prometheus" in out


async def test_replay_leaves_out_whom_the_planner_does_not_know_and_says_so(prewarm: Prewarm) -> None:
    code, out, err = await prewarm("replay", "--json", "-n", "shop")
    assert code == 0
    assert err == "prewarm replay: shop/draw is left out: nothing is known of its last 28 days\n"
    found = json.loads(out)
    begin, end = (datetime.fromisoformat(found[name]) for name in ("counted_from", "counted_until"))
    today = datetime.now(UTC).replace(hour=8, minute=0, second=0, microsecond=0)
    mornings = [today - timedelta(days=n) for n in range(12)]
    assert found["replay"][0]["returns"] == sum(begin <= at < end for at in mornings)


async def test_recommend_says_0_of_whom_the_planner_knows_ten_minutes_that_have_not_ended(
    server: FakeApiServer, prewarm: Prewarm
) -> None:
    now = datetime.now(UTC)
    lasting = slot_of(now + timedelta(minutes=2))  # as long as the commands below take
    begun = Shard(written_at=now, tracks={EndpointKey(namespace="other", name="chat"): track_of(lasting, [True, True])})
    await server.put("/api/v1/namespaces/prewarm/configmaps/prewarm-history-4", config_map(begun))
    code, out, err = await prewarm("recommend", "other/chat", "--json")
    assert (code, err.count("\n")) == (0, 1)
    assert "remembers nothing of these endpoints' last 42 days: ten minutes count when they are over" in err
    [line] = json.loads(out)["recommendations"]
    assert (line["pods"], line["windowsSeen"]) == (0, 0)
    assert line["why"] == "0 of its past windows are known, at least 5 are needed"
    code, out, err = await prewarm("recommend", "other/chat", "shop/chat", "shop/draw", "--json")
    assert (code, err) == (0, "")
    assert {(r["namespace"], r["name"]): r["pods"] for r in json.loads(out)["recommendations"]} == {
        ("other", "chat"): 0,
        ("shop", "chat"): 1,
        ("shop", "draw"): 0,
    }


async def test_nobody_known_is_one_sentence_with_a_cure(server: FakeApiServer, prewarm: Prewarm) -> None:
    code, out, err = await prewarm("replay", "-n", "other")
    assert (code, out) == (1, "")
    assert "remembers nothing of these endpoints' last 28 days: " in err
    server.forbidden = "configmaps"
    code, out, err = await prewarm("replay")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "forbidden" in err.lower() or "may not" in err.lower()
