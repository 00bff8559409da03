"""What windows are worth keeping: p95 by past windows, and what pods would idle and save."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint, Schedule, WorkloadRef
from agent.demand.history import DAY_SLOTS, slot_of, slot_start
from agent.demand.peaks import Peak, foretold
from agent.demand.recommend import Needed, Terms, recommend

BEGIN = datetime(2026, 3, 2, tzinfo=UTC)  # a Monday
NOW = BEGIN + timedelta(days=28)
TERMS = Terms(cold_seconds=60, worth=30)
Pods = Callable[[datetime], int | None]


def endpoint(*crons: str, gpus: int = 1, zone: str = "UTC") -> Endpoint:
    ref = WorkloadRef(api_version="apps/v1", kind="Deployment", namespace="shop", name="chat", uid="u")
    return Endpoint(
        key=EndpointKey(namespace="shop", name="chat"),
        workload=ref,
        schedule=tuple(Schedule(cron=cron, zone=zone) for cron in crons),
        zone=zone,
        gpus=gpus,
    )


def needed(pods: Pods, days: int = 28) -> Needed:
    first = slot_of(NOW) - days * DAY_SLOTS
    return Needed(first=first, pods=[pods(slot_start(first + n)) for n in range(days * DAY_SLOTS)])


def office(at: datetime) -> int:
    """Two pods from ten past nine on, on working days."""
    return 2 if at.weekday() < 5 and at.replace(hour=9, minute=10) <= at < at.replace(hour=17, minute=0) else 0


def test_an_office_is_worth_its_pods_and_the_costs_are_those_by_hand() -> None:
    found = recommend(endpoint("0 9 * * MON-FRI", gpus=4), needed(office), NOW, TERMS)
    assert found.window is not None
    assert found.window.ready_by == datetime(2026, 3, 30, 8, 55, tzinfo=UTC)
    assert (found.p95_pods, found.pods, found.windows, found.covered) == (2, 0, 20, 1)
    assert found.why == "pod 1 would idle 60 GPU-seconds for each cold second saved: more than --worth 30"
    one = recommend(endpoint("0 9 * * MON-FRI"), needed(office), NOW, TERMS)
    assert (one.p95_pods, one.pods) == (2, 2)
    assert one.pod_hours == pytest.approx(5 * 2 * 15 / 60), "five days, two pods, from 8:55 to 9:10"
    assert one.gpu_hours == one.pod_hours
    assert one.cold_seconds_saved == pytest.approx(5 * 2 * 60)
    assert one.why == 'set prewarm.dev/replicas: "2"'


def test_an_endpoint_used_twice_a_day_gets_none() -> None:
    def twice(at: datetime) -> int:
        return int(at.hour in (9, 17) and at.minute == 10)

    found = recommend(endpoint("0 9 * * *", "0 17 * * *"), needed(twice), NOW, TERMS)
    assert (found.p95_pods, found.pods, found.gpu_hours, found.cold_seconds_saved) == (1, 0, 0, 0)
    assert found.why == "pod 1 would idle 55 GPU-seconds for each cold second saved: more than --worth 30"


def test_what_runs_anyway_costs_and_saves_nothing() -> None:
    found = recommend(endpoint("0 9 * * *"), needed(lambda at: 3), NOW, TERMS)
    assert (found.p95_pods, found.pods, found.gpu_hours, found.cold_seconds_saved) == (3, 3, 0, 0)


def test_windows_that_nobody_uses_need_none() -> None:
    found = recommend(endpoint("0 20 * * *"), needed(office), NOW, TERMS)
    assert (found.p95_pods, found.pods) == (0, 0)
    assert found.why == "19 of 20 of its windows need no pod (28 seen)"


def test_without_a_window_or_enough_known_ones_nothing_is_claimed() -> None:
    assert "no window is declared" in recommend(endpoint(), needed(office), NOW, TERMS).why
    assert recommend(endpoint("0 9 1 1 *"), needed(office), NOW, TERMS).why == "no window begins within 8 days"
    always = recommend(endpoint("0 * * * *"), needed(office), NOW, TERMS)
    assert (always.window, always.pods) == (None, 0)
    assert always.why.startswith("its window stays open for 8 days and more: ")

    def gaps(at: datetime) -> int | None:
        return None if at.hour == 9 and at.day % 7 else 1

    found = recommend(endpoint("0 9 * * *"), needed(gaps), NOW, TERMS)
    assert (found.pods, found.why) == (0, "4 of its past windows are known, at least 5 are needed")


def test_windows_are_compared_on_the_endpoint_s_own_clock() -> None:
    """The clocks change on 29 March: nine in Berlin is an hour earlier in UTC, and the forecast is still nine's."""
    local = recommend(
        endpoint("0 9,20 * * *", zone="Europe/Berlin"), needed(lambda at: 5 if at.hour < 9 else 1), NOW, TERMS
    )
    assert local.window is not None
    assert local.window.ready_by == datetime(2026, 3, 30, 6, 55, tzinfo=UTC)
    assert local.p95_pods == 5


@pytest.mark.parametrize("hour", [0, 5, 9, 13, 20])
@pytest.mark.parametrize("cron", ["0 8-17 * * *", "0 * * * MON-FRI"])
def test_a_window_of_many_starts_is_judged_whole_at_any_hour_of_the_day(cron: str, hour: int) -> None:
    def late(at: datetime) -> int:
        return 8 if 14 <= at.hour < 18 and at.weekday() < 5 else 0

    days, now = 42, NOW + timedelta(hours=hour)
    first = slot_of(now) - days * DAY_SLOTS
    pods = [late(slot_start(first + n)) for n in range(days * DAY_SLOTS)]
    found = recommend(endpoint(cron), Needed(first=first, pods=pods), now, Terms(cold_seconds=600, worth=1000))
    assert found.windows in ((41, 42) if cron == "0 8-17 * * *" else (5,))
    assert (found.p95_pods, found.pods) == (8, 8)


def test_no_window_of_a_dense_schedule_is_left_out() -> None:
    dense = replace(endpoint("*/5 * * * *"), window=timedelta(minutes=1), lead=timedelta())
    found = recommend(dense, needed(lambda at: 1, days=2), NOW, TERMS)
    assert (found.windows, found.pods) == (2 * 288 - 2, 1), "of the first two nobody knows what ran before it"


def peaks(counts: list[int]) -> list[Peak]:
    return [Peak(start=BEGIN + timedelta(days=n, hours=9), pods=pods) for n, pods in enumerate(counts)]


@pytest.mark.parametrize("seed", range(3))
def test_p95_covers_as_many_as_it_says_in_steady_and_in_drifting_traffic(seed: int) -> None:
    random = np.random.default_rng(seed)
    for means in (np.full(500, 6.0), np.linspace(2, 20, 500)):
        counts = [int(n) for n in random.poisson(means)]
        assert 0.93 <= foretold(peaks(counts), BEGIN + timedelta(days=500, hours=9)).covered <= 0.985


def test_a_margin_is_no_larger_than_past_windows_ask_for() -> None:
    assert foretold(peaks([4] * 30), BEGIN + timedelta(days=30, hours=9)).pods == 4
    assert foretold(peaks([0] * 30), BEGIN + timedelta(days=30, hours=9)).pods == 0
    assert foretold([], BEGIN).pods == 0
