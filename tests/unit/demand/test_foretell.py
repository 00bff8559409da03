from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest

from agent.core.assignment import Window, WindowSource
from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint, WorkloadRef
from agent.demand.foretell import Foreteller
from agent.demand.foretold import MAX_PREDICTED, Foretold, horizon, lasting, runs
from agent.demand.hazard import MIN_RETURNS
from agent.demand.history import Track, slot_of, track_of
from agent.demand.wall import SLOT
from tests.unit.demand.traffic import START, Active, hours, never, office, slots

WORKLOAD = WorkloadRef(api_version="apps/v1", kind="Deployment", namespace="a", name="e", uid="u")
HALF = hours(0.5)
NIGHT = START + timedelta(days=9, hours=2)  # a Wednesday
NINE = NIGHT.replace(hour=9)
FIRST = slot_of(START)


def endpoint(name: str) -> Endpoint:
    return Endpoint(key=EndpointKey(namespace="a", name=name), workload=WORKLOAD)


def track(active: Active, until: datetime) -> Track:
    return track_of(FIRST, [active(at) for at in slots((until - START) / timedelta(days=1))])


def foretold(
    foreteller: Foreteller, endpoints: Sequence[Endpoint], tracks: Mapping[EndpointKey, Track], now: datetime
) -> Foretold:
    foreteller.begin(endpoints, tracks, now)
    while foreteller.learn():
        pass
    return foreteller.foretell(now)


def warm_at(found: Foretold, endpoint: Endpoint, at: datetime) -> bool:
    return any(w.ready_by <= at < w.until for w in found.windows[endpoint.key])


@dataclass(frozen=True)
class Offices:
    """Five offices that open at nine, and an endpoint that is never used; and what a night's forecast says of them."""

    endpoints: list[Endpoint]
    tracks: dict[EndpointKey, Track]
    found: Foretold


@pytest.fixture(scope="module")
def offices() -> Offices:
    endpoints = [endpoint(f"e{i}") for i in range(6)]
    traffic: list[Active] = [*(office(opens=9, jitter_seed=i) for i in range(5)), never]
    tracks = {e.key: track(active, NIGHT) for e, active in zip(endpoints, traffic, strict=True)}
    return Offices(endpoints, tracks, foretold(Foreteller(0.3, {}), endpoints, tracks, NIGHT))


def test_by_night_a_window_of_the_morning_is_foretold(offices: Offices) -> None:
    for each in offices.endpoints[:5]:
        assert warm_at(offices.found, each, NINE)
        assert not warm_at(offices.found, each, NINE - hours(5)), "not warm all night"
        windows = offices.found.windows[each.key]
        assert all(w.source is WindowSource.PREDICTED and w.ready_by.minute in (0, 30) for w in windows)
        assert all(NIGHT - HALF < w.ready_by < w.until <= horizon(NIGHT) for w in windows)
    assert offices.found.windows[offices.endpoints[5].key] == ()


def test_it_is_counted_how_decisions_fared_and_whether_chances_are_right(offices: Offices) -> None:
    fared = [offices.found.fared[e.key] for e in offices.endpoints]
    assert all(0 < f.met <= f.returns for f in fared[:5])
    assert (fared[5].returns, fared[5].met, fared[5].idle_slots) == (0, 0, 0)
    assert offices.found.idle_share is not None
    assert 0 < offices.found.idle_share < 0.6
    assert offices.found.calibration is not None
    assert 0.5 < offices.found.calibration < 2


def test_a_slot_counts_as_warm_where_it_lay_in_a_window_that_nodes_were_told_of(offices: Offices) -> None:
    """By night nothing is worth it; a window that is open all the same lasts until half past."""
    key, later = offices.endpoints[0].key, NIGHT + 2 * SLOT
    tracks = {k: t.amended(Track(first=t.end, known=3)) for k, t in offices.tracks.items()}
    counted = []
    for standing in ({}, {key: (window(9 * 24 + 1, 9 * 24 + 8),)}):
        foreteller = Foreteller(0.3, standing)
        foretold(foreteller, offices.endpoints, offices.tracks, NIGHT)
        counted.append(foretold(foreteller, offices.endpoints, tracks, later))
    without, held = counted
    assert held.fared[key].idle_slots == pytest.approx(without.fared[key].idle_slots + 1)
    assert held.idle_share is not None
    assert without.idle_share is not None
    assert held.idle_share > without.idle_share, "and is paid for"


def test_after_a_restart_the_same_is_foretold_from_what_was_kept(offices: Offices) -> None:
    begun, early = Foreteller(0.3, {}), NIGHT - hours(20)
    foretold(
        begun, offices.endpoints, {key: t.within(FIRST, slot_of(early)) for key, t in offices.tracks.items()}, early
    )
    went_on = foretold(begun, offices.endpoints, offices.tracks, NIGHT)
    assert went_on.windows == offices.found.windows
    assert went_on.fared == offices.found.fared
    assert foretold(begun, offices.endpoints, offices.tracks, NIGHT) == went_on, "nothing new changes nothing"


