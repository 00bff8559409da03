"""The whole planner against an API server in memory, over HTTP: from annotation to NodeWarmup and Event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from agent.config import Settings
from agent.core.clock import SystemClock
from agent.core.errors import Permanent, Transient
from agent.core.refs import Digest, EndpointKey, ImageRef, ModelUri
from agent.core.sources import SourceRule
from agent.demand.history import Track
from agent.fleet.fleet import Fleet
from agent.fleet.history import HistoryReport
from agent.fleet.sources import AGENT_LABELS
from agent.kube.api import KubeApi
from agent.kube.credentials import FixedServer
from tests.fakes.api_server import FakeApiServer

DEPLOYMENTS = "/apis/apps/v1/namespaces/shop/deployments"
WARMUPS = "/apis/prewarm.dev/v1alpha1/nodewarmups"
DIGEST = Digest("sha256:" + "a" * 64)


class Models:
    """An S3 that holds everything under weights/."""

    def __init__(self) -> None:
        self.away = False

    async def resolve(self, uri: ModelUri) -> tuple[Digest, int, int]:
        if self.away:
            raise Transient("s3 is away")
        if "missing" in uri.key:
            raise Permanent(f"{uri}: no object")
        return DIGEST, 1000, 2


class Images:
    async def resolve(self, ref: ImageRef, secrets: object = None) -> str:
        return "sha256:" + "b" * 64


@pytest_asyncio.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer().serving() as serving:
        await node(serving, "n1")
        await agent(serving, "n1")
        yield serving


@pytest.fixture
def models() -> Models:
    return Models()


class Dying(KubeApi):
    """A connection of which nothing comes through after so many writes of NodeWarmups."""

    def __init__(self, server: FixedServer, writes: int) -> None:
        super().__init__(server)
        self._left = writes
        self.dead = False

    async def _ask(self, method: str, path: str, **other: Any) -> Any:
        writes = method != "GET" and path.startswith(WARMUPS)
        self.dead = self.dead or (writes and not self._left)
        if self.dead:
            raise Transient("dead")
        self._left -= writes
        return await super()._ask(method, path, **other)


@asynccontextmanager
async def planner(
    server: FakeApiServer, models: Models, name: str = "one", *, through: KubeApi | None = None
) -> AsyncIterator[Fleet]:
    """Run one replica."""
    settings = Settings(sources=(SourceRule(namespace="*", bucket="weights", prefix=""),))
    async with through or KubeApi(FixedServer(server.url)) as api:
        fleet = Fleet(api, settings, identity=name, models=models, images=Images(), clock=SystemClock())
        task = asyncio.create_task(fleet.run(), name=name)
        try:
            yield fleet
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def node(server: FakeApiServer, name: str, ready: str = "True") -> None:
    labels = {"endpoint.prewarm.dev/shop.old": "ready"}
    meta = {"labels": labels, "annotations": {"prewarm.dev/boot-id": "b"}, "uid": f"uid-{name}"}
    status = {"conditions": [{"type": "Ready", "status": ready}], "nodeInfo": {"bootID": "b"}}
    await server.put(f"/api/v1/nodes/{name}", {"metadata": meta, "spec": {}, "status": status})


async def agent(server: FakeApiServer, name: str) -> None:
    labels = dict(pair.split("=") for pair in AGENT_LABELS.split(","))
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    body = {"metadata": {"labels": labels}, "spec": {"nodeName": name}, "status": status}
    await server.put(f"/api/v1/namespaces/prewarm/pods/agent-{name}", body)


async def deployment(server: FakeApiServer, name: str, **annotations: str) -> None:
    written = {f"prewarm.dev/{k}": v for k, v in annotations.items()}
    pod = {"containers": [{"name": "server", "image": "registry.bed/server:1"}]}
    body = {"metadata": {"annotations": written}, "spec": {"template": {"spec": pod}}}
    await server.put(f"{DEPLOYMENTS}/{name}", body)


def endpoints(server: FakeApiServer, name: str = "n1") -> list[Any] | None:
    found = server.get(f"{WARMUPS}/{name}")
    return found["spec"]["endpoints"] if found else None


def events(server: FakeApiServer) -> set[tuple[str, str]]:
    return {(e["involvedObject"]["name"], e["reason"]) for e in server.all("/api/v1/events")}


async def until(server: FakeApiServer, holds: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for what the planner's requests bring about."""
    async with asyncio.timeout(seconds):
        while not holds():
            await server.asked.wait(0.05)


