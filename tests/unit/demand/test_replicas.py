from __future__ import annotations

from datetime import datetime

import numpy as np

from agent.demand.replicas import Replicas
from tests.unit.demand.traffic import START

SLOT_SECONDS = 1800  # two slots an hour


def replay(need: list[float | None]) -> list[float]:
    """Forecast every slot from the report two before; answer i is for the hour that begins with slot i + 2."""
    forecast, at = Replicas(10.0, SLOT_SECONDS), START
    return [forecast.forecast(_when(at, i), None if each is None else each * 10) for i, each in enumerate(need)]


def _when(start: datetime, slot: int) -> datetime:
    return start.fromtimestamp(start.timestamp() + slot * SLOT_SECONDS, tz=start.tzinfo)


def days(count: int, seed: int = 0, noise: float = 0.15) -> list[float]:
    """A quiet night of two replicas, a steep morning, some twelve replicas by day."""
    random = np.random.default_rng(seed)
    shape = [2.0 if slot < 18 else 12.0 if slot < 40 else 4.0 for slot in range(48)]
    return [float(level * random.lognormal(0, noise)) for _ in range(count) for level in shape]


def covered(need: list[float], told: list[float], first: int) -> tuple[float, float]:
    """Return the share of hours covered and replicas held for one needed, from slot `first` on."""
    slots = range(first, len(need) - 4)
    peaks = [max(np.ceil(need[i + 2]), np.ceil(need[i + 3])) for i in slots]
    held = [np.ceil(told[i]) for i in slots]
    return float(np.mean([h >= p for h, p in zip(held, peaks, strict=True)])), float(sum(held) / sum(peaks))


def test_95_of_100_hours_are_covered_and_little_more_is_held() -> None:
    need = days(60)
    share, cost = covered(need, replay([*need]), 14 * 48)
    assert share >= 0.93
    assert cost < 1.45


def test_the_morning_is_foreseen_before_it_comes() -> None:
    told = replay([*days(21)])
    before_the_rise = [
        told[day * 48 + 16] for day in range(14, 21)
    ]  # for the hour from slot 18, told by the night's demand alone
    assert min(before_the_rise) >= 10


def test_a_doubled_demand_is_covered_again_within_days() -> None:
    need = [*days(28), *(2 * each for each in days(28, seed=1))]
    share, _ = covered(need, replay([*need]), 35 * 48)
    assert share >= 0.92


def test_unknown_slots_are_not_taken_for_no_demand() -> None:
    need: list[float | None] = [*days(21)]
    need[20 * 48 + 20 : 20 * 48 + 26] = [None] * 6
    assert replay(need)[20 * 48 + 25] >= 10


def test_a_series_without_demand_needs_one_replica() -> None:
    assert replay([0.0] * (10 * 48))[-1] <= 1
