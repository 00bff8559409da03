"""Nodes of due windows are kept from autoscalers, and only as long as a window counts on them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from agent.core.assignment import Assignment, EndpointWant, Window, WindowSource
from agent.core.latest import Latest
from agent.core.names import KEEP_ANNOTATIONS, KEEP_MANAGER
from agent.core.refs import EndpointKey
from agent.fleet.keep import to_keep
from agent.fleet.keeper import Keeper, KeepReport
from agent.fleet.sources import Sources
from agent.kube.objects import Condition, NodeView, Taint
from agent.kube.resources import NODES
from agent.kube.watch import Watch
from tests.fakes.api_server import DirectApi, FakeApiServer
from tests.fakes.virtual_time import START, LoopClock, run_virtual

KARPENTER, AUTOSCALER = KEEP_ANNOTATIONS
HOUR = timedelta(hours=1)


def want(name: str, *, starts: float, hours: float = 1, priority: int = 500) -> EndpointWant:
    """An endpoint with one window that is due `starts` hours after START."""
    due = START + starts * HOUR
    window = Window(ready_by=due, until=due + hours * HOUR)
    return EndpointWant(key=EndpointKey(namespace="shop", name=name), priority=priority, windows=(window,))


def fleet(**wants: EndpointWant) -> dict[str, Assignment]:
    return {node: Assignment(node=node, endpoints=(each,)) for node, each in wants.items()}


def nodes(*names: str) -> dict[str, NodeView]:
    ready = (Condition(type="Ready", status="True"),)
    return {name: NodeView(name=name, conditions=ready) for name in names}


def test_a_node_is_kept_from_an_hour_before_its_window_until_the_end() -> None:
    plan = fleet(a=want("chat", starts=2))
    for hours, kept, changes in ((0, False, 1.0), (1, True, 3.0), (2.99, True, 3.0), (3, False, None)):
        found = to_keep(plan, nodes("a"), START + hours * HOUR, 20)
        assert (found.names == {"a"}) is kept, hours
        assert found.wake_at == (START + changes * HOUR if changes else None)


def test_the_cap_leaves_out_the_least_urgent() -> None:
    plan = fleet(
        a=want("late", starts=1),
        b=want("soon", starts=0.5),
        c=want("vip", starts=1, priority=900),
        d=want("x", starts=9),
    )
    found = to_keep(plan, nodes(*"abcd"), START, 2)
    assert found.names == {"c", "b"}
    assert found.left_out == {"a"}
    assert to_keep(plan, nodes(*"abcd"), START, 0).names == frozenset()


def test_no_node_is_kept_for_a_guess_and_a_guess_hides_no_window() -> None:
    sure = want("chat", starts=0.5)
    guess = Window(ready_by=START - HOUR, until=START + HOUR / 2, source=WindowSource.PREDICTED, confidence=90)
    both, only = replace(sure, windows=(guess, *sure.windows)), replace(sure, windows=(guess,))
    found = to_keep(fleet(a=both, b=only, c=want("x", starts=0.4)), nodes(*"abc"), START, 1)
    assert found.names == {"c"}
    assert found.left_out == {"a"}


@pytest.mark.parametrize(
    "gone",
    [
        {"unschedulable": True},
        {"deleting": True},
        {"conditions": ()},
        {"taints": (Taint(key="karpenter.sh/disrupted", effect="NoSchedule"),)},
        {"taints": (Taint(key="ToBeDeletedByClusterAutoscaler", effect="NoSchedule"),)},
    ],
)
def test_a_node_that_is_going_or_away_is_not_counted_on(gone: dict[str, object]) -> None:
    there = {"a": replace(nodes("a")["a"], **gone)}  # type: ignore[arg-type]
    assert to_keep(fleet(a=want("chat", starts=0)), there, START, 20).names == frozenset()


class World:
    """A planner's keeper on an API server in memory."""

    def __init__(self) -> None:
        self.server = FakeApiServer()
        self.desired: Latest[Mapping[str, Assignment] | None] = Latest(None)
        self.report: Latest[KeepReport] = Latest(KeepReport())
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, most: int = 20) -> None:
        api, clock, sources = DirectApi(self.server), LoopClock(), Sources()
        keeper = Keeper(api, sources, self.desired, self.report, clock=clock, most=most)
        services = (Watch(api, NODES, sources.nodes, clock=clock), keeper)
        self.tasks = [asyncio.create_task(s.run(), name=s.name) for s in services]

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def node(self, name: str, annotations: dict[str, str] | None = None) -> None:
        status = {"conditions": [{"type": "Ready", "status": "True"}]}
        body = {"metadata": {"annotations": annotations or {}}, "spec": {}, "status": status}
        await self.server.put(f"/api/v1/nodes/{name}", body)

    def annotations(self, name: str) -> dict[str, str]:
        found = self.server.get(f"/api/v1/nodes/{name}")
        assert found is not None
        return dict(found["metadata"].get("annotations") or {})