async def test_annotated_deployment_reaches_its_node_and_its_deletion_too(
    server: FakeApiServer, models: Models
) -> None:
    async with planner(server, models):
        await deployment(server, "chat", models="s3://weights/llama/", schedule="0 9 * * *")
        await until(server, lambda: bool(endpoints(server)))
        found = (endpoints(server) or [])[0]
        assert (found["namespace"], found["name"]) == ("shop", "chat")
        assert found["models"] == [
            {"name": "llama", "uri": "s3://weights/llama/", "digest": DIGEST, "sizeBytes": 1000, "files": 2}
        ]
        assert found["images"] == [{"ref": "registry.bed/server:1", "digest": "sha256:" + "b" * 64}]
        assert found["windows"]
        await server.remove(f"{DEPLOYMENTS}/chat")
        await until(server, lambda: endpoints(server) == [])


async def test_broken_and_unresolved_workloads_have_their_events_and_disturb_nobody(
    server: FakeApiServer, models: Models
) -> None:
    async with planner(server, models):
        await deployment(server, "chat", models="s3://weights/llama/")
        await deployment(server, "broken", models="http://weights/llama/")
        await deployment(server, "foreign", models="s3://secret/llama/")
        await deployment(server, "missing", models="s3://weights/missing/")
        wanted = {("broken", "Invalid"), ("foreign", "Invalid"), ("missing", "Unresolved")}
        await until(server, lambda: events(server) == wanted)
        await until(server, lambda: bool(endpoints(server)))
        assert [e["name"] for e in endpoints(server) or []] == ["chat"]


async def test_second_replica_takes_over_with_s3_away_and_changes_nothing(
    server: FakeApiServer, models: Models
) -> None:
    await deployment(server, "chat", models="s3://weights/llama/")
    async with planner(server, models):
        await until(server, lambda: bool(endpoints(server)))
    before = server.get(f"{WARMUPS}/n1")
    models.away = True
    async with planner(server, models, "two") as second:
        await until(server, second.leading.get)
        await deployment(server, "broken", models="http://weights/llama/")
        await until(server, lambda: events(server) == {("broken", "Invalid")})
        assert server.get(f"{WARMUPS}/n1") == before


@pytest.mark.parametrize("writes", [1, 12, 29])
async def test_a_leader_that_dies_between_two_writes_is_followed_by_one_that_goes_on_with_the_same_plan(
    server: FakeApiServer, models: Models, writes: int
) -> None:
    for n in range(40):
        status = {"conditions": [{"type": "Ready", "status": "True"}]}
        await server.put(f"/api/v1/nodes/m{n}", {"metadata": {"uid": f"uid-m{n}"}, "spec": {}, "status": status})
    where = {"models": "s3://weights/llama/", "schedule": "0 9 * * *"}

    def having(name: str) -> set[str]:
        found = server.all(WARMUPS)
        return {w["metadata"]["name"] for w in found if name in {e["name"] for e in w["spec"]["endpoints"]}}

    await deployment(server, "first", nodes="all", **where)
    async with planner(server, models):
        await until(server, lambda: len(having("first")) == 41)
    await deployment(server, "second", nodes="30", **where)
    dying = Dying(FixedServer(server.url), writes)
    async with planner(server, models, through=dying):
        await until(server, lambda: dying.dead and len(having("second")) >= writes)  # those under way have come through
    assert writes <= len(having("second")) < 30
    lease = "/apis/coordination.k8s.io/v1/namespaces/prewarm/leases/prewarm-planner"
    held = server.get(lease) or {}
    assert held["spec"]["holderIdentity"] == "one"
    await server.put(lease, held | {"spec": held["spec"] | {"holderIdentity": ""}})  # as if its time had run out
    async with planner(server, models, "two"):
        await until(server, lambda: len(having("second")) == 30)
        await asyncio.sleep(0.5)  # for a write too many
    assert len(having("second")) == 30
    assert {server.count("PATCH", f"/nodewarmups/{name}") for name in having("second")} == {1}
    assert {server.count("PATCH", f"/nodewarmups/{name}") for name in having("first") - having("second")} == {0}


