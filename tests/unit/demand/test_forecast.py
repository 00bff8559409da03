from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from agent.core.errors import Invalid
from agent.demand import replay
from agent.demand.activity import REPORTED_LATE, Activity, Site
from agent.demand.features import FEATURES, NAMES, look
from agent.demand.forecast import Forecast
from agent.demand.wall import SLOT
from tests.unit.demand.traffic import START, Active, Recorded, every, never, office, play, sites, slots


def fleet(count: int) -> list[Active]:
    """Offices that open at different hours, some robots, and endpoints that are never used."""
    return [(office(opens=7 + i % 4, jitter_seed=i), every(1 + i // 3 % 2, 20), never)[i % 3] for i in range(count)]


@dataclass(frozen=True)
class Played:
    forecast: Forecast
    traffic: list[Active]
    decided: list[frozenset[str]]
    times: list[datetime]


@pytest.fixture(scope="module")
def learned() -> Played:
    forecast, traffic, times = Forecast(sites(12), [0.25, 0.05]), fleet(12), slots(11)
    return Played(forecast, traffic, play(forecast, traffic, times), times)


@pytest.fixture(scope="module")
def short() -> Played:
    """Long enough for two fits."""
    forecast, traffic, times = Forecast(sites(6), [0.2]), fleet(6), slots(5.3)
    return Played(forecast, traffic, play(forecast, traffic, times), times)


def test_a_model_is_fitted_and_meets_most_returns_within_the_budget(learned: Played) -> None:
    # A whole week is counted: the price spends more on working days than on days off.
    assert learned.forecast.model is not None
    met = missed = wasted = idle = 0
    for row, active in enumerate(learned.traffic):
        happened = [active(at) for at in learned.times]
        for i in range(4 * 144, len(learned.times) - 2):
            quiet = not any(happened[i - 3 : i])
            warm = f"e{row}" in learned.decided[i - 2]
            met += happened[i] and quiet and warm
            missed += happened[i] and quiet and not warm
            counts = any(happened[:i]) and not happened[i]
            idle, wasted = idle + counts, wasted + (counts and warm)
    assert met / (met + missed) > 0.9, "regular offices and robots are easy"
    assert wasted / idle < 0.3


def test_a_tier_of_a_smaller_budget_is_a_part_of_the_larger_one(learned: Played) -> None:
    large, small = learned.forecast.decide(learned.times[-1] + REPORTED_LATE * SLOT)
    assert small <= large
    assert learned.forecast.prices[1].value > learned.forecast.prices[0].value


def test_an_endpoint_never_used_is_never_warm(learned: Played) -> None:
    assert not any("e2" in names for names in learned.decided)


def test_the_same_traffic_gives_the_same_decisions(short: Played) -> None:
    again = Forecast(sites(6), [0.2])
    assert play(again, short.traffic, short.times) == short.decided
    assert again.model is not None
    assert short.forecast.model is not None
    assert np.array_equal(again.model.weights, short.forecast.model.weights)


def test_the_order_of_the_endpoints_changes_nothing(short: Played) -> None:
    backwards = play(Forecast(sites(6)[::-1], [0.2]), short.traffic[::-1], short.times)
    differ = sum(len(a ^ b) for a, b in zip(short.decided, backwards, strict=True))
    assert differ <= 0.02 * sum(map(len, short.decided)), "sums of floats in another order may tip a tie"


def test_no_decision_depends_on_what_is_not_reported_yet(short: Played) -> None:
    cut = 5 * 144
    changed = [lambda at, a=a: a(at) if at < short.times[cut] else not a(at) for a in short.traffic]
    other = play(Forecast(sites(6), [0.2]), changed, short.times)
    assert short.decided[:cut] == other[:cut]
    assert short.decided[cut:] != other[cut:]


def test_before_there_is_training_data_the_closed_form_decides() -> None:
    forecast, times = Forecast(sites(3), [0.3]), slots(7.4)
    decided = play(forecast, [office(), office(jitter_seed=1), every(4)], times, refit=False)
    assert forecast.model is None
    nine = times.index(START + timedelta(days=7, hours=9)) - 2
    assert {"e0", "e1"} <= decided[nine]


def test_a_fit_is_refused_without_returns_to_learn_from() -> None:
    forecast = Forecast(sites(2), [0.2])
    play(forecast, [never, never], slots(2.2))
    assert not forecast.refit()
    assert forecast.model is None


def test_a_window_that_moves_is_found_within_a_day() -> None:
    change = START + timedelta(days=9)

    def moved(at: datetime) -> bool:
        return office(opens=9)(at) if at < change else office(opens=6, closes=14)(at)

    traffic: list[Active] = [moved, *(office(opens=8 + i % 3, jitter_seed=i) for i in range(1, 8))]
    times = slots(10.3)
    decided = play(Forecast(sites(8), [0.3]), traffic, times)
    second_morning = times.index(change + timedelta(days=1, hours=6))
    assert "e0" in decided[second_morning - 2]


def test_gaps_are_unknown_and_teach_nothing() -> None:
    memory, at = Activity(sites(2)), START
    quiet, busy = np.array([False, False]), np.array([True, True])
    for _ in range(10):
        memory.observe(at, busy)
        at += SLOT
    before = (memory.base.copy(), memory.slow.counts.copy(), memory.by_age.copy())
    for _ in range(20):
        assert memory.observe(at, None) is None
        at += SLOT
    assert all(
        np.array_equal(a, b) for a, b in zip(before, (memory.base, memory.slow.counts, memory.by_age), strict=True)
    )
    for _ in range(5):
        outcome = memory.observe(at, quiet)
        at += SLOT
        assert outcome is not None
        assert not outcome.at_risk.any(), "who knows when it was used last"
    memory.observe(at, busy)
    for _ in range(4):
        outcome = memory.observe(at, quiet)
    assert outcome is not None
    assert outcome.at_risk.all()


def test_what_is_unknown_of_one_endpoint_teaches_nothing_about_it_alone() -> None:
    """The second endpoint has the traffic of the first, but is unknown by night; it never counts as idle then."""
    forecast, times = Forecast(sites(2), [0.3]), slots(3)
    for at in times:
        night = at.hour < 6
        who = {"e0", "e1"} if every(4)(at) else set()
        forecast.observe(at, who, {"e1"} if night else ())
    memory = forecast.memory
    assert memory.base[0, 1] > 1.2 * memory.base[1, 1], "slots at risk"
    assert memory.slow.counts[: 6 * 6, 1].sum() == 0, "nothing is learned of its nights"
    assert memory.slow.counts[: 6 * 6, 0].sum() > 0
    assert memory.share_chances[1, 4] < memory.share_chances[0, 4]
    assert memory.certain.tolist() == [True, True]


def test_slots_left_out_are_unknown_and_older_ones_refused() -> None:
    forecast = Forecast(sites(1), [0.2])
    forecast.observe(START, {"e0"})
    forecast.observe(START + 5 * SLOT, set())
    assert forecast.memory.slots == 6
    assert forecast.memory.ring_known[:6, 0].tolist() == [True, False, False, False, False, True]
    with pytest.raises(Invalid, match="tell slots in order"):
        forecast.observe(START, set())


def test_a_new_endpoint_borrows_from_its_group() -> None:
    memory, busy = Activity(sites(4)), office()
    for at in slots(14):
        memory.observe(at, np.full(4, busy(at)))
    memory.resettle([*sites(5), *sites(6, group="others")[5:]])
    wednesday = START + timedelta(days=16, hours=9)
    for at in slots(2.375, START + timedelta(days=14))[:-2]:
        memory.observe(at, np.array([busy(at)] * 4 + [False, False]))
    columns = look(memory, wednesday).columns
    group_time, group_base = columns[:, NAMES.index("group_time")], columns[:, NAMES.index("group_base")]
    assert group_time[4] == group_time[0] > 1, "a colleague of the four: it is their time of the day"
    assert group_time[4] + group_base[4] > group_time[5] + group_base[5] + 0.5
    hazard = columns[:, NAMES.index("hazard_day")]
    assert hazard[4] > hazard[5] + 0.5


def test_the_forecast_goes_on_when_endpoints_come_and_go() -> None:
    forecast, traffic = Forecast(sites(4), [0.3]), [office(jitter_seed=i) for i in range(4)]
    play(forecast, traffic, slots(4.4))
    forecast.resettle([*sites(6)[4:], *sites(4)[1:3]])
    decided = play(forecast, [never, never, *traffic[1:3]], slots(4, START + timedelta(days=4.4)))
    assert {"e1", "e2"} <= set().union(*decided)
    assert not {"e0", "e3", "e4", "e5"} & set().union(*decided), "they have left, or were never used"


def test_leaving_endpoints_are_forgotten_and_the_others_keep_their_memory() -> None:
    memory = Activity(sites(3))
    for at in slots(2):
        memory.observe(at, np.array([office()(at), every(4)(at), every(6)(at)]))
    age, base = memory.age.copy(), memory.base.copy()
    memory.resettle([memory.sites[2], memory.sites[0]])
    assert memory.age.tolist() == [age[2], age[0]]
    assert np.array_equal(memory.base, base[[2, 0]])


def test_endpoints_keep_their_time_of_day_when_clocks_mix_and_places_change() -> None:
    zones = ["Asia/Tokyo", "UTC", "America/New_York", "UTC", "Asia/Tokyo"]
    mixed = [Site(name=f"e{row}", timezone=zone, groups=("team",)) for row, zone in enumerate(zones)]
    memory, traffic = Activity(mixed), [office(jitter_seed=row) for row in range(5)]
    for at in slots(9.5):
        memory.observe(at, np.array([active(at) for active in traffic]))
    at += REPORTED_LATE * SLOT
    before = look(memory, at).columns
    order = [4, 2, 1]
    memory.resettle([mixed[row] for row in order])
    own = [i for i, name in enumerate(NAMES) if name.startswith(("active_", "rise", "lag_", "yesterday", "last_week"))]
    assert np.array_equal(look(memory, at).columns[:, own], before[order][:, own])
    assert len(np.unique(before[:, own], axis=0)) == 5, "all are told apart"


def test_every_feature_belongs_to_one_idea_and_can_be_left_out() -> None:
    assert len(set(NAMES)) == len(NAMES)
    without = Forecast(sites(6), [0.2], without=["rhythm", "period"])
    play(without, fleet(6), slots(5.1), refit=False)
    assert without.refit()
    assert without.model is not None
    left_out = len(FEATURES["rhythm"]) + len(FEATURES["period"])
    assert without.model.used.sum() == len(NAMES) - left_out


def test_slots_of_another_length_are_refused() -> None:
    with pytest.raises(Invalid, match="slots of 300 s cannot be replayed"):
        replay.policy([Recorded("a", "UTC", "g")], 300, 0.2)


def test_times_are_wall_clock_times() -> None:
    summer = datetime(2026, 7, 1, 7, tzinfo=UTC)
    memory = Activity(sites(1, zone="Europe/Berlin"))
    assert memory.clock.at(summer).slot.tolist() == [9 * 6]
    assert memory.clock.at(summer - timedelta(days=180)).slot.tolist() == [8 * 6]
