"""The decide loop: what makes it decide anew, and when a proof is too old."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from agent.core.heartbeat import Heartbeat
from agent.core.inventory import GpuReport, GpuVerdict, Inventory, MemoryView, ModelsView
from agent.core.latest import Latest
from agent.node.loop import DecideLoop, Decisions, Facts
from agent.node.readiness import Readiness
from agent.plan.decision import NodePlan
from agent.plan.planning import Limits, plan
from tests.fakes.virtual_time import LoopClock, run_virtual
from tests.unit.node.making import LABEL, assigned, endpoint, warm


@dataclass
class Node:
    """A decide loop whose facts a test sets."""

    facts: Facts
    decided: Decisions
    heartbeat: Heartbeat
    cycles: list[float]

    def ready(self) -> bool:
        found = self.decided.readiness.get()
        return found is not None and LABEL in found.labels


def play(tell: Callable[[Node], Awaitable[None]], *, opens_in: float = 7200) -> Node:
    async def run() -> Node:
        clock, heartbeat, cycles = LoopClock(), Heartbeat(["images"]), list[float]()
        inventory = warm()
        facts = Facts(
            assignment=Latest(assigned(endpoint(opens_in=opens_in))),
            images=Latest(inventory.images),
            models=Latest(ModelsView(states=inventory.models)),
            memory=Latest(MemoryView()),
            gpu=Latest(inventory.gpu),
            waiting=Latest(frozenset()),
        )
        readiness: Latest[Readiness | None] = Latest(None)
        decided = Decisions(inventory=Latest(Inventory()), plan=Latest(NodePlan()), readiness=readiness)
        decide = partial(plan, limits=Limits())

        def counted(*arguments: object) -> NodePlan:
            cycles.append(clock.monotonic())
            return decide(*arguments)  # type: ignore[arg-type]

        loop = DecideLoop(
            facts=facts,
            decisions=decided,
            plan=counted,
            heartbeat=heartbeat,
            clock=clock,
            boot_id="boot-1",
            lift_taint="gpu",
        )
        node = Node(facts, decided, heartbeat, cycles)
        task = asyncio.create_task(loop.run(), name="decide")
        await asyncio.sleep(0.01)
        await tell(node)
        task.cancel()
        await asyncio.wait({task})
        return node

    return run_virtual(run())


async def beat(node: Node) -> None:
    node.heartbeat.beat("images", asyncio.get_running_loop().time())
    await asyncio.sleep(0)


def test_nothing_is_claimed_before_every_prover_has_completed_a_cycle() -> None:
    async def tell(node: Node) -> None:
        assert not node.ready()
        await beat(node)
        await asyncio.sleep(0)
        assert node.ready()

    play(tell)


def test_a_proof_older_than_thirty_seconds_is_none() -> None:
    async def tell(node: Node) -> None:
        await beat(node)
        await asyncio.sleep(29)
        assert node.ready()
        await asyncio.sleep(2)
        assert not node.ready()

    play(tell)


def test_a_proof_that_comes_late_counts_again_at_once() -> None:
    async def tell(node: Node) -> None:
        await beat(node)
        await asyncio.sleep(45)
        assert not node.ready()
        await beat(node)  # and no fact has changed
        await asyncio.sleep(1.5)
        assert node.ready()

    play(tell)


def test_every_fact_leads_to_a_decision_in_the_same_moment() -> None:
    async def tell(node: Node) -> None:
        await beat(node)
        node.facts.gpu.set(GpuReport(verdict=GpuVerdict.UNHEALTHY))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        found = node.decided.readiness.get()
        assert found is not None
        assert found.labels["prewarm.dev/gpu"] == "unhealthy"
        node.facts.images.set({})
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not node.ready()

    play(tell)


def test_the_opening_of_a_window_alone_changes_the_decision() -> None:
    async def tell(node: Node) -> None:
        node.facts.images.set({})
        for _ in range(8):
            await beat(node)
            await asyncio.sleep(10)
        found = node.decided.readiness.get()
        assert found is not None
        assert found.conditions[1].reason == "Cold"

    play(tell, opens_in=60)


def test_an_idle_hour_costs_few_cycles() -> None:
    async def tell(node: Node) -> None:
        for _ in range(240):
            await beat(node)
            await asyncio.sleep(15)

    assert len(play(tell).cycles) < 300


def test_a_gpu_verdict_older_than_thirty_seconds_is_unknown_whoever_else_beats() -> None:
    verdicts: list[tuple[float, GpuVerdict]] = []

    async def tell(node: Node) -> None:
        node.heartbeat.expect("gpu")
        node.heartbeat.beat("gpu", 0.0)
        for second in range(1, 36):
            await asyncio.sleep(1)
            if second <= 20:  # then the images room is stuck too: its claims drop first, the GPU's own must follow
                node.heartbeat.beat("images", float(second))
            verdicts.append((second, node.decided.inventory.get().gpu.verdict))

    node = play(tell)
    assert verdicts[28] == (29, GpuVerdict.HEALTHY)
    assert verdicts[31] == (32, GpuVerdict.UNKNOWN)
    ready = node.decided.readiness.get()
    assert ready is not None
    assert ready.labels["prewarm.dev/gpu"] == "unknown"
    assert ready.conditions[0].status == "Unknown"


def test_a_bad_gpu_verdict_stands_however_old() -> None:
    async def tell(node: Node) -> None:
        node.facts.gpu.set(GpuReport(verdict=GpuVerdict.UNHEALTHY, reason="hung", count=8))
        node.heartbeat.beat("gpu", 0.0)
        await asyncio.sleep(40)

    assert play(tell).decided.inventory.get().gpu.verdict is GpuVerdict.UNHEALTHY
