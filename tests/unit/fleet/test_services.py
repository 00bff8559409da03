"""Publisher and withdrawer against an API server in memory, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from agent.core.assignment import Assignment, EndpointWant, ImageWant
from agent.core.latest import Latest
from agent.core.refs import EndpointKey, parse_image_ref
from agent.fleet.publish import Publisher, PublishReport
from agent.fleet.sources import AGENT_LABELS, Sources, watches
from agent.fleet.withdraw import Withdrawer, WithdrawReport, brake_alarm
from tests.fakes.api_server import DirectApi, FakeApiServer
from tests.fakes.virtual_time import LoopClock, SteppedClock, run_virtual

WARMUPS = "/apis/prewarm.dev/v1alpha1/nodewarmups"
NODES = "/api/v1/nodes"
PODS = "/api/v1/namespaces/prewarm/pods"
LABELS = {"endpoint.prewarm.dev/shop.chat": "ready", "prewarm.dev/gpu": "healthy", "pool": "gpu"}


class SlowApi(DirectApi):
    """What is written arrives `slow` seconds after it was sent."""

    slow = 0.0

    async def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        await asyncio.sleep(self.slow if method in ("POST", "PATCH") else 0)
        return await super()._ask(method, path, **more)


class Fleet:
    """A fake cluster of nodes with agents, with the sources watching it."""

    def __init__(self) -> None:
        self.server = FakeApiServer()
        self.api = SlowApi(self.server)
        self.sources = Sources()
        self.desired: Latest[Mapping[str, Assignment] | None] = Latest(None)
        self.published: Latest[PublishReport] = Latest(PublishReport())
        self.withdrawn: Latest[WithdrawReport] = Latest(WithdrawReport())
        self.tasks: list[asyncio.Task[None]] = []
        self.clock = LoopClock()

    def start(self, *, publish: bool = False, withdraw: bool = False) -> None:
        clock = self.clock
        services: list[Any] = list(watches(self.sources, self.api, "prewarm", clock))
        if publish:
            services.append(Publisher(self.api, self.sources, self.desired, self.published, clock=clock))
        if withdraw:
            grace = timedelta(seconds=20)
            services.append(Withdrawer(self.api, self.sources, self.withdrawn, clock=clock, grace=grace, brake=0.3))
        self.tasks = [asyncio.create_task(s.run(), name=s.name) for s in services]

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def node(self, name: str, *, ready: str = "True", claims: bool = True, boot: str = "b1") -> None:
        conditions = [{"type": "Ready", "status": ready}]
        conditions += [{"type": "prewarm.dev/CacheReady", "status": "True"}] if claims else []
        meta = {
            "labels": LABELS if claims else {"pool": "gpu"},
            "annotations": {"prewarm.dev/boot-id": "b1"} if claims else {},
            "uid": f"uid-{name}",
        }
        status = {"conditions": conditions, "nodeInfo": {"bootID": boot}}
        await self.server.put(f"{NODES}/{name}", {"metadata": meta, "spec": {}, "status": status})

    async def agent(self, name: str, ready: str = "True") -> None:
        labels = dict(pair.split("=") for pair in AGENT_LABELS.split(","))
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}
        body = {"metadata": {"labels": labels}, "spec": {"nodeName": name}, "status": status}
        await self.server.put(f"{PODS}/agent-{name}", body)

    def claims(self) -> set[str]:
        return {n["metadata"]["name"] for n in self.server.all(NODES) if "prewarm.dev/gpu" in n["metadata"]["labels"]}

    def patches(self) -> int:
        return self.server.count("PATCH")


def assignment(node: str, *names: str) -> Assignment:
    image = ImageWant(ref=parse_image_ref("registry.bed/server:1"))
    wants = tuple(EndpointWant(key=EndpointKey(namespace="shop", name=n), images=(image,)) for n in names)
    return Assignment(node=node, endpoints=wants)


def stored(fleet: Fleet, node: str) -> list[str] | None:
    found = fleet.server.get(f"{WARMUPS}/{node}")
    return [e["name"] for e in found["spec"]["endpoints"]] if found else None


def test_node_warmup_is_written_only_when_it_differs() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        await fleet.node("n2")
        fleet.desired.set({"n1": assignment("n1", "chat"), "n2": assignment("n2")})
        fleet.start(publish=True)
        await asyncio.sleep(5)
        made = fleet.server.get(f"{WARMUPS}/n1")
        assert made is not None
        owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-n1"}
        assert made["metadata"]["ownerReferences"] == [owner]
        assert stored(fleet, "n1") == ["chat"]
        assert stored(fleet, "n2") is None
        fleet.desired.set({"n1": assignment("n1", "chat", "search"), "n2": assignment("n2")})
        await asyncio.sleep(5)
        assert stored(fleet, "n1") == ["chat", "search"]
        fleet.desired.set({"n1": assignment("n1"), "n2": assignment("n2")})
        await asyncio.sleep(5)
        assert stored(fleet, "n1") == []
        await asyncio.sleep(3600)
        assert (fleet.server.count("POST"), fleet.patches()) == (1, 2)
        assert fleet.published.get().writes_total == 3
        await fleet.end()

    run_virtual(story())


def test_node_warmup_changed_by_somebody_else_is_put_right() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        fleet.desired.set({"n1": assignment("n1", "chat")})
        fleet.start(publish=True)
        await asyncio.sleep(10)
        await fleet.server.put(f"{WARMUPS}/n1", {"spec": {"endpoints": [{"namespace": "x", "name": "y"}]}})
        await asyncio.sleep(1)
        assert stored(fleet, "n1") == ["chat"]
        await fleet.server.remove(f"{WARMUPS}/n1")
        await asyncio.sleep(6)
        assert stored(fleet, "n1") == ["chat"]
        await fleet.end()

    run_virtual(story())


def test_node_warmups_of_nodes_that_do_not_exist_are_left_alone() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        await fleet.server.put(f"{WARMUPS}/foreign", {"spec": {"endpoints": []}})
        fleet.desired.set({"n1": assignment("n1"), "gone": assignment("gone", "chat")})
        fleet.start(publish=True)
        await asyncio.sleep(10)
        assert (fleet.server.count("POST"), fleet.patches(), fleet.server.count("DELETE")) == (0, 0, 0)
        await fleet.end()

    run_virtual(story())


def test_node_born_again_owns_its_node_warmup() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        fleet.desired.set({"n1": assignment("n1", "chat")})
        fleet.start(publish=True)
        await asyncio.sleep(10)
        await fleet.server.remove(f"{NODES}/n1")
        again = {"metadata": {"uid": "uid-new"}, "spec": {}, "status": {}}
        await fleet.server.put(f"{NODES}/n1", again)
        await asyncio.sleep(5)
        made = fleet.server.get(f"{WARMUPS}/n1")
        assert made is not None
        assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-new"
        await fleet.end()

    run_virtual(story())


def test_refused_node_warmup_is_reported_and_the_others_are_written() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        await fleet.node("n2")
        fleet.start(publish=True)
        await asyncio.sleep(1)
        fleet.server.failures = [422]
        fleet.desired.set({"n1": assignment("n1", "chat"), "n2": assignment("n2", "chat")})
        await asyncio.sleep(1)
        assert set(fleet.published.get().failing) == {"n1"}
        assert stored(fleet, "n2") == ["chat"]
        await asyncio.sleep(61)
        assert stored(fleet, "n1") == ["chat"]
        assert fleet.published.get().failing == {}
        await fleet.end()

    run_virtual(story())


def test_refused_node_warmup_does_not_hold_up_another_plan_for_its_node() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        fleet.start(publish=True)
        fleet.desired.set({"n1": assignment("n1", "chat")})
        await asyncio.sleep(5)
        fleet.server.failures = [422]
        fleet.desired.set({"n1": assignment("n1", "chat", "refused")})
        await asyncio.sleep(1)
        assert set(fleet.published.get().failing) == {"n1"}
        fleet.desired.set({"n1": assignment("n1")})  # everything is withdrawn
        await asyncio.sleep(1)
        assert stored(fleet, "n1") == []
        await fleet.end()

    run_virtual(story())


def test_node_warmup_deleted_just_after_it_was_written_is_made_again_soon() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        fleet.start(publish=True)
        await asyncio.sleep(1)
        fleet.desired.set({"n1": assignment("n1", "chat")})
        await asyncio.sleep(0.01)
        fleet.server.failures = [404]
        await fleet.server.remove(f"{WARMUPS}/n1")
        fleet.desired.set({"n1": assignment("n1", "chat", "search")})
        await asyncio.sleep(15)
        assert stored(fleet, "n1") == ["chat", "search"]
        await fleet.end()

    run_virtual(story())


def test_a_late_word_does_not_follow_that_of_the_next_leader() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        fleet.start(publish=True)
        fleet.desired.set({"n1": assignment("n1", "chat")})
        await asyncio.sleep(5)
        fleet.api.slow = 3
        fleet.desired.set({"n1": assignment("n1", "late")})
        await asyncio.sleep(1)
        theirs = {"spec": {"endpoints": [{"namespace": "shop", "name": "theirs"}]}}
        was = fleet.server.get(f"{WARMUPS}/n1")
        assert was is not None
        await fleet.server.put(f"{WARMUPS}/n1", {"metadata": was["metadata"], **theirs})
        await asyncio.sleep(3)
        assert stored(fleet, "n1") == ["theirs"]
        assert set(fleet.published.get().failing) == {"n1"}
        await asyncio.sleep(3)
        assert stored(fleet, "n1") == ["late"]  # who leads after all has the last word, at once
        assert fleet.published.get().failing == {}
        await fleet.end()

    run_virtual(story())


def test_status_written_meanwhile_holds_up_no_plan() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        fleet.start(publish=True)
        fleet.desired.set({"n1": assignment("n1", "chat")})
        await asyncio.sleep(5)
        fleet.api.slow = 3
        fleet.desired.set({"n1": assignment("n1", "search")})
        await asyncio.sleep(1)
        was = fleet.server.get(f"{WARMUPS}/n1")
        assert was is not None
        await fleet.server.put(f"{WARMUPS}/n1", was | {"status": {"phase": "Warming"}})
        await asyncio.sleep(3)
        assert stored(fleet, "n1") == ["search"]
        await fleet.end()

    run_virtual(story())


def test_on_a_slow_api_server_nodes_are_told_the_newest_plan_only() -> None:
    async def story() -> None:
        fleet, names = Fleet(), [f"n{n:02}" for n in range(40)]
        for name in names:
            await fleet.node(name)
        fleet.start(publish=True)
        await asyncio.sleep(1)
        fleet.api.slow = 2
        fleet.desired.set({n: assignment(n, "old") for n in names})
        await asyncio.sleep(3)
        fleet.desired.set({n: assignment(n, "new") for n in names})
        await asyncio.sleep(30)
        assert all(stored(fleet, n) == ["new"] for n in names)
        assert fleet.server.count("POST") == len(names)
        assert fleet.patches() == 16  # what was written or under way when the plan changed
        await fleet.end()

    run_virtual(story())


def test_not_ready_node_loses_its_claims_within_a_second() -> None:
    async def story() -> None:
        fleet = Fleet()
        for name in ("n1", "n2"):
            await fleet.node(name)
            await fleet.agent(name)
        fleet.start(withdraw=True)
        await asyncio.sleep(100)
        assert fleet.patches() == 0
        await fleet.node("n1", ready="Unknown")
        await asyncio.sleep(1)
        after = fleet.server.get(f"{NODES}/n1")
        assert after is not None
        assert after["metadata"]["labels"] == {"pool": "gpu"}
        assert {(c["type"], c["status"], c.get("reason", "")) for c in after["status"]["conditions"]} == {
            ("Ready", "Unknown", ""),
            ("prewarm.dev/CacheReady", "Unknown", "NodeNotReady"),
        }
        await asyncio.sleep(600)
        assert fleet.patches() == 1
        assert fleet.claims() == {"n2"}
        await fleet.end()

    run_virtual(story())


def test_dead_agent_loses_its_claims_after_the_grace_period() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        await fleet.agent("n1")
        fleet.start(withdraw=True)
        await asyncio.sleep(5)
        await fleet.agent("n1", ready="False")
        await asyncio.sleep(19)
        assert fleet.claims() == {"n1"}
        await asyncio.sleep(2)
        assert fleet.claims() == set()
        await fleet.end()

    run_virtual(story())


def test_restarted_agent_keeps_its_claims() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        await fleet.agent("n1")
        fleet.start(withdraw=True)
        await asyncio.sleep(5)
        await fleet.server.remove(f"{PODS}/agent-n1")
        await asyncio.sleep(5)
        await fleet.agent("n1", ready="False")
        await asyncio.sleep(10)
        await fleet.agent("n1")
        await asyncio.sleep(600)
        assert fleet.patches() == 0
        await fleet.end()

    run_virtual(story())


def test_node_in_a_new_boot_loses_the_claims_of_the_old_one() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        await fleet.agent("n1")
        fleet.start(withdraw=True)
        await asyncio.sleep(5)
        await fleet.node("n1", boot="b2")
        await asyncio.sleep(1)
        assert fleet.claims() == set()
        await fleet.end()

    run_virtual(story())


def test_blind_planner_withdraws_nothing() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        await fleet.agent("n1")
        fleet.start(withdraw=True)
        await asyncio.sleep(5)
        fleet.api.down = True
        await fleet.server.cut_watches()
        await asyncio.sleep(3600)
        fleet.api.down = False
        await asyncio.sleep(60)
        assert fleet.patches() == 0
        assert fleet.claims() == {"n1"}
        await fleet.end()

    run_virtual(story())


def test_brake_spreads_a_collapse_over_minutes_and_reports_it() -> None:
    async def story() -> None:
        fleet = Fleet()
        for number in range(10):
            await fleet.node(f"n{number}")
            await fleet.agent(f"n{number}")
        fleet.start(withdraw=True)
        await asyncio.sleep(5)
        for number in range(10):
            await fleet.node(f"n{number}", ready="False")
        await asyncio.sleep(5)
        assert len(fleet.claims()) == 7
        assert set(fleet.withdrawn.get().held or {}) == fleet.claims()
        await asyncio.sleep(50)
        assert len(fleet.claims()) == 7
        await asyncio.sleep(10)
        assert len(fleet.claims()) in (4, 5)
        await asyncio.sleep(600)
        assert fleet.claims() == set()
        assert fleet.withdrawn.get().withdrawn_total == 10
        assert fleet.withdrawn.get().held is None
        await fleet.end()

    run_virtual(story())


def test_brake_is_not_stuck_by_a_clock_that_is_set_back() -> None:
    async def story() -> None:
        fleet = Fleet()
        fleet.clock = clock = SteppedClock()
        for number in range(6):
            await fleet.node(f"n{number}")
            await fleet.agent(f"n{number}")
        fleet.start(withdraw=True)
        await asyncio.sleep(5)
        for number in range(6):
            await fleet.node(f"n{number}", ready="False")
        await asyncio.sleep(5)
        assert len(fleet.claims()) == 3
        clock.ahead = timedelta(hours=-1)
        await asyncio.sleep(61)
        assert fleet.claims() == set()
        await fleet.end()

    run_virtual(story())


def test_half_of_a_hundred_nodes_failing_at_once_trips_the_brake_and_says_so() -> None:
    """At a brake of 0.3, thirty go at once; the others stand, are counted and told of, and go within the next minute."""

    async def story() -> None:
        fleet = Fleet()
        for number in range(100):
            await fleet.node(f"n{number:02}")
            await fleet.agent(f"n{number:02}")
        fleet.start(withdraw=True)
        await asyncio.sleep(5)
        dead = {f"n{number:02}" for number in range(0, 100, 2)}
        for name in dead:
            await fleet.node(name, ready="Unknown")
        await asyncio.sleep(10)
        report = fleet.withdrawn.get()
        assert (report.withdrawn_total, len(fleet.claims())) == (30, 70)
        assert report.braked == fleet.claims() & dead
        assert report.held == dict.fromkeys(report.braked, "NodeNotReady")
        (alarm,) = brake_alarm(report, 0.3, "prewarm")
        assert (alarm.about.kind, alarm.about.name, alarm.reason) == ("Deployment", "prewarm-planner", "BrakeTripped")
        assert "more than 30% of the nodes" in alarm.message
        assert "NodeNotReady" in alarm.message
        assert " and 15 more stand" in alarm.message
        await asyncio.sleep(60)
        assert fleet.claims() & dead == set()
        assert fleet.withdrawn.get().withdrawn_total == 50
        assert brake_alarm(fleet.withdrawn.get(), 0.3, "prewarm") == ()
        await fleet.end()

    run_virtual(story())


def test_a_change_of_leader_lets_go_of_no_brake() -> None:
    async def story() -> None:
        fleet = Fleet()
        for number in range(100):
            await fleet.node(f"n{number:02}", ready="Unknown" if number % 2 else "True")
            await fleet.agent(f"n{number:02}")
        for _ in range(3):
            fleet.start(withdraw=True)
            await asyncio.sleep(10)
            assert len(fleet.claims()) == 70
            await fleet.end()
        fleet.start(withdraw=True)
        await asyncio.sleep(60)
        assert len(fleet.claims()) == 50
        await fleet.end()

    run_virtual(story())


def test_what_a_failed_write_leaves_standing_is_not_called_braked() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        await fleet.agent("n1")
        fleet.start(withdraw=True)
        await asyncio.sleep(5)
        fleet.server.failures = [500] * 20
        await fleet.node("n1", ready="False")
        await asyncio.sleep(2)
        report = fleet.withdrawn.get()
        assert (report.held, report.braked) == ({"n1": "NodeNotReady"}, frozenset())
        await fleet.end()

    run_virtual(story())


def test_failed_withdrawal_is_tried_again_soon() -> None:
    async def story() -> None:
        fleet = Fleet()
        await fleet.node("n1")
        await fleet.agent("n1")
        fleet.start(withdraw=True)
        await asyncio.sleep(5)
        await fleet.node("n1", ready="False")
        fleet.server.failures = [500, 500]
        await asyncio.sleep(8)
        assert fleet.claims() == set()
        await fleet.end()

    run_virtual(story())


def test_the_brake_counts_nodes_so_one_that_fails_again_is_withdrawn_at_once() -> None:
    async def story() -> None:
        fleet = Fleet()
        for name in ("n1", "n2"):
            await fleet.node(name)
            await fleet.agent(name)
        fleet.start(withdraw=True)
        await asyncio.sleep(5)
        for _ in range(2):
            await fleet.node("n1", ready="False")
            await asyncio.sleep(1)
            assert fleet.claims() == {"n2"}
            await fleet.node("n1")  # it is back, and claims again
            await asyncio.sleep(1)
            assert fleet.claims() == {"n1", "n2"}
        await fleet.end()

    run_virtual(story())
