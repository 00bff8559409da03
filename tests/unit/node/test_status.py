"""The NodeWarmup's status: what it says, how large it gets, when it is written."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from agent.core.assignment import Assignment
from agent.core.errors import Transient
from agent.core.inventory import CacheUse, GpuReport, GpuVerdict, Inventory, ModelLevel, ModelState
from agent.core.latest import Latest
from agent.core.refs import EndpointKey
from agent.node.readiness import Readiness, readiness
from agent.node.status import LIMIT_BYTES, render_status, signature
from agent.node.status_writer import StatusPublisher
from agent.plan.decision import NodePlan
from agent.plan.planning import Limits, plan
from tests.fakes.virtual_time import START, LoopClock, run_virtual
from tests.unit.node.making import DIGEST, IMAGE, MODEL, URI, assigned, endpoint, warm


def loading(done: int) -> Inventory:
    state = ModelState(
        digest=DIGEST,
        level=ModelLevel.PARTIAL,
        done_bytes=done,
        total_bytes=1000,
        rate_bytes_per_second=10,
        busy=True,
        reason=f"{done} B of 1.00 kB",
    )
    return warm(models={DIGEST: state})


def status(inventory: Inventory, assignment: Assignment | None = None) -> Mapping[str, Any]:
    asked = assignment or assigned()
    decided = plan(asked, inventory, START, Limits())
    return render_status(asked, inventory, decided, readiness(asked, inventory, START), START)


def test_a_warm_node_says_so() -> None:
    found = status(warm(cache=CacheUse(used_bytes=10**9, capacity_bytes=10**12)))
    assert found["observedGeneration"] == 3
    assert (found["phase"], found["ready"]) == ("Ready", "1/1")
    assert found["reason"] == "everything assigned is proved warm"
    assert found["nextReadyBy"] == "2026-03-02T08:10:00Z"
    assert found["cache"] == {"used": "1.00 GB", "capacity": "1.00 TB", "capacityBytes": 10**12}
    assert found["gpu"] == {"verdict": "healthy", "reason": "all 8 answer"}
    assert [(i["ref"], i["level"]) for i in found["items"]] == [
        (str(IMAGE.ref), "unpacked"),
        ("s3://weights/llama/", "committed"),
    ]


def test_a_download_shows_bytes_and_eta_and_comes_first() -> None:
    found = status(loading(400))
    assert (found["phase"], found["ready"]) == ("Warming", "0/1")
    assert found["items"][0] == {
        "ref": str(URI),
        "level": "partial",
        "bytes": 400,
        "total": 1000,
        "eta": "2026-03-02T08:01:00Z",
        "reason": "400 B of 1.00 kB",
    }


@pytest.mark.parametrize(
    ("inventory", "phase", "reason"),
    [
        (warm(proved=False), "Unready", "the proof of what is on this node is not through"),
        (
            warm(gpu=GpuReport(verdict=GpuVerdict.UNHEALTHY, reason="Xid 79")),
            "Unready",
            "GPUs are unhealthy: Xid 79",
        ),
    ],
)
def test_the_reason_is_the_worst_that_holds(inventory: Inventory, phase: str, reason: str) -> None:
    found = status(inventory)
    assert (found["phase"], found["reason"]) == (phase, reason)


def test_fields_that_end_are_removed_by_null() -> None:
    assert status(warm(), assigned(endpoint(opens_in=None)))["nextReadyBy"] is None


def test_bytes_alone_are_no_change_and_levels_are() -> None:
    assert signature(status(loading(400))) == signature(status(loading(500)))
    assert signature(status(loading(400))) != signature(status(warm()))


def test_a_window_that_cannot_be_met_any_more_is_a_change_and_by_how_much_is_none() -> None:
    due = assigned(endpoint(opens_in=50))
    fine, late, less_late = (status(loading(done), due) for done in (600, 0, 100))
    assert "readyAt" not in fine["endpoints"][0]
    assert late["endpoints"][0]["readyAt"] == "2026-03-02T08:01:40Z"
    assert signature(fine) != signature(late) == signature(less_late)


def test_the_status_of_a_huge_assignment_stays_within_its_bound_and_says_what_is_missing() -> None:
    models = tuple(
        replace(MODEL, name=f"m{n}", uri=replace(URI, key="x" * 500 + f"{n}/"), digest=None) for n in range(50)
    )
    many = assigned(
        *(
            endpoint(
                EndpointKey(namespace="team", name=f"e{n}"),
                models=tuple(replace(m, uri=replace(m.uri, bucket=f"bucket{n}")) for m in models),
            )
            for n in range(100)
        )
    )
    found = status(warm(), many)
    assert len(json.dumps(found).encode()) <= LIMIT_BYTES
    assert len(found["items"]) <= 1000
    assert f"({5001 - len(found['items'])} items not listed)" in found["reason"]


@dataclass
class Api:
    """Remembers what was written; raises `failure`."""

    failure: Transient | None = None
    writes: list[tuple[float, Mapping[str, object]]] = field(default_factory=list)

    async def write_status(self, node: str, status: Mapping[str, object]) -> None:
        assert node == "n1"
        self.writes.append((asyncio.get_running_loop().time(), status))
        if self.failure:
            raise self.failure


def story(tell: Callable[[Api, Callable[[Inventory], None]], Awaitable[None]]) -> list[tuple[float, Any]]:
    async def play() -> list[tuple[float, Any]]:
        api, asked = Api(), assigned()
        inventory, decided = Latest(Inventory()), Latest(NodePlan())
        ready: Latest[Readiness | None] = Latest(None)
        publisher = StatusPublisher(
            assignment=Latest(asked),
            inventory=inventory,
            plan=decided,
            readiness=ready,
            writer=api,
            clock=LoopClock(),
            rng=random.Random(1),
        )

        def prove(found: Inventory) -> None:
            inventory.set(found)
            decided.set(plan(asked, found, START, Limits()))
            ready.set(readiness(asked, found, START))

        task = asyncio.create_task(publisher.run(), name="status")
        await tell(api, prove)
        task.cancel()
        await asyncio.wait({task})
        return api.writes

    return run_virtual(play())


def test_progress_is_not_written_and_a_new_level_is_at_most_once_in_thirty_seconds() -> None:
    async def tell(api: Api, prove: Callable[[Inventory], None]) -> None:
        for done in range(0, 600, 10):
            prove(loading(done))
            await asyncio.sleep(0.1)
        prove(warm())
        await asyncio.sleep(60)

    writes = story(tell)
    assert [s["ready"] for _, s in writes] == ["0/1", "1/1"]
    assert writes[1][0] - writes[0][0] == pytest.approx(30, abs=0.1)


def test_lost_readiness_is_written_at_once() -> None:
    async def tell(api: Api, prove: Callable[[Inventory], None]) -> None:
        prove(warm())
        await asyncio.sleep(1)
        prove(warm(images={}))
        await asyncio.sleep(0.01)
        assert [s["ready"] for _, s in api.writes] == ["1/1", "0/1"]

    story(tell)


def test_a_failed_write_is_made_again() -> None:
    async def tell(api: Api, prove: Callable[[Inventory], None]) -> None:
        api.failure = Transient("away")
        prove(warm())
        await asyncio.sleep(300)
        assert 3 <= len(api.writes) <= 12
        api.failure = None
        await asyncio.sleep(90)
        assert api.writes[-1][1]["ready"] == "1/1"
        count = len(api.writes)
        await asyncio.sleep(600)
        assert len(api.writes) == count

    story(tell)
