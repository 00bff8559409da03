"""Minimum scales follow windows, come back as they were, and are left alone where they are somebody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from typing import Any

import pytest

from agent.core.assignment import Window
from agent.core.latest import Latest
from agent.core.refs import EndpointKey
from agent.demand.endpoint import MinScale, WorkloadRef
from agent.fleet.scale import Scaling, raised, restored, scaler_of
from agent.fleet.scaler import Scaler
from agent.kube.events import Announcement
from agent.kube.scalers import HPA, KEDA, KNATIVE, SCALERS, Knob, ScalerView, applied
from tests.fakes.api_server import DirectApi, FakeApiServer
from tests.fakes.virtual_time import START, LoopClock, run_virtual

HOUR = timedelta(hours=1)
RAISED = "prewarm.dev/raised-from"
PATHS = {
    HPA: "/apis/autoscaling/v2/namespaces/shop/horizontalpodautoscalers/chat",
    KEDA: "/apis/keda.sh/v1alpha1/namespaces/shop/scaledobjects/chat",
    KNATIVE: "/apis/autoscaling.internal.knative.dev/v1alpha1/namespaces/shop/podautoscalers/chat-00002",
}
KINDS = {
    HPA: ("apps/v1", "Deployment"),
    KEDA: ("apps/v1", "Deployment"),
    KNATIVE: ("serving.knative.dev/v1", "Service"),
}


def scaling(
    knob: Knob = HPA, *, pods: int = 3, mode: MinScale = MinScale.APPLY, starts: float = 1, hours: float = 1
) -> Scaling:
    """An endpoint with one window that is due `starts` hours after START."""
    api_version, kind = KINDS[knob]
    due = START + starts * HOUR
    return Scaling(
        key=EndpointKey(namespace="shop", name="chat"),
        workload=WorkloadRef(api_version=api_version, kind=kind, namespace="shop", name="chat", uid="u"),
        mode=mode,
        pods=pods,
        gpus=2,
        windows=(Window(ready_by=due, until=due + hours * HOUR),),
    )


def autoscaler(knob: Knob, least: int | None = None) -> dict[str, Any]:
    """An autoscaler of `chat` as its owner writes it."""
    target = {"kind": "Deployment", "name": "chat"}
    if knob is KNATIVE:
        annotations = {} if least is None else {knob.word: str(least)}
        labels = {"serving.knative.dev/service": "chat"}
        return {"metadata": {"labels": labels, "annotations": annotations}, "spec": {"reachability": "Reachable"}}
    most = {HPA: "maxReplicas", KEDA: "maxReplicaCount"}[knob]
    spec = {"scaleTargetRef": target, most: 10} | ({} if least is None else {knob.word: least})
    return {"metadata": {}, "spec": spec}


class World:
    """A planner's scaler on an API server in memory."""

    def __init__(self) -> None:
        self.server = FakeApiServer()
        self.asked: Latest[tuple[Scaling, ...] | None] = Latest(None)
        self.said: Latest[Collection[Announcement]] = Latest(())
        self.heard: list[Announcement] = []
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        scaler = Scaler(DirectApi(self.server), self.asked, self.said, clock=LoopClock())
        self.tasks = [asyncio.create_task(scaler.run()), asyncio.create_task(self._hear())]

    async def _hear(self) -> None:
        async for standing in self.said.follow():
            self.heard += [a for a in standing if a not in self.heard]

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def least(self, knob: Knob) -> str | int | None:
        at: Any = self.server.get(PATHS[knob])
        for key in knob.path:
            at = (at or {}).get(key)
        return at  # type: ignore[no-any-return]

    def record(self, knob: Knob) -> str | None:
        found = self.server.get(PATHS[knob])
        assert found is not None
        label: str | None = (found["metadata"].get("labels") or {}).get(RAISED)
        return label

    def reasons(self) -> set[str]:
        return {a.reason for a in self.heard}