def test_before_there_are_returns_to_learn_from_the_closed_form_foretells() -> None:
    one, now = endpoint("e0"), START + timedelta(days=7, hours=2)
    found = foretold(Foreteller(0.3, {}), [one], {one.key: track(office(share=1), now)}, now)
    assert 0 < found.fared[one.key].returns < MIN_RETURNS
    assert warm_at(found, one, now.replace(hour=9))
    assert not warm_at(found, one, now.replace(hour=4))


def test_a_window_ends_with_a_use_that_is_nearly_certain() -> None:
    """One that comes each day from nine to eleven: by night, what is after that is not known yet."""
    one, now = endpoint("e0"), START + timedelta(days=12, hours=6)
    daily = track(lambda at: 9 <= at.hour < 11, now)
    found = foretold(Foreteller(0.2, {}), [one], {one.key: daily}, now)
    windows = found.windows[one.key]
    assert warm_at(found, one, now.replace(hour=9))
    assert max(w.until for w in windows) <= now.replace(hour=12), "neither the rest of today nor tomorrow"
    assert all(w.until - w.ready_by <= hours(4) for w in windows)


def test_what_is_unknown_is_not_taken_for_idle() -> None:
    """Three working days without a word: a planner that was away expects the morning, one that saw nobody come less so."""
    one, now = endpoint("e0"), START + timedelta(days=11, hours=2)  # a Friday
    usual = track(office(share=1), START + timedelta(days=8))
    silent = usual.amended(Track(first=usual.end, known=(1 << (slot_of(now) - usual.end)) - 1))
    away, idle = (foretold(Foreteller(0.3, {}), [one], {one.key: t}, now) for t in (usual, silent))

    def chance(found: Foretold) -> int:
        nine = now.replace(hour=9)
        return max((w.confidence for w in found.windows[one.key] if w.ready_by <= nine < w.until), default=0)

    assert chance(away) > chance(idle)
    assert idle.fared[one.key].returns < away.fared[one.key].returns, "known slots count, and older ones less"


def test_of_whom_nothing_is_known_nothing_is_foretold_and_endpoints_come_and_go() -> None:
    one, other = endpoint("e0"), endpoint("e1")
    foreteller = Foreteller(0.3, {})
    assert foretold(foreteller, [], {}, START).windows == {}
    assert foretold(foreteller, [one], {}, START + hours(1)).windows == {one.key: ()}
    assert foretold(foreteller, [other, one], {}, START + hours(2)).windows == {other.key: (), one.key: ()}
    assert foretold(foreteller, [], {}, START + hours(3)) == Foretold()
    assert foretold(foreteller, [other], {}, START + hours(4)).windows == {other.key: ()}


def test_what_comes_to_be_known_later_is_learned_but_not_more_than_once_an_hour(offices: Offices) -> None:
    foreteller = Foreteller(0.3, {})
    unread = {key: t.within(slot_of(NIGHT) - 20, slot_of(NIGHT)) for key, t in offices.tracks.items()}
    assert not any(foretold(foreteller, offices.endpoints, unread, NIGHT).windows.values())
    assert not any(foretold(foreteller, offices.endpoints, offices.tracks, NIGHT + hours(0.9)).windows.values())
    later = foretold(foreteller, offices.endpoints, offices.tracks, NIGHT + hours(1))
    assert all(warm_at(later, each, NINE) for each in offices.endpoints[:5])


def test_what_comes_to_be_known_otherwise_is_learned_too(offices: Offices) -> None:
    """Prometheus was away, and pods that ran were taken for use; when it is back, their endpoint was idle."""
    never_used, foreteller = offices.endpoints[5], Foreteller(0.3, {})
    mistaken = track(lambda at: at.hour == 9, NIGHT)
    taken = offices.tracks | {never_used.key: mistaken}
    assert warm_at(foretold(foreteller, offices.endpoints, taken, NIGHT), never_used, NINE)
    right = foretold(foreteller, offices.endpoints, offices.tracks, NIGHT + hours(1))
    assert not warm_at(right, never_used, NINE)
    assert right.fared[never_used.key].returns == 0


def test_an_endpoint_that_moves_to_another_time_zone_is_learned_by_its_clock(offices: Offices) -> None:
    foreteller = Foreteller(0.3, {})
    foretold(foreteller, offices.endpoints, offices.tracks, NIGHT)
    moved = [replace(e, zone="Asia/Tokyo") for e in offices.endpoints]
    found = foretold(foreteller, moved, offices.tracks, NIGHT)
    assert found == foretold(Foreteller(0.3, {}), moved, offices.tracks, NIGHT)
    assert found.fared != offices.found.fared, "Saturday begins nine hours earlier there"


