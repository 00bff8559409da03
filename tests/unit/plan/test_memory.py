"""Which versions the page cache is to hold, within which budget, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from agent.core.assignment import Assignment, EndpointWant, ModelWant, Window, WindowSource
from agent.core.inventory import (
    Inventory,
    MemoryView,
    ModelLevel,
    ModelState,
    Residency,
    with_residency,
)
from agent.core.refs import Digest, EndpointKey, parse_model_uri
from agent.plan.decision import MemoryPlan
from agent.plan.memory import AHEAD, memory_bytes
from agent.plan.memory_budget import Machine, Requests, memory_budget
from agent.plan.planning import Limits, plan

NOW = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
GB = 10**9
A, B = Digest("sha256:" + "a" * 64), Digest("sha256:" + "b" * 64)


def endpoint(name: str, digest: Digest, *, opens_in: timedelta = timedelta(minutes=5), **more: object) -> EndpointWant:
    want = ModelWant(name=name, uri=parse_model_uri(f"s3://models/{name}/"), digest=digest, size_bytes=GB)
    window = Window(ready_by=NOW + opens_in, until=NOW + opens_in + timedelta(hours=1))
    basic = EndpointWant(key=EndpointKey(namespace="team", name=name), models=(want,), windows=(window,), memory=True)
    return replace(basic, **more)  # type: ignore[arg-type]


def here(*digests: Digest, size: int = GB) -> dict[Digest, ModelState]:
    return {d: ModelState(digest=d, level=ModelLevel.COMMITTED, done_bytes=size, total_bytes=size) for d in digests}


def decide(*endpoints: EndpointWant, budget: int | None = 10 * GB, models: object = None, **more: object) -> MemoryPlan:
    memory = MemoryView(budget_bytes=budget, basis="pods request 6 GB of 16 GB allocatable", **more)  # type: ignore[arg-type]
    inventory = Inventory(models=here(A, B) if models is None else models, memory=memory, proved=True)  # type: ignore[arg-type]
    return plan(Assignment(endpoints=endpoints), inventory, NOW, Limits()).memory


def test_a_committed_version_is_kept_from_shortly_before_its_window_to_the_end_of_it() -> None:
    decided = decide(endpoint("chat", A))
    assert [(s.digest, s.until, s.yields_to) for s in decided.keep] == [(A, NOW + timedelta(minutes=65), "")]
    assert decided.known


def test_a_window_further_ahead_takes_no_memory_and_the_plan_wakes_for_it() -> None:
    want = endpoint("chat", A, opens_in=timedelta(hours=3))
    inventory = Inventory(models=here(A), memory=MemoryView(budget_bytes=10 * GB), proved=True)
    decided = plan(Assignment(endpoints=(want,)), inventory, NOW, Limits())
    assert not decided.memory.asked
    assert decided.wake_at == NOW + timedelta(hours=3) - timedelta(minutes=30)  # the start on disk comes first
    start = NOW + timedelta(hours=3) - AHEAD - timedelta(seconds=2)  # 1 GB at 500 MB/s
    later = plan(Assignment(endpoints=(want,)), inventory, start - timedelta(seconds=1), Limits())
    assert (later.memory.asked, later.wake_at) == (False, start)
    assert plan(Assignment(endpoints=(want,)), inventory, start, Limits()).memory.keep


def test_nothing_is_kept_for_an_endpoint_that_does_not_ask() -> None:
    assert not decide(endpoint("chat", A, memory=False)).asked


def test_what_does_not_fit_is_refused_with_numbers_and_greater_priority_goes_first() -> None:
    decided = decide(endpoint("small", A, priority=400), endpoint("big", B, priority=600), budget=int(1.5 * GB))
    assert [s.digest for s in decided.keep] == [B]
    assert decided.refused[A] == (
        "not kept in memory: needs 1.02 GB, and 478 MB of 1.50 GB are left (pods request 6 GB of 16 GB allocatable)"
    )


def test_a_guess_takes_no_memory_from_a_declared_window_and_hides_none_of_its_own() -> None:
    sure, near = endpoint("sure", A, priority=400), endpoint("guess", B, priority=900)
    opened = Window(ready_by=NOW - timedelta(hours=1), until=NOW + timedelta(minutes=1), source=WindowSource.PREDICTED)
    decided = decide(sure, replace(near, windows=(opened,)), budget=int(1.5 * GB))
    assert ([s.digest for s in decided.keep], set(decided.refused)) == ([A], {B})
    both = decide(sure, replace(near, windows=(opened, *near.windows)), budget=int(1.5 * GB))
    assert [(s.digest, s.until) for s in both.keep] == [(B, near.windows[0].until)]


def test_a_version_still_on_its_way_keeps_its_share() -> None:
    decided = decide(
        endpoint("small", A, priority=400), endpoint("big", B, priority=600), budget=int(1.5 * GB), models=here(A)
    )
    assert decided.keep == ()
    assert list(decided.refused) == [A]


def test_a_version_of_two_endpoints_is_kept_once_as_the_more_important_one_wants_it() -> None:
    decided = decide(endpoint("x", A, priority=1), endpoint("y", A, priority=900), budget=int(1.5 * GB))
    assert [(s.digest, s.endpoint.name) for s in decided.keep] == [(A, "y")]


def test_no_budget_and_no_cgroup_are_reasons_too() -> None:
    assert decide(endpoint("chat", A), budget=None).refused[A] == (
        "not kept in memory: how much may be used is not known yet"
    )
    assert decide(endpoint("chat", A), off="no cgroup").refused[A] == "not kept in memory: no cgroup"


def test_what_was_let_go_is_left_alone_for_a_while_and_keeps_its_reason() -> None:
    told = Residency(reason="the kernel took it", retry_at=NOW + timedelta(minutes=5))
    assert decide(endpoint("chat", A), states={A: told}).refused == {A: "the kernel took it"}
    past = replace(told, retry_at=NOW)
    assert [s.digest for s in decide(endpoint("chat", A), states={A: past}).keep] == [A]


def test_reading_in_yields_to_a_waiting_pod_and_to_a_download_due_earlier() -> None:
    warm, cold = endpoint("warm", A), endpoint("cold", B, memory=False, opens_in=timedelta(minutes=2))
    memory = MemoryView(budget_bytes=10 * GB)
    inventory = Inventory(models=here(A), memory=memory, proved=True)
    (step,) = plan(Assignment(endpoints=(warm, cold)), inventory, NOW, Limits()).memory.keep
    assert step.yields_to == "the download of cold is due first"
    late = replace(cold, windows=(Window(ready_by=NOW + timedelta(minutes=20), until=NOW + timedelta(hours=1)),))
    (step,) = plan(Assignment(endpoints=(warm, late)), inventory, NOW, Limits()).memory.keep
    assert step.yields_to == ""
    waited = replace(inventory, waiting=frozenset({late.key}))
    (step,) = plan(Assignment(endpoints=(warm, late)), waited, NOW, Limits()).memory.keep
    assert step.yields_to == "a pod waits for cold"


def test_until_everything_is_proved_nothing_is_known_to_be_unwanted() -> None:
    inventory = Inventory(memory=MemoryView(budget_bytes=GB), proved=False)
    assert not plan(Assignment(endpoints=(endpoint("chat", A),)), inventory, NOW, Limits()).memory.known
    assert not plan(None, inventory, NOW, Limits()).memory.known


@pytest.mark.parametrize(("resident", "level"), [(950, ModelLevel.RESIDENT), (949, ModelLevel.COMMITTED)])
def test_a_version_is_resident_from_95_percent_measured(resident: int, level: ModelLevel) -> None:
    memory = MemoryView(states={A: Residency(resident_bytes=resident, reason="measured")})
    found = with_residency(here(A, B, size=1000), memory)
    assert (found[A].level, found[A].resident_bytes, found[A].reason) == (level, resident, "measured")
    assert found[B].level is ModelLevel.COMMITTED


def test_a_version_that_is_not_committed_is_never_resident() -> None:
    partial = {A: ModelState(digest=A, level=ModelLevel.PARTIAL, total_bytes=1000)}
    memory = MemoryView(states={A: Residency(resident_bytes=1000)})
    assert with_residency(partial, memory)[A].level is ModelLevel.PARTIAL


MACHINE = Machine(total_bytes=64 * GB, available_bytes=40 * GB)


def test_the_budget_is_what_pods_have_not_requested() -> None:
    found = memory_budget(
        setting=None, requests=Requests(allocatable_bytes=60 * GB, requested_bytes=50 * GB), machine=MACHINE
    )
    assert 0 <= 10 * GB - found.size_bytes < 64 << 20
    assert found.basis == "pods request 50.0 GB of 60.0 GB allocatable"


def test_pods_that_request_more_than_there_is_leave_nothing() -> None:
    found = memory_budget(
        setting=None, requests=Requests(allocatable_bytes=GB, requested_bytes=2 * GB), machine=MACHINE
    )
    assert found.size_bytes == 0


def test_what_the_machine_lacks_bounds_every_budget() -> None:
    short = replace(MACHINE, available_bytes=4 * GB)
    found = memory_budget(
        setting=50 * GB, requests=Requests(allocatable_bytes=60 * GB, requested_bytes=0), machine=short
    )
    assert 0 <= 0.8 * GB - found.size_bytes < 64 << 20  # 4 GB less 5 % of 64 GB
    assert "stay free" in found.basis


def test_alone_it_is_the_setting_else_half_of_what_is_available() -> None:
    assert memory_budget(setting=3 << 30, requests=None, machine=MACHINE).size_bytes == 3 << 30
    assert 0 <= 20 * GB - memory_budget(setting=None, requests=None, machine=MACHINE).size_bytes < 64 << 20


def test_a_machine_that_waits_for_memory_gets_all_of_it_back() -> None:
    found = memory_budget(setting=None, requests=None, machine=replace(MACHINE, stalled_percent=12.0))
    assert (found.size_bytes, found.basis) == (0, "processes here wait for memory 12 % of the time")


def test_small_files_cost_whole_pages() -> None:
    assert memory_bytes(10_000, files=10_000) > 40_000_000