def story(tell: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        world = World()
        try:
            await tell(world)
        finally:
            await world.end()

    run_virtual(run())


@pytest.mark.parametrize("knob", PATHS, ids=lambda k: k.kind)
def test_the_least_number_of_pods_is_raised_for_the_window_and_comes_back(knob: Knob) -> None:
    async def tell(world: World) -> None:
        await world.server.put(PATHS[knob], autoscaler(knob))
        world.asked.set((scaling(knob),))
        world.start()
        await asyncio.sleep(3590)
        assert world.least(knob) is None
        await asyncio.sleep(20)
        assert str(world.least(knob)) == "3"
        assert world.record(knob) == "none"
        await asyncio.sleep(3600)
        assert (world.least(knob), world.record(knob)) == (None, None)
        assert world.server.count("PATCH") == 2
        (told,) = [a.message for a in world.heard if a.reason == "Raised"]
        assert f"{knob.word} of {knob.kind}" in told
        more = 3 - knob.assumed  # pods that would not be there without it, of 2 GPUs each
        assert f"from none to 3 until 2026-03-02 10:00 UTC (1h, {2 * more}.0 GPU-hours)" in told

    story(tell)


@pytest.mark.parametrize("knob", PATHS, ids=lambda k: k.kind)
def test_a_field_that_is_somebody_else_s_is_left_alone_and_told(knob: Knob) -> None:
    async def tell(world: World) -> None:
        await world.server.put(PATHS[knob], autoscaler(knob, 1))
        world.asked.set((scaling(knob),))
        world.start()
        await asyncio.sleep(3 * 3600)
        assert str(world.least(knob)) == "1"
        assert world.record(knob) is None
        (told,) = [a.message for a in world.heard if a.reason == "LeftAlone"]
        assert "is somebody else's and stays 1" in told
        assert 'conflict with "admin"' in told

    story(tell)


def test_recommend_changes_no_object_and_says_what_apply_would_do() -> None:
    async def tell(world: World) -> None:
        await world.server.put(PATHS[HPA], autoscaler(HPA))
        world.asked.set((scaling(mode=MinScale.RECOMMEND),))
        world.start()
        await asyncio.sleep(3 * 3600)
        assert world.server.count("PATCH") == 0
        (told,) = world.heard
        assert told.reason == "WouldRaise"
        assert "would raise minReplicas of HorizontalPodAutoscaler chat from none to 3" in told.message

    story(tell)


def test_a_planner_that_dies_in_a_window_leaves_what_the_next_one_puts_back() -> None:
    async def tell(world: World) -> None:
        await world.server.put(PATHS[HPA], autoscaler(HPA))
        world.asked.set((scaling(starts=0),))
        world.start()
        await asyncio.sleep(60)
        await world.end()
        world.asked.set(None)
        world.start()
        await asyncio.sleep(60)
        assert world.least(HPA) == 3  # without a plan nobody knows that it is too much
        world.asked.set(())
        await asyncio.sleep(60)
        assert (world.least(HPA), world.record(HPA)) == (None, None)

    story(tell)


def test_what_somebody_sets_in_the_window_stays_theirs_afterwards() -> None:
    async def tell(world: World) -> None:
        await world.server.put(PATHS[HPA], autoscaler(HPA))
        world.asked.set((scaling(starts=0),))
        world.start()
        await asyncio.sleep(60)
        found = world.server.get(PATHS[HPA])
        assert found is not None
        found["spec"]["minReplicas"] = 7
        await world.server.put(PATHS[HPA], found)
        await asyncio.sleep(2 * 3600)
        assert (world.least(HPA), world.record(HPA)) == (7, None)

    story(tell)


def test_without_an_autoscaler_it_is_told_and_one_that_comes_later_is_found() -> None:
    async def tell(world: World) -> None:
        world.server.not_installed |= {"/apis/keda.sh/v1alpha1/scaledobjects"}
        world.asked.set((scaling(starts=0),))
        world.start()
        await asyncio.sleep(30)
        assert world.reasons() == {"NoAutoscaler"}
        await world.server.put(PATHS[HPA], autoscaler(HPA))
        await asyncio.sleep(61)
        assert world.least(HPA) == 3

    story(tell)


def test_outside_windows_the_api_server_is_asked_for_nothing() -> None:
    async def tell(world: World) -> None:
        world.asked.set((scaling(starts=48),))
        world.start()
        await asyncio.sleep(24 * 3600)
        assert len(world.server.requests) == len(SCALERS)  # once: a planner before it may have raised something

    story(tell)


def test_an_api_server_that_fails_delays_the_raise_and_the_restore() -> None:
    async def tell(world: World) -> None:
        await world.server.put(PATHS[HPA], autoscaler(HPA))
        world.asked.set((scaling(starts=0),))
        world.server.failures = [500] * 5
        world.start()
        await asyncio.sleep(120)
        assert world.least(HPA) == 3
        world.server.forbidden = "horizontalpodautoscalers/chat"
        await asyncio.sleep(3600)
        assert world.least(HPA) == 3
        world.server.forbidden = ""
        await asyncio.sleep(70)  # what is forbidden is tried again once a minute
        assert world.least(HPA) is None

    story(tell)


def test_a_look_that_is_forbidden_is_repeated_until_what_is_raised_is_back() -> None:
    async def tell(world: World) -> None:
        await world.server.put(PATHS[HPA], autoscaler(HPA))
        world.asked.set((scaling(starts=0),))
        world.start()
        await asyncio.sleep(3590)
        assert world.least(HPA) == 3
        world.server.forbidden = "horizontalpodautoscalers"
        await asyncio.sleep(60)  # the look at the window's end
        assert world.least(HPA) == 3
        world.server.forbidden = ""
        await asyncio.sleep(70)
        assert world.least(HPA) is None

    story(tell)


def test_what_somebody_else_applies_too_is_tried_again_once_a_minute() -> None:
    async def tell(world: World) -> None:
        await world.server.put(PATHS[HPA], autoscaler(HPA) | {"metadata": {"labels": {RAISED: "2"}}})
        world.asked.set((scaling(starts=0),))
        world.start()
        await asyncio.sleep(3590)
        body: dict[str, Any] = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler"}
        body |= {"metadata": {"name": "chat", "namespace": "shop"}, "spec": {"minReplicas": 3}}
        await DirectApi(world.server).apply(SCALERS[HPA], "chat", body, manager="admin", namespace="shop")
        before = world.server.count("PATCH")
        await asyncio.sleep(610)
        assert world.least(HPA) == 3
        assert 9 <= world.server.count("PATCH") - before <= 11

    story(tell)


def view(knob: Knob = HPA, **more: Any) -> ScalerView:
    return ScalerView(knob=knob, namespace="shop", name="chat", uid="u", target=("Deployment", "chat"), **more)


def test_never_less_than_was_there_and_never_more_than_the_maximum() -> None:
    for scaler, pods, least in (
        (view(least=5), 3, None),
        (view(least=1, most=2), 3, 2),
        (view(least=2, raised_from="2", ours=True), 1, None),  # at rest, with what was nobody's
        (view(least=2, raised_from="2", ours=True), 4, 4),
        (view(least=4, raised_from="2", ours=True), 3, 3),
        (view(), 1, None),  # left out counts as one
        (view(KEDA), 1, 1),
    ):
        step = raised(scaler, pods)
        assert (step.least if step else None) == least, scaler


def test_a_number_that_was_nobody_s_is_put_back_as_it_was() -> None:
    step = restored(view(least=4, raised_from="2", ours=True))
    assert step is not None
    assert (step.least, step.raised_from) == (2, "2")
    assert restored(view(least=2, raised_from="2", ours=True)) is None
    for let_go in (view(least=4, raised_from="1", ours=True), view(KEDA, least=4, raised_from="none", ours=True)):
        step = restored(let_go)
        assert step is not None
        assert (step.least, step.raised_from) == (None, "")
    assert restored(view(least=4)) is None


def test_what_is_let_go_names_no_labels() -> None:
    """Applied empty they would be null in a custom resource, and what reads them would have to expect that."""
    step = restored(view(KEDA, least=4, raised_from="none", ours=True))
    assert step is not None
    assert applied(step.scaler, step.least, step.raised_from)["metadata"] == {
        "name": "chat",
        "namespace": "shop",
        "uid": "u",
    }


def test_of_several_autoscalers_the_one_that_decides_is_taken() -> None:
    keda = view(KEDA)
    assert scaler_of(scaling(), [view(made=True), keda, view()]) is keda
    assert scaler_of(scaling(), [view(made=True)]) is None
    older, newer = (view(created=START + n * HOUR) for n in (0, 1))
    assert scaler_of(scaling(), [older, newer]) is newer
