"""Placeholders ask for nodes before windows, and are there for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from agent.core.assignment import Window
from agent.core.assignment_json import format_time
from agent.core.latest import Latest
from agent.core.names import LABEL_PLACEHOLDER
from agent.core.refs import EndpointKey
from agent.demand.endpoint import WorkloadRef
from agent.demand.windows import SOFT
from agent.fleet.arrivals import Arrivals
from agent.fleet.provision import Provision, asks, held, lead_of, preferring
from agent.fleet.provisioner import Provisioner, ProvisionLimits, ProvisionReport
from agent.fleet.sources import Sources
from agent.kube.events import Announcement
from agent.kube.objects import NodeRequirement, NodeView, Toleration
from agent.kube.placeholders import (
    PLACEHOLDERS,
    PlaceholderView,
    PriorityView,
    Shape,
    placeholder_body,
    placeholder_names,
)
from agent.kube.watch import Listing, Selection, Watch
from tests.fakes.api_server import DirectApi, FakeApiServer
from tests.fakes.virtual_time import START, LoopClock, SteppedClock, run_virtual

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
SPACE = "prewarm-placeholders"
PODS = f"/api/v1/namespaces/{SPACE}/pods"
CLASS = "/apis/scheduling.k8s.io/v1/priorityclasses/prewarm-placeholder"
ARRIVALS = f"/api/v1/namespaces/{SPACE}/configmaps/prewarm-arrivals"
LIMITS = ProvisionLimits(nodes=5, lead=15 * MINUTE, image="pause:1", namespace=SPACE)


def provision(
    name: str = "chat", *, nodes: int = 1, starts: float = 1, hours: float = 1, priority: int = 500
) -> Provision:
    """An endpoint with one window that is due `starts` hours after START."""
    due = START + starts * HOUR
    return Provision(
        key=EndpointKey(namespace="shop", name=name),
        workload=WorkloadRef(api_version="apps/v1", kind="Deployment", namespace="shop", name=name, uid="u"),
        shape=Shape(selector=(("pool", "gpu"),), requests={"cpu": "500m", "nvidia.com/gpu": "1"}),
        nodes=nodes,
        priority=priority,
        warming=5 * MINUTE,
        windows=(Window(ready_by=due, until=due + hours * HOUR),),
    )


class World:
    """A planner's provisioner on an API server in memory, with a scheduler that binds a pod to each node with room."""

    def __init__(self) -> None:
        self.server, self.sources = FakeApiServer(), Sources()
        self.wanted: Latest[tuple[Provision, ...] | None] = Latest(None)
        self.said: Latest[Collection[Announcement]] = Latest(())
        self.report = Latest(ProvisionReport())
        self.room: list[str] = []
        self.misfits: set[str] = set()  # endpoints that have room nowhere
        self.tasks: list[asyncio.Task[None]] = []
        self.clock = SteppedClock()

    async def install(self, value: int = -10) -> None:
        await self.server.put(CLASS, {"metadata": {}, "value": value, "preemptionPolicy": "Never"})
        await self.server.put(ARRIVALS, {"metadata": {}})

    def start(self, limits: ProvisionLimits = LIMITS) -> None:
        api, clock = DirectApi(self.server), self.clock
        provisioner = Provisioner(api, self.sources, self.wanted, self.said, self.report, clock=clock, limits=limits)
        select = Selection(namespace=SPACE, labels=LABEL_PLACEHOLDER)
        seen = Watch(api, PLACEHOLDERS, self.sources.placeholders, clock=clock, select=select)
        services = [provisioner.run(), self._schedule(), *([seen.run()] if limits.nodes else [])]
        self.tasks = [asyncio.create_task(s) for s in services]

    async def _schedule(self) -> None:
        while True:
            await asyncio.sleep(1)
            now = LoopClock().now()
            taken = {p["spec"].get("nodeName") for p in self.pods()}
            for pod in self.pods():
                meta = pod["metadata"]
                fits = meta["labels"][LABEL_PLACEHOLDER] not in self.misfits
                free = [n for n in self.room if n not in taken and fits]
                if meta.get("creationTimestamp") and (pod["spec"].get("nodeName") or not free):
                    continue
                meta.setdefault("creationTimestamp", format_time(now))
                if free:
                    pod["spec"]["nodeName"] = free[0]
                    bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": format_time(now)}
                    pod["status"] = {"phase": "Running", "conditions": [bound]}
                    taken.add(free[0])
                await self.server.put(f"{PODS}/{meta['name']}", pod)

    async def node_comes(self, name: str) -> None:
        node = NodeView(name=name, created=LoopClock().now())
        self.sources.nodes.set(Listing(items={**self.sources.nodes.get().items, name: node}, synced=True))
        self.room.append(name)

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def pods(self) -> list[dict[str, Any]]:
        return self.server.all("/api/v1/pods")

    def bound(self) -> list[str]:
        return [p["spec"].get("nodeName", "") for p in self.pods()]

    def reasons(self) -> set[str]:
        return {a.reason for a in self.said.get()}

    def made(self) -> int:
        return self.server.count("POST", "/pods")