def story(tell: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        world = World()
        try:
            await tell(world)
        finally:
            await world.end()

    run_virtual(run())


def test_nodes_are_kept_for_their_window_and_let_go_with_one_write_each() -> None:
    async def tell(world: World) -> None:
        await world.node("a", {"mine": "1"})
        await world.node("b")
        world.desired.set(fleet(a=want("chat", starts=2), b=want("search", starts=24)))
        world.start()
        await asyncio.sleep(3599)
        assert world.annotations("a") == {"mine": "1"}
        await asyncio.sleep(3)
        assert world.annotations("a") == {"mine": "1", KARPENTER: "true", AUTOSCALER: "true"}
        assert (world.annotations("b"), world.report.get()) == ({}, KeepReport(kept=1))
        await asyncio.sleep(7200)
        assert world.annotations("a") == {"mine": "1"}
        assert world.server.count("PATCH") == 2

    story(tell)


def test_what_others_have_set_stays_as_it_is() -> None:
    async def tell(world: World) -> None:
        await world.node("refuses", {KARPENTER: "false"})
        await world.node("agrees", {KARPENTER: "true"})
        world.desired.set(fleet(refuses=want("chat", starts=0), agrees=want("search", starts=0)))
        world.start()
        await asyncio.sleep(1800)
        assert world.annotations("refuses") == {KARPENTER: "false"}
        assert world.annotations("agrees") == {KARPENTER: "true", AUTOSCALER: "true"}
        assert world.report.get() == KeepReport(kept=1, unkept=1)
        assert world.server.count("PATCH") <= 1 + 4  # the one that refuses is asked again now and then
        await asyncio.sleep(3600)
        assert world.annotations("agrees") == {KARPENTER: "true"}

    story(tell)


def test_a_planner_that_starts_anew_lets_go_what_the_one_before_it_kept() -> None:
    async def tell(world: World) -> None:
        await world.node("a")
        world.desired.set(fleet(a=want("chat", starts=0)))
        world.start()
        await asyncio.sleep(5)
        await world.end()
        world.desired.set(fleet())
        await asyncio.sleep(5)
        assert world.annotations("a") == dict.fromkeys(KEEP_ANNOTATIONS, "true")
        world.start()
        await asyncio.sleep(5)
        assert world.annotations("a") == {}

    story(tell)


def test_a_failed_write_is_tried_again_and_counted() -> None:
    async def tell(world: World) -> None:
        await world.node("a")
        world.desired.set(fleet(a=want("chat", starts=0)))
        world.start()
        world.server.forbidden = "/status"
        await asyncio.sleep(60)
        assert world.report.get() == KeepReport(unkept=1)
        world.server.forbidden = ""
        await asyncio.sleep(600)
        assert (world.report.get().kept, world.annotations("a")[KARPENTER]) == (1, "true")

    story(tell)


def test_the_manager_is_the_planner_s_own() -> None:
    async def tell(world: World) -> None:
        await world.node("a")
        world.desired.set(fleet(a=want("chat", starts=0)))
        world.start()
        await asyncio.sleep(5)
        found = world.server.get("/api/v1/nodes/a")
        assert found is not None
        managers = {e["manager"] for e in found["metadata"]["managedFields"] if e["operation"] == "Apply"}
        assert managers == {KEEP_MANAGER}

    story(tell)