async def test_returning_planner_sweeps_before_it_plans(server: FakeApiServer, models: Models) -> None:
    await node(server, "n2", ready="Unknown")
    await deployment(server, "chat", models="s3://weights/llama/")
    async with planner(server, models):
        await until(server, lambda: bool(endpoints(server)))
    dead = server.get("/api/v1/nodes/n2")
    assert dead is not None
    assert dead["metadata"]["labels"] == {}
    writes = [r.path for r in server.requests if r.method in ("PATCH", "POST") and "leases" not in r.path]
    assert writes.index("/api/v1/nodes/n2/status") < writes.index(WARMUPS)


async def test_follower_only_asks_for_the_lease(server: FakeApiServer, models: Models) -> None:
    async with planner(server, models) as first:
        await until(server, first.leading.get)
        await until(server, lambda: sum("watch" in r.query for r in server.requests) >= 6)
        await deployment(server, "chat", models="s3://weights/llama/")
        await until(server, lambda: bool(endpoints(server)))
        server.requests.clear()
        async with planner(server, models, "two") as second:
            await until(server, lambda: server.count("GET", "leases/prewarm-planner") > 0)
            await asyncio.sleep(0.3)  # nothing may happen here
            assert not second.leading.get()
            assert all("leases" in r.path for r in server.requests)


async def test_stale_claims_are_withdrawn_while_what_planning_needs_cannot_be_listed(
    server: FakeApiServer, models: Models
) -> None:
    server.forbidden = "runtimeclasses"
    await node(server, "n2", ready="Unknown")
    async with planner(server, models):
        await until(server, lambda: (server.get("/api/v1/nodes/n2") or {})["metadata"]["labels"] == {})
        server.forbidden = ""
        await deployment(server, "chat", models="s3://weights/llama/")
        await until(server, lambda: bool(endpoints(server)))


async def test_a_planner_that_leads_no_more_reports_nothing_as_held_or_unwritten(
    server: FakeApiServer, models: Models
) -> None:
    server.forbidden = "nodes/n2/status"
    await node(server, "n2", ready="Unknown")
    async with planner(server, models) as fleet:
        await until(server, lambda: bool(fleet.withdrawals.get().held))
    assert fleet.withdrawals.get().held is None
    assert fleet.publishing.get().failing == {}


async def test_a_planner_that_leads_no_more_tells_of_no_histories(server: FakeApiServer, models: Models) -> None:
    async with planner(server, models) as fleet:
        await until(server, fleet.leading.get)
        told = HistoryReport(tracks={EndpointKey(namespace="shop", name="chat"): Track()}, failures={"write": 1})
        fleet.history.set(told)
    assert fleet.history.get() == HistoryReport(failures={"write": 1})


async def test_a_brake_that_holds_is_told_of_in_an_event_until_it_lets_go(
    server: FakeApiServer, models: Models
) -> None:
    """Half of a fleet of twelve is gone: three nodes lose their claims at once, three are held and told of."""
    for number in range(2, 13):
        await node(server, f"n{number}", ready="Unknown" if number > 6 else "True")
        await agent(server, f"n{number}")
    async with planner(server, models) as fleet:
        await until(server, lambda: ("prewarm-planner", "BrakeTripped") in events(server))
        assert len(fleet.withdrawals.get().braked) == 3
        (event,) = server.all("/api/v1/events")
        assert event["metadata"]["namespace"] == "prewarm"
        assert "went stale within a minute (NodeNotReady)" in event["message"]
        for name in fleet.withdrawals.get().braked:
            await node(server, name)
        await until(server, lambda: not fleet.withdrawals.get().braked)