def story(tell: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        world = World()
        try:
            await tell(world)
        finally:
            await world.end()

    run_virtual(run())


def test_a_placeholder_asks_for_a_node_in_time_holds_it_and_goes_when_a_pod_is_there() -> None:
    async def tell(world: World) -> None:
        await world.install()
        world.wanted.set((provision(),))
        world.start()
        await asyncio.sleep(39 * 60)
        assert world.pods() == []  # the lead is 15 minutes, and 5 for its bytes
        await asyncio.sleep(2 * 60)
        assert world.bound() == [""]
        assert world.reasons() == {"Provisioning"}
        assert (world.report.get().waiting, world.report.get().holding) == (1, 0)
        await world.node_comes("n1")
        await asyncio.sleep(30 * 60)
        assert world.bound() == ["n1"]
        assert held(world.sources.placeholders.get().items.values()) == {provision().key: frozenset({"n1"})}
        assert (world.report.get().waiting, world.report.get().holding) == (0, 1)
        world.wanted.set((replace(provision(), running=True),))
        await asyncio.sleep(1)
        assert world.pods() == []
        assert world.made() == 1

    story(tell)


def test_where_there_is_room_no_node_is_asked_for_and_that_is_looked_at_again() -> None:
    async def tell(world: World) -> None:
        await world.install()
        world.room = ["old"]
        world.wanted.set((provision(starts=0),))
        world.start()
        await asyncio.sleep(10)
        assert world.pods() == []
        assert world.reasons() == {"RoomFound"}
        assert held(world.sources.placeholders.get().items.values()) == {}
        world.room = []
        await asyncio.sleep(310)
        assert world.bound() == [""]
        assert world.made() == 2
        assert world.reasons() == {"Provisioning", "NoNodeCame"}  # the window is due

    story(tell)


def test_several_nodes_are_held_together_though_one_had_room() -> None:
    async def tell(world: World) -> None:
        await world.install()
        world.room = ["old"]
        world.wanted.set((provision(nodes=2, starts=0),))
        world.start()
        await asyncio.sleep(60)
        assert sorted(world.bound()) == ["", "old"]
        await world.node_comes("n1")
        await asyncio.sleep(600)
        assert sorted(world.bound()) == ["n1", "old"]

    story(tell)


@pytest.mark.parametrize("ends", ["window", "annotation"])
def test_placeholders_go_with_the_window_and_with_the_annotation(ends: str) -> None:
    async def tell(world: World) -> None:
        await world.install()
        world.wanted.set((provision(starts=0),))
        world.start()
        await asyncio.sleep(3590)
        assert len(world.pods()) == 1
        if ends == "annotation":
            world.wanted.set(())
        await asyncio.sleep(11)
        assert world.pods() == []
        assert world.reasons() == set()

    story(tell)


def test_another_shape_is_another_pod() -> None:
    async def tell(world: World) -> None:
        await world.install()
        world.wanted.set((provision(starts=0),))
        world.start()
        await asyncio.sleep(10)
        world.wanted.set((replace(provision(starts=0), shape=Shape(requests={"cpu": "1"})),))
        await asyncio.sleep(10)
        (pod,) = world.pods()
        assert pod["spec"]["containers"][0]["resources"] == {"requests": {"cpu": "1"}}

    story(tell)


def test_one_that_was_put_out_is_not_made_again_before_its_workload_can_tell_of_its_pod() -> None:
    async def tell(world: World) -> None:
        await world.install()
        world.wanted.set((provision(starts=0),))
        world.start()
        await asyncio.sleep(10)
        (pod,) = world.pods()
        await world.server.remove(f"{PODS}/{pod['metadata']['name']}")
        await asyncio.sleep(25)
        assert world.pods() == []
        await asyncio.sleep(10)
        assert len(world.pods()) == 1

    story(tell)


def test_no_more_are_made_than_allowed_and_greater_priority_goes_first() -> None:
    async def tell(world: World) -> None:
        await world.install()
        world.wanted.set((provision(nodes=100_000, starts=0), provision("first", nodes=2, starts=0, priority=900)))
        world.start()
        await asyncio.sleep(10)
        labels = [p["metadata"]["labels"][LABEL_PLACEHOLDER] for p in world.pods()]
        assert sorted(labels) == ["shop.chat"] * 3 + ["shop.first"] * 2
        (capped,) = (a for a in world.said.get() if a.reason == "ProvisionCapped")
        assert capped.message.startswith("provision: 3 of 100000 pods can be asked for")

    story(tell)


def test_what_has_room_keeps_nothing_from_what_has_none() -> None:
    async def tell(world: World) -> None:
        await world.install()
        world.room, world.misfits = ["old"], {"shop.chat"}
        several = [provision(f"e{n}", starts=0, hours=2, priority=900) for n in range(10)]
        world.wanted.set((provision(starts=0, hours=2), *several))
        world.start(replace(LIMITS, nodes=1))
        await asyncio.sleep(60)
        (before,) = world.pods()
        assert before["metadata"]["labels"][LABEL_PLACEHOLDER] == "shop.chat"
        assert "ProvisionCapped" not in world.reasons()
        await asyncio.sleep(700)
        assert [p["metadata"]["uid"] for p in world.pods()] == [before["metadata"]["uid"]]

    story(tell)


def test_an_endpoint_that_lost_its_room_asks_by_its_priority_again() -> None:
    async def tell(world: World) -> None:
        await world.install()
        world.room, world.misfits = ["old"], {"shop.chat"}
        world.wanted.set((provision(starts=0, hours=2), provision("first", nodes=2, starts=0, hours=2, priority=900)))
        world.room += ["older"]
        world.start(replace(LIMITS, nodes=2))
        await asyncio.sleep(60)
        world.room = []
        await asyncio.sleep(400)
        assert [p["metadata"]["labels"][LABEL_PLACEHOLDER] for p in world.pods()] == ["shop.first"] * 2

    story(tell)


def test_a_window_with_placeholders_stays_open_when_nodes_are_reckoned_to_come_sooner() -> None:
    async def tell(world: World) -> None:
        await world.install()
        await world.server.put(ARRIVALS, {"metadata": {}, "data": {"seconds": "60 60"}})
        world.wanted.set((provision(starts=0.5),))
        world.start()
        await asyncio.sleep(11 * 60)
        await world.node_comes("n1")
        await asyncio.sleep(10)
        assert world.report.get().lead_seconds < 120
        world.wanted.set((replace(provision(starts=0.5), warming=timedelta(0)),))
        await asyncio.sleep(10)
        await world.end()
        world.start()
        await asyncio.sleep(60 * 60)
        assert world.bound() == ["n1"]
        assert world.made() == 1
        await asyncio.sleep(20 * 60)
        assert world.pods() == []

    story(tell)


def test_placeholders_of_one_window_do_not_open_the_next() -> None:
    found = provision(starts=3)
    asked = asks([found], START, timedelta(0), 5, over={found.key: START + 10 * MINUTE})
    assert asked == []
    moved = replace(found, windows=(Window(ready_by=START + 9 * HOUR, until=START + 20 * HOUR),))
    assert asks([moved], START, timedelta(0), 5, over={found.key: START + 10 * HOUR}) == []


def test_a_placeholder_just_made_is_no_node_that_did_not_come() -> None:
    async def tell(world: World) -> None:
        await world.install()
        world.wanted.set((provision(starts=0),))
        world.start()
        await asyncio.sleep(3)
        assert world.bound() == [""]
        assert world.reasons() == set()
        await asyncio.sleep(5)
        assert world.reasons() == {"Provisioning", "NoNodeCame"}

    story(tell)


def test_a_new_leader_goes_on_with_what_is_wanted_and_removes_the_rest() -> None:
    async def tell(world: World) -> None:
        await world.install()
        orphan = {"metadata": {"labels": {LABEL_PLACEHOLDER: "gone.gone"}}, "spec": {}}
        await world.server.put(f"{PODS}/orphan", orphan)
        await world.server.put(f"{PODS}/another-s", {"metadata": {}, "spec": {}})
        world.wanted.set((provision(starts=0),))
        world.start()
        await asyncio.sleep(10)
        before = {p["metadata"]["name"]: p["metadata"]["uid"] for p in world.pods()}
        assert len(before) == 2
        assert "orphan" not in before
        await world.end()
        world.wanted.set(None)
        world.start()
        await asyncio.sleep(10)
        world.wanted.set((provision(starts=0),))
        await asyncio.sleep(10)
        assert {p["metadata"]["name"]: p["metadata"]["uid"] for p in world.pods()} == before

    story(tell)


def test_not_allowed_by_the_operator_it_changes_nothing_but_what_is_left_over_and_says_so() -> None:
    async def tell(world: World) -> None:
        await world.server.put(f"{PODS}/left", {"metadata": {"labels": {LABEL_PLACEHOLDER: "shop.chat"}}, "spec": {}})
        world.wanted.set((provision(starts=0),))
        world.start(replace(LIMITS, nodes=0))
        await asyncio.sleep(3600)
        assert world.pods() == []
        assert [r.method for r in world.server.requests] == ["GET", "DELETE"]
        assert world.reasons() == {"NotProvisioned"}

    story(tell)


def test_what_is_left_over_is_removed_when_the_api_server_is_back() -> None:
    async def tell(world: World) -> None:
        await world.server.put(f"{PODS}/left", {"metadata": {"labels": {LABEL_PLACEHOLDER: "shop.chat"}}, "spec": {}})
        world.server.failures = [503]
        world.start(replace(LIMITS, nodes=0))
        await asyncio.sleep(5)
        assert len(world.pods()) == 1
        await asyncio.sleep(10)
        assert world.pods() == []

    story(tell)


def test_a_placeholder_on_a_dead_node_is_replaced_though_it_keeps_its_name() -> None:
    async def tell(world: World) -> None:
        await world.install()
        world.wanted.set((provision(starts=0),))
        world.start()
        await asyncio.sleep(60)
        (dead,) = world.pods()
        dead["metadata"]["deletionTimestamp"] = format_time(LoopClock().now())
        await world.server.put(f"{PODS}/{dead['metadata']['name']}", dead)
        await asyncio.sleep(60)
        (other,) = (p["metadata"] for p in world.pods() if "deletionTimestamp" not in p["metadata"])
        assert other["name"] != dead["metadata"]["name"]
        await world.server.remove(f"{PODS}/{dead['metadata']['name']}")
        await asyncio.sleep(60)
        assert [p["metadata"]["uid"] for p in world.pods()] == [other["uid"]]

    story(tell)


def test_a_clock_set_forward_is_noticed_in_ten_minutes() -> None:
    async def tell(world: World) -> None:
        await world.install()
        world.wanted.set((provision(starts=5),))
        world.start()
        await asyncio.sleep(10)
        world.clock.ahead = 290 * MINUTE
        await asyncio.sleep(610)
        assert world.bound() == [""]

    story(tell)


def test_what_was_measured_before_is_kept_though_it_could_not_be_read_at_first() -> None:
    async def run() -> None:
        server = FakeApiServer()
        await server.put(ARRIVALS, {"metadata": {}, "data": {"seconds": "100 200"}})
        api = DirectApi(server)
        arrivals, key = Arrivals(api, SPACE), EndpointKey(namespace="shop", name="chat")
        waiting = PlaceholderView(namespace=SPACE, name="p", uid="u", key=key, created=START)
        nodes = {"n1": NodeView(name="n1", created=START + MINUTE)}
        api.down = True
        await arrivals.look({"p": waiting}, {})
        await arrivals.look({"p": replace(waiting, node="n1", bound=START + 2 * MINUTE)}, nodes)
        assert list(arrivals.seconds) == [120.0]
        api.down = False
        await arrivals.look({}, nodes)
        assert list(arrivals.seconds) == [100.0, 200.0, 120.0]
        kept = server.get(ARRIVALS)
        assert kept is not None
        assert kept["data"]["seconds"] == "100 200 120"

    run_virtual(run())


def test_what_would_not_make_way_is_not_made() -> None:
    async def tell(world: World) -> None:
        world.wanted.set((provision(starts=0),))
        world.start()
        await asyncio.sleep(10)
        (said,) = world.said.get()
        assert said.reason == "CannotProvision"
        assert "an operator has to apply deploy/provision" in said.message
        await world.install(value=1000)
        await asyncio.sleep(70)
        (said,) = world.said.get()
        assert "has value 1000: it must be below 0" in said.message
        assert world.made() == 0
        await world.install()
        await asyncio.sleep(70)
        assert world.made() == 1
        assert world.reasons() == {"Provisioning", "NoNodeCame"}

    story(tell)


def test_a_refusal_is_told_and_tried_again() -> None:
    async def tell(world: World) -> None:
        await world.install()
        world.wanted.set((provision(starts=0),))
        world.start()
        world.server.forbidden = PODS
        await asyncio.sleep(100)
        (said,) = world.said.get()
        assert said.reason == "CannotProvision"
        assert "403" in said.message
        world.server.forbidden = ""
        await asyncio.sleep(100)
        assert len(world.pods()) == 1

    story(tell)


def test_arrivals_are_measured_and_make_the_lead_also_for_the_next_leader() -> None:
    async def tell(world: World) -> None:
        await world.install()
        for n, minutes in enumerate((4, 2, 3)):
            world.room = []
            world.wanted.set((provision(f"e{n}", starts=0, hours=24),))
            world.start()
            await asyncio.sleep(60)
            assert world.report.get().lead_seconds == 15 * 60
            await asyncio.sleep((minutes - 1) * 60)
            await world.node_comes(f"n{n}")
            await asyncio.sleep(10)
            await world.end()
        kept = world.server.get(ARRIVALS)
        assert kept is not None
        assert [round(int(s) / 10) for s in kept["data"]["seconds"].split()] == [24, 12, 18]
        world.start()
        await asyncio.sleep(1)
        assert 235 <= world.report.get().lead_seconds <= 245

    story(tell)


def test_the_lead_is_what_nine_in_ten_took() -> None:
    assumed = timedelta(minutes=15)
    assert lead_of([60.0, 70.0], assumed) == assumed
    assert lead_of([60.0, 90.0, 70.0], assumed) == timedelta(seconds=90)
    assert lead_of([float(n) for n in range(1, 21)], assumed) == timedelta(seconds=18)
    assert lead_of([80_000.0] * 3, assumed) == 2 * HOUR


def test_a_softened_window_asks_for_a_third() -> None:
    (window,) = provision().windows
    soft = replace(provision(nodes=5, starts=0), windows=(replace(window, ready_by=START, confidence=SOFT),))
    assert [a.count for a in asks([soft], START, timedelta(0), 10)] == [2]
    assert asks([replace(soft, running=True)], START, timedelta(0), 10) == []


def test_endpoints_stay_on_the_nodes_held_for_them() -> None:
    a, b = EndpointKey(namespace="s", name="a"), EndpointKey(namespace="s", name="b")
    before = {"old": (a, b), "other": (b,)}
    assert preferring(before, {}) is before
    assert preferring(before, {a: frozenset({"new"})}) == {"old": (b,), "other": (b,), "new": (a,)}


def body(shape: Shape, when: datetime = START) -> dict[str, Any]:
    owner = PriorityView(name="prewarm-placeholder", uid="u", value=-10, preempts=False)
    key = EndpointKey(namespace="shop", name="chat")
    return dict(placeholder_body("x", SPACE, key=key, image="pause:1", shape=shape, owner=owner, seconds=60))


def test_a_placeholder_is_where_the_pod_would_be_and_takes_what_it_takes() -> None:
    shape = Shape(
        selector=(("pool", "gpu"),),
        terms=(
            (NodeRequirement(key="zone", operator="In", values=("a",)), NodeRequirement(key="x", operator="Exists")),
            (NodeRequirement(key="metadata.name", operator="In", values=("n1",), on_field=True),),
        ),
        tolerations=(
            Toleration(key="gpu", operator="Exists"),
            Toleration(operator="Exists", effect="NoExecute", seconds=0),
        ),
        requests={"cpu": "2000m", "memory": "8", "nvidia.com/gpu": "1"},
        runtime_class="nvidia",
    )
    spec = body(shape)["spec"]
    assert spec["nodeSelector"] == {"pool": "gpu"}
    assert spec["tolerations"] == [
        {"key": "gpu", "operator": "Exists"},
        {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0},
    ]
    assert spec["runtimeClassName"] == "nvidia"
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert required["nodeSelectorTerms"] == [
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}, {"key": "x", "operator": "Exists"}]},
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]},
    ]
    (container,) = spec["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "2000m", "memory": "8", "nvidia.com/gpu": "1"},
        "limits": {"nvidia.com/gpu": "1"},
    }
    assert spec["activeDeadlineSeconds"] == 60


def test_a_placeholder_s_name_is_fit_for_a_pod_and_tells_endpoints_and_shapes_apart() -> None:
    key = EndpointKey(namespace="shop", name="chat")
    (name,) = placeholder_names("a" * 39 + ".b" * 100, key, "pause:1", Shape(), 1)
    assert len(name) <= 63
    assert name.startswith("a" * 39 + "-")
    other = EndpointKey(namespace="shop", name="other")
    assert not {name} & {
        *placeholder_names("a" * 39 + ".b" * 100, other, "pause:1", Shape(), 1),
        *placeholder_names("a" * 39 + ".b" * 100, key, "pause:1", Shape(requests={"cpu": "1"}), 1),
    }