@pytest.mark.parametrize("away", [timedelta(days=-3), timedelta(days=3650)])
def test_a_clock_that_jumps_costs_little_and_nothing_when_it_is_right_again(offices: Offices, away: timedelta) -> None:
    foreteller = Foreteller(0.3, {})
    foretold(foreteller, offices.endpoints, offices.tracks, NIGHT + away)
    assert foretold(foreteller, offices.endpoints, offices.tracks, NIGHT).windows == offices.found.windows


def test_histories_as_nobody_has_them_stop_nothing(offices: Offices) -> None:
    odd = (
        Track(first=0, known=(1 << 3_000_000) - (1 << FIRST), active=(1 << 3_000_000) - (1 << FIRST)),
        Track(first=slot_of(NIGHT) + 10, known=1, active=1),
        Track(first=10**9, known=7, active=5),
    )
    strange = [endpoint(f"strange{n}") for n in range(3)]
    tracks = offices.tracks | {e.key: track for e, track in zip(strange, odd, strict=True)}
    found = foretold(Foreteller(0.3, {}), [*offices.endpoints, *strange], tracks, NIGHT)
    assert all(warm_at(found, each, NINE) for each in offices.endpoints[:5])
    assert found.fared.keys() == tracks.keys()


def test_learning_is_done_in_bites() -> None:
    many = [endpoint(f"e{i}") for i in range(1500)]
    foreteller = Foreteller(0.2, {})
    foreteller.begin(many, {e.key: Track(first=FIRST, known=1) for e in many}, START + 500 * SLOT)
    assert foreteller.learn()
    assert foreteller._next - FIRST == 96, "144,000 slots of endpoints"


def window(begin: float, end: float, confidence: int = 50) -> Window:
    """A predicted window, hours after START."""
    return Window(
        ready_by=START + hours(begin), until=START + hours(end), source=WindowSource.PREDICTED, confidence=confidence
    )


@pytest.mark.parametrize(
    ("found", "awake", "expected"),
    [
        ((window(10.5, 12),), False, (window(9, 12),)),  # goes on, and is lengthened
        ((), False, (window(9, 10.5),)),  # no longer worth it: it ends at the next edge
        ((window(13, 14),), False, (window(9, 10.5), window(13, 14))),
        ((), True, (window(9, 11),)),  # used: that is what it is for
        ((window(10.5, 11.5), window(11.5, 12)), True, (window(9, 12),)),
    ],
)
def test_an_open_window_is_not_taken_back(found: tuple[Window, ...], awake: bool, expected: tuple[Window, ...]) -> None:
    assert lasting((window(9, 11), window(20, 21)), found, awake, START + hours(10.2)) == expected


def test_an_open_window_that_is_lengthened_is_as_likely_as_what_is_new_and_another_begins_after_a_day() -> None:
    now = START + hours(10.2)
    assert lasting((window(9, 11, 80),), (window(10, 10.5, 20),), True, now) == (window(9, 11, 80),)
    assert lasting((window(9, 11, 80),), (window(10, 12, 20),), True, now) == (window(9, 12, 20),)
    day = lasting((window(-12, 11, 80),), (window(10.5, 14, 20), window(20, 21)), True, now)
    assert day == (window(-12, 12, 20), window(12, 14, 20), window(20, 21))
    assert lasting(day, (window(12, 14, 20),), True, START + hours(12.1)) == (window(12, 14, 20),)


def test_a_window_that_is_not_open_is_as_found() -> None:
    found = (window(12, 13, 80),)
    assert lasting((window(12.5, 14),), found, True, START + hours(10)) == found
    assert lasting((window(9, 10),), found, True, START + hours(10)) == found
    assert lasting((), found, True, START + hours(10)) == found


def test_runs_of_steps_are_windows_on_half_hours() -> None:
    edges = [START + n * SLOT for n in range(400)]
    chance = [0.5] * 400
    assert runs([4, 5, 7], chance, edges) == (window(0.5, 1.5, 90),), "they touch after rounding"
    assert runs([4, 20], [0.001] * 400, edges) == (window(0.5, 1, 10), window(3, 3.5, 10)), "never sure, never hopeless"
    assert len(runs(range(0, 400, 9), chance, edges + edges[-1:])) == MAX_PREDICTED
    assert runs([], chance, edges) == ()


def test_the_horizon_moves_in_steps() -> None:
    assert [horizon(START + hours(h)) - START for h in (0, 5.9, 6)] == [hours(30), hours(30), hours(36)]
