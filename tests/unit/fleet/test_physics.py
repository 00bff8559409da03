"""Placement and forecasts by what nodes can do: room, time, pace, zones; and what of it is said."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.assignment import EndpointWant, ModelWant, Window, WindowSource
from agent.core.refs import Digest, EndpointKey, parse_model_uri
from agent.fleet.feasible import miss_note, outlook
from agent.fleet.loads import Loads
from agent.fleet.placement import Placement, place
from agent.fleet.yields import ZONE, NodeYield, node_yields, slow_notes
from agent.kube.objects import NodeReport, NodeWarmupView
from tests.unit.fleet.test_placement import endpoint, node

NOW = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
GB = 10**9


def want(name: str, size: int = 60 * GB, opens_in: timedelta = timedelta(hours=6), priority: int = 500) -> EndpointWant:
    uri = parse_model_uri(f"s3://weights/{name}/")
    model = ModelWant(name="m", uri=uri, digest=Digest("sha256:" + "1" * 64), size_bytes=size)
    window = Window(ready_by=NOW + opens_in, until=NOW + opens_in + timedelta(hours=1))
    return EndpointWant(
        key=EndpointKey(namespace="a", name=name), models=(model,), windows=(window,), priority=priority
    )


def can(
    rate: float = 1e9, *, capacity: int = 0, zone: str = "", has: tuple[str, ...] = (), slow: float = 0
) -> NodeYield:
    missing = {f"s3://weights/{name}/": 0 for name in has}
    return NodeYield(
        bytes_per_second=rate, measured=True, capacity_bytes=capacity, zone=zone, missing=missing, slow=slow
    )


def placed(
    wants: list[EndpointWant], yields: dict[str, NodeYield], *, nodes: int = 1, before: Placement | None = None
) -> Placement:
    endpoints = [endpoint(w.key.name, nodes=nodes) for w in wants]
    loads = Loads({w.key: w for w in wants}, yields, NOW)
    return place(endpoints, [node(n) for n in yields], before.assigned if before else None, loads)


def where(found: Placement, name: str) -> set[str]:
    return {n for n, keys in found.assigned.items() if any(k.name == name for k in keys)}


def test_stores_are_filled_to_three_quarters_and_then_the_next_node_is_taken() -> None:
    yields = {f"n{n}": can(capacity=200 * GB) for n in range(3)}
    found = placed([want(f"e{n}", size=50 * GB) for n in range(9)], yields)
    assert sorted(len(keys) for keys in found.assigned.values()) == [3, 3, 3]


def test_where_nothing_has_room_it_is_placed_all_the_same() -> None:
    found = placed([want("e", size=500 * GB)], {"n1": can(capacity=100 * GB)})
    assert where(found, "e") == {"n1"}


def test_it_goes_where_its_bytes_are() -> None:
    yields = {f"n{n}": can(has=("e",) if n == 7 else ()) for n in range(20)}
    assert where(placed([want("e")], yields), "e") == {"n7"}


def test_it_goes_where_there_is_time() -> None:
    yields = {f"n{n}": can(rate=1e9 if n == 3 else 1e6) for n in range(10)}
    hour = timedelta(hours=1)
    assert where(placed([want("e", opens_in=hour)], yields), "e") == {"n3"}
    found = placed([want(f"e{n}", size=3000 * GB, opens_in=hour) for n in range(2)], {"n1": can(), "n2": can()})
    assert sorted(len(keys) for keys in found.assigned.values()) == [1, 1]


def test_it_leaves_a_node_that_cannot_make_it_for_one_that_can_and_else_stays() -> None:
    late = want("e", opens_in=timedelta(minutes=10))
    crawling, fast = can(rate=1e6), can()
    before = Placement(assigned={"n1": (late.key,), "n2": ()})
    assert where(placed([late], {"n1": crawling, "n2": fast}, before=before), "e") == {"n2"}
    assert where(placed([late], {"n1": crawling, "n2": crawling}, before=before), "e") == {"n1"}


@pytest.mark.parametrize("wanted", [1, 2, 3, 5, 6])
def test_it_is_spread_over_zones(wanted: int) -> None:
    yields = {f"n{n}": can(zone=f"z{0 if n < 40 else n % 3}") for n in range(60)}
    found = placed([want("e")], yields, nodes=wanted)
    zones = [yields[n].zone for n in where(found, "e")]
    assert len(zones) == wanted
    assert max(zones.count(z) for z in ("z0", "z1", "z2")) - min(zones.count(z) for z in ("z0", "z1", "z2")) <= 1


def test_slow_nodes_come_last_and_keep_what_they_have() -> None:
    yields = {"fast": can(), **{f"s{n}": can(rate=1e8, slow=1e9) for n in range(9)}}
    assert where(placed([want("e")], yields), "e") == {"fast"}
    assert len(where(placed([want("e")], yields, nodes=3), "e")) == 3
    here = {**yields, "s1": can(rate=1e8, slow=1e9, has=("e",))}
    before = Placement(assigned={"s1": (want("e").key,)})
    assert where(placed([want("e")], here, before=before), "e") == {"s1"}
    assert where(placed([want("e")], yields, before=before), "e") == {"fast"}


@given(st.integers(1, 12), st.integers(2, 12), st.integers(1, 3), st.randoms())
def test_what_is_planned_again_stays_and_a_node_that_leaves_moves_only_its_own(
    endpoints: int, nodes: int, wanted: int, rng: object
) -> None:
    yields = {f"n{n}": can(rate=1e9, capacity=500 * GB, zone=f"z{n % 3}") for n in range(nodes)}
    wants = [want(f"e{n}", size=(n + 1) * 7 * GB) for n in range(endpoints)]
    first = placed(wants, yields, nodes=wanted)
    assert placed(list(reversed(wants)), yields, nodes=wanted, before=first) == first
    gone = sorted(yields)[rng.randrange(nodes)]  # type: ignore[attr-defined]
    rest = placed(wants, {n: y for n, y in yields.items() if n != gone}, nodes=wanted, before=first)
    moved = sum(len(set(keys) - set(first.assigned[n])) for n, keys in rest.assigned.items())
    assert moved <= len(first.assigned[gone])


def report(pace: int = 0, **missing: int) -> NodeReport:
    return NodeReport(pace_bytes_per_second=pace, missing_bytes=missing)


def yields_of(paces: dict[str, int]) -> dict[str, NodeYield]:
    nodes = [node(n, labels={ZONE: "z1", "karpenter.sh/nodepool": n[0]}) for n in paces]
    warmups = {n: NodeWarmupView(name=n, report=report(pace)) for n, pace in paces.items() if pace}
    return dict(node_yields(nodes, warmups))


def test_a_node_below_a_third_of_its_pools_median_is_slow_and_named_with_numbers() -> None:
    found = yields_of({"a1": 900, "a2": 1000, "a3": 1100, "a4": 300, "b1": 10, "b2": 1000, "c1": 0, "a5": 0})
    assert {n for n, y in found.items() if y.slow} == {"a4"}
    assert (found["a4"].bytes_per_second, found["a5"].bytes_per_second, found["a5"].measured) == (300, 950, False)
    assert (found["c1"].bytes_per_second, found["c1"].zone) == (100e6, "z1")
    (told,) = slow_notes([node(n) for n in found], found)
    assert (told.about.kind, told.about.name, told.reason) == ("Node", "a4", "SlowNode")
    assert "300 B/s where the median of its pool is 950 B/s" in told.message


def test_a_window_that_cannot_be_met_is_told_with_numbers_and_a_cure() -> None:
    first, second = want("first", 30 * GB, timedelta(minutes=6)), want("second", 60 * GB, timedelta(minutes=10))
    found = outlook({"n1": (second, first), "n2": (first,)}, {"n1": can(1e8), "n2": can(1e8)}, NOW)
    assert set(found.misses) == {second.key}
    assert found.misses[second.key][0].late.by == timedelta(minutes=5)
    assert miss_note(found.misses[second.key], 2) == (
        "the window at 2026-03-02 03:10 UTC cannot be met: node n1 will be late by up to 5m, it lacks 60.0 GB and fetches "
        "100 MB/s (measured); what is due before on this node comes first; in time it would be at 150 MB/s, with fewer bytes, "
        "or declared that much earlier (lead)"
    )


def guessing(sure: EndpointWant, opens_in: timedelta, until: timedelta) -> EndpointWant:
    """The same endpoint with a predicted window besides its declared ones."""
    window = Window(ready_by=NOW + opens_in, until=NOW + until, source=WindowSource.PREDICTED, confidence=90)
    return replace(sure, windows=tuple(sorted((window, *sure.windows))))


@pytest.mark.parametrize("opens_in", [-60, 2])
def test_a_guess_before_a_declared_window_silences_no_miss_of_it(opens_in: int) -> None:
    late = want("e", 60 * GB, timedelta(minutes=8))
    both = guessing(late, timedelta(minutes=opens_in), timedelta(minutes=8))
    assert outlook({"n1": (both,)}, {"n1": can(1e8)}, NOW) == outlook({"n1": (late,)}, {"n1": can(1e8)}, NOW)
    assert outlook({"n1": (replace(both, windows=both.windows[:1]),)}, {"n1": can(1e8)}, NOW).misses == {}
    sees = replace(can(1e9), ready_at={"a.e": NOW + timedelta(minutes=15)})
    (miss,) = outlook({"n1": (both,)}, {"n1": sees}, NOW).misses[late.key]
    assert miss.late.by == timedelta(minutes=7)


def test_a_guess_takes_no_time_of_a_node_and_hides_no_declared_window() -> None:
    yields = {"n1": can(1e8), "n2": can(1e8)}
    soon = replace(want("a", 30 * GB), windows=())
    soon, sure = (guessing(soon, timedelta(minutes=6), timedelta(hours=1)), want("b", 60 * GB, timedelta(minutes=11)))
    loads = Loads({soon.key: soon, sure.key: sure}, yields, NOW)
    loads.take(soon.key, "n1")
    assert loads.fits(sure.key, "n1")
    hidden = guessing(want("c", 60 * GB, timedelta(minutes=11)), -timedelta(hours=1), timedelta(minutes=10))
    loads = Loads({hidden.key: hidden, sure.key: sure}, yields, NOW)
    loads.take(hidden.key, "n1")
    assert not loads.fits(sure.key, "n1")


def test_it_is_known_from_the_last_moment_on_at_which_it_could_have_been_met() -> None:
    late = want("e", 60 * GB, timedelta(minutes=20))
    ahead = outlook({"n1": (late,)}, {"n1": can(1e8)}, NOW)
    assert (ahead.misses, ahead.look_at) == ({}, NOW + timedelta(minutes=10, seconds=1))
    passed = outlook({"n1": (late,)}, {"n1": can(1e8)}, NOW + timedelta(minutes=10, seconds=1))
    assert set(passed.misses) == {late.key}
    here = outlook({"n1": (late,)}, {"n1": can(1e8, has=("e",))}, NOW + timedelta(minutes=11))
    assert here.misses == {}


def test_a_living_agents_word_holds_for_it_sees_every_byte_come() -> None:
    late, due = want("e", 60 * GB, timedelta(minutes=8)), NOW + timedelta(minutes=8)
    fine, told = can(1e8), {"a.e": None}
    assert outlook({"n1": (late,)}, {"n1": replace(fine, ready_at=told)}, NOW).misses == {}
    sees = replace(can(1e9), ready_at={"a.e": due + timedelta(minutes=7)}, missing={"s3://weights/e/": 30 * GB})
    (miss,) = outlook({"n1": (late,)}, {"n1": sees}, NOW).misses[late.key]
    assert (miss.late.by, miss.size_bytes) == (timedelta(minutes=7), 30 * GB)
    assert "in time it would be with fewer bytes" in miss_note((miss,), 1)
    assert outlook({"n1": (late,)}, {"n1": sees}, due).misses == {}
    report = NodeReport(ready_at={"a.e": due})
    warmups = {"n1": NodeWarmupView(name="n1", report=report)}
    assert node_yields([node("n1")], warmups, {"n1"})["n1"].ready_at == {"a.e": due}
    assert node_yields([node("n1")], warmups)["n1"].ready_at == {}


def test_the_window_after_one_that_is_open_is_told_by_the_agent_and_reckoned_without_it() -> None:
    first, second = NOW - timedelta(hours=1), NOW + timedelta(minutes=5)
    spans = (first, second - timedelta(minutes=1)), (second, second + timedelta(hours=1))
    twice = replace(want("e", 60 * GB), windows=tuple(Window(ready_by=a, until=b) for a, b in spans))
    sees = replace(can(1e8), ready_at={"a.e": second + timedelta(minutes=2)})
    for found, by in ((sees, 2), (can(1e8), 5)):
        (miss,) = outlook({"n1": (twice,)}, {"n1": found}, NOW).misses[twice.key]
        assert (miss.late.job.due, miss.late.by) == (second, timedelta(minutes=by))
    assert outlook({"n1": (twice,)}, {"n1": replace(sees, ready_at={"a.e": None})}, NOW).misses == {}


def test_a_large_fleet_is_planned_within_the_budget_and_moves_little() -> None:
    done = subprocess.run([sys.executable, "-m", "bench.fleet"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["places"] == 5500
    assert found["moved_again"] == 0
    assert 0 < found["left_had"] <= found["moved_left"] <= 2 * found["left_had"]
    assert found["peak_mb"] < 500
    assert found["first_seconds"] < 15  # 5 s on a machine of its own: `python -m bench.fleet`
