"""The publisher against an API server that lags, fails and is edited by others; in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from agent.core.errors import Permanent, Transient
from agent.core.inventory import GpuReport, GpuVerdict, Inventory
from agent.core.latest import Latest
from agent.kube.objects import Condition, NodeView, Taint
from agent.node.publisher import Publisher
from agent.node.readiness import Readiness, readiness
from tests.fakes.node_api import NodeApi
from tests.fakes.virtual_time import START, LoopClock, run_virtual
from tests.unit.node.making import LABEL, assigned, warm

GPU = "prewarm.dev/gpu"
TAINT = Taint(key="prewarm.dev/not-ready", effect="NoSchedule")
OTHER = Taint(key="other", effect="NoExecute")
COLD = warm(images={})
UNPROVED = warm(images={}, models={}, proved=False, gpu=GpuReport())
SICK = warm(gpu=GpuReport(verdict=GpuVerdict.UNHEALTHY, reason="Xid 79"))


class Bench:
    """A publisher on one Node."""

    def __init__(self, node: NodeView, inventory: Inventory = COLD) -> None:
        self.watched: Latest[NodeView | None] = Latest(node)
        self.api = NodeApi(node=node, watched=self.watched)
        self.readiness: Latest[Readiness | None] = Latest(None)
        self.publisher = Publisher(
            node=self.watched, readiness=self.readiness, writer=self.api, clock=LoopClock(), rng=random.Random(1)
        )
        self.prove(inventory)

    def prove(self, inventory: Inventory) -> None:
        self.readiness.set(readiness(assigned(), inventory, START))

    @property
    def kinds(self) -> list[str]:
        return [w.kind for w in self.api.writes]


def story(tell: Callable[[Bench], Awaitable[None]], node: NodeView | None = None, inventory: Inventory = COLD) -> Bench:
    """Run a publisher while `tell` goes on."""

    async def play() -> Bench:
        bench = Bench(node or NodeView(name="n1", uid="u1", resource_version="1"), inventory)
        task = asyncio.create_task(bench.publisher.run(), name="publisher")
        await tell(bench)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return bench

    return run_virtual(play())


def claimed(boot: str = "boot-1", **other: object) -> NodeView:
    found = readiness(assigned(), warm(), START)
    full: dict[str, object] = {
        "labels": dict(found.labels),
        "annotations": {"prewarm.dev/boot-id": boot},
        "conditions": found.conditions,
    } | other
    return NodeView(name="n1", uid="u1", resource_version="1", **full)  # type: ignore[arg-type]


async def settle(seconds: float = 1.0) -> None:
    await asyncio.sleep(seconds)


def test_it_publishes_once_and_then_is_silent() -> None:
    async def tell(bench: Bench) -> None:
        await settle(3600)

    bench = story(tell, inventory=warm())
    assert bench.kinds == ["status"]
    assert bench.api.node.labels == {LABEL: "ready", GPU: "healthy"}
    assert bench.api.node.annotations == {"prewarm.dev/boot-id": "boot-1"}


def test_admissions_that_come_together_share_a_patch() -> None:
    async def tell(bench: Bench) -> None:
        await asyncio.sleep(0.05)
        bench.prove(warm())
        await settle()

    bench = story(tell)
    assert bench.kinds == ["status"]
    assert bench.api.node.labels[LABEL] == "ready"


def test_a_withdrawal_is_written_in_the_same_moment() -> None:
    at: list[float] = []

    async def tell(bench: Bench) -> None:
        await settle(60)
        at.append(asyncio.get_running_loop().time())
        bench.prove(COLD)
        await settle(0)
        await settle()

    bench = story(tell, node=claimed(), inventory=warm())
    assert [w.at for w in bench.api.writes] == at
    assert LABEL not in bench.api.node.labels


def test_claims_of_an_earlier_boot_are_withdrawn_at_once() -> None:
    async def tell(bench: Bench) -> None:
        await settle(0.1)

    bench = story(tell, node=claimed(boot="boot-0"), inventory=UNPROVED)
    assert bench.api.node.labels == {GPU: "unknown"}
    assert bench.api.node.annotations["prewarm.dev/boot-id"] == "boot-1"


def test_claims_of_this_boot_stand_for_ten_seconds_without_proof() -> None:
    seen: list[bool] = []

    async def tell(bench: Bench) -> None:
        for seconds in (9.9, 0.2):
            await settle(seconds)
            seen.append(LABEL in bench.api.node.labels)

    story(tell, node=claimed(), inventory=UNPROVED)
    assert seen == [True, False]


def test_claims_proved_again_within_grace_cause_no_write() -> None:
    async def tell(bench: Bench) -> None:
        await settle(3)
        bench.prove(warm())
        await settle(60)

    assert story(tell, node=claimed(), inventory=UNPROVED).kinds == []


def test_to_admit_the_taint_goes_last_and_not_if_the_labels_failed() -> None:
    async def tell(bench: Bench) -> None:
        await settle()
        assert set(bench.kinds) == {"status"}
        bench.api.failure = None
        await settle(60)

    async def start(bench: Bench) -> None:
        bench.api.failure = Transient("away")
        await tell(bench)

    bench = story(start, node=NodeView(name="n1", resource_version="1", taints=(OTHER, TAINT)), inventory=warm())
    assert bench.kinds[-2:] == ["status", "taints"]
    assert bench.api.node.taints == (OTHER,)


def test_to_withdraw_the_taint_comes_first_and_its_failure_holds_up_nothing() -> None:
    async def tell(bench: Bench) -> None:
        async def refuse(node: str, ops: object) -> None:
            raise Permanent("refused")

        bench.api.patch_taints = refuse  # type: ignore[method-assign]
        bench.prove(SICK)
        await settle()

    node = claimed(annotations={"prewarm.dev/boot-id": "boot-1", "prewarm.dev/taint-lifted": "true"})
    bench = story(tell, node=node, inventory=warm())
    assert bench.api.node.labels[GPU] == "unhealthy"
    assert bench.kinds[0] == "status"


def test_the_taint_returns_before_the_labels_change() -> None:
    async def tell(bench: Bench) -> None:
        bench.prove(SICK)
        await settle()

    node = claimed(annotations={"prewarm.dev/boot-id": "boot-1", "prewarm.dev/taint-lifted": "true"}, taints=(OTHER,))
    bench = story(tell, node=node, inventory=warm())
    assert bench.kinds == ["taints", "status"]
    assert bench.api.node.taints == (OTHER, TAINT)


def test_what_others_strip_is_repaired_without_flooding() -> None:
    async def tell(bench: Bench) -> None:
        for _ in range(600):
            await settle(1)
            bench.api.change(labels={})

    bench = story(tell, node=claimed(), inventory=warm())
    in_a_minute = max(sum(1 for w in bench.api.writes if t <= w.at < t + 60) for t in range(600))
    assert bench.api.writes[0].at < 2
    assert 15 <= len(bench.api.writes) <= 4 + 600 / 30 + 1
    assert in_a_minute <= 6


def test_a_withdrawal_passes_an_empty_budget_a_backoff_and_a_hanging_write() -> None:
    at: list[float] = []

    async def tell(bench: Bench) -> None:
        for _ in range(20):  # spend the budget
            await settle(0.5)
            bench.api.change(labels={})
        await settle(40)
        assert bench.api.node.labels[LABEL] == "ready"
        bench.api.change(labels={**bench.api.node.labels, GPU: "none"})
        bench.api.latency = 3.0
        await settle(31)  # the repair of the other label is on its way, or waits
        at.append(asyncio.get_running_loop().time())
        bench.prove(COLD)
        await settle(0)
        await settle(10)

    bench = story(tell, node=claimed(), inventory=warm())
    late = [w.at for w in bench.api.writes if w.body["metadata"].get("labels", {}).get(LABEL, "") is None]
    assert late[0] == pytest.approx(at[0], abs=0.01)
    assert LABEL not in bench.api.node.labels


def test_a_claim_whose_write_hangs_is_withdrawn_although_the_watch_never_showed_it() -> None:
    async def tell(bench: Bench) -> None:
        bench.api.latency, bench.api.lag = 4.0, None
        await settle(1)  # the admission is on its way
        bench.prove(COLD)
        await settle(0.1)
        assert bench.api.writes[-1].body["metadata"]["labels"][LABEL] is None
        assert bench.api.writes[-1].at == pytest.approx(1.0, abs=0.01)

    story(tell, inventory=warm())


def test_a_lagging_watch_causes_no_second_write() -> None:
    async def tell(bench: Bench) -> None:
        bench.api.lag = 1.5
        await settle(60)

    assert story(tell, inventory=warm()).kinds == ["status"]


def test_a_watch_that_is_stuck_is_not_answered_with_a_flood() -> None:
    async def tell(bench: Bench) -> None:
        bench.api.lag = None
        bench.prove(COLD)
        await settle(600)

    assert len(story(tell, node=claimed(), inventory=warm()).api.writes) <= 16


def test_a_waiting_withdrawal_is_told_and_over_once_written() -> None:
    async def tell(bench: Bench) -> None:
        bench.api.failure = Transient("away")
        await settle(5)
        assert bench.publisher.withdrawal_waiting_seconds() == 0
        bench.prove(COLD)
        await settle(7)
        assert bench.publisher.withdrawal_waiting_seconds() == pytest.approx(7, abs=0.01)
        bench.api.failure = None
        await settle(6)
        assert bench.publisher.withdrawal_waiting_seconds() == 0
        assert LABEL not in bench.api.node.labels

    story(tell, node=claimed(), inventory=warm())


def test_failed_writes_are_retried_with_growing_pauses_and_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    async def tell(bench: Bench) -> None:
        bench.api.failure = Permanent("nodes is forbidden")
        await settle(600)

    bench = story(tell, inventory=warm())
    assert 10 <= len(bench.api.writes) <= 60
    assert capsys.readouterr().out.count("nodes is forbidden") == 1


def test_the_new_node_of_the_same_name_gets_its_own_claims() -> None:
    async def tell(bench: Bench) -> None:
        await settle(5)
        bench.watched.set(None)
        await settle(5)
        bench.api.node = NodeView(name="n1", uid="u2", resource_version="1", taints=(TAINT,))
        bench.watched.set(bench.api.node)
        await settle(5)
        assert bench.api.node.labels[LABEL] == "ready"
        assert bench.api.node.taints == ()

    story(tell, node=claimed(), inventory=warm())


def test_a_node_that_is_not_ready_loses_its_claims_once_and_gets_them_back_once() -> None:
    def ready(node: NodeView, status: str) -> tuple[Condition, ...]:
        return (*(c for c in node.conditions if c.type != "Ready"), Condition(type="Ready", status=status))

    async def tell(bench: Bench) -> None:
        await settle(60)
        bench.api.change(conditions=ready(bench.api.node, "Unknown"))
        await settle(0)
        await settle(60)
        assert bench.api.node.labels == {}
        bench.api.change(conditions=ready(bench.api.node, "True"))
        await settle(60)
        assert bench.api.node.labels == {LABEL: "ready", GPU: "healthy"}

    assert story(tell, node=claimed(), inventory=warm()).kinds == ["status", "status"]


def test_saying_goodbye_makes_a_last_attempt_at_withdrawals_only() -> None:
    async def play() -> tuple[Bench, Bench]:
        pending, content = Bench(claimed(), COLD), Bench(NodeView(name="n1"), warm())
        await pending.publisher.flush()
        await content.publisher.flush()
        return pending, content

    pending, content = run_virtual(play())
    assert LABEL not in pending.api.node.labels
    assert content.api.writes == []


@pytest.mark.parametrize("steps", range(12))
def test_cancelled_anywhere_it_leaves_no_task_and_only_whole_writes(steps: int) -> None:
    async def play() -> NodeView:
        bench = Bench(claimed(taints=(TAINT,)), COLD)
        task = asyncio.create_task(bench.publisher.run(), name="publisher")
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return bench.api.node

    node = run_virtual(play())
    assert (LABEL in node.labels) == (node.labels == claimed().labels)
