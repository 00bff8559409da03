"""Made-up traffic whose laws are known, for the tests of the forecast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from agent.demand.activity import REPORTED_LATE, Site
from agent.demand.forecast import Forecast
from agent.demand.wall import SLOT

START = datetime(2026, 3, 2, tzinfo=UTC)  # a Monday
Active = Callable[[datetime], bool]


@dataclass(frozen=True)
class Recorded:
    name: str
    timezone: str
    group: str


def office(zone: str = "UTC", opens: int = 9, closes: int = 17, jitter_seed: int = 0, share: float = 0.5) -> Active:
    """Active in about `share` of the slots of working hours; the first slot of a working day always is."""
    random = np.random.default_rng(jitter_seed)
    draws = random.random(200_000)

    def active(at: datetime) -> bool:
        local = at.astimezone(ZoneInfo(zone))
        if local.weekday() >= 5 or not opens <= local.hour < closes:
            return False
        first = local.hour == opens and local.minute < 10
        return first or bool(draws[int((at - START) / SLOT) % len(draws)] < share)

    return active


def every(hours: int, offset_minutes: int = 0) -> Active:
    """Active in one slot every so many hours."""
    return lambda at: int((at - START).total_seconds() // 60 - offset_minutes) % (hours * 60) == 0


def never(at: datetime) -> bool:
    del at
    return False


def slots(days: float, start: datetime = START) -> list[datetime]:
    return [start + i * SLOT for i in range(int(days * 144))]


def play(
    forecast: Forecast, traffic: Sequence[Active], times: Sequence[datetime], refit: bool = True
) -> list[frozenset[str]]:
    """Tell a forecast what happened slot by slot; return what it decided for the slot two after each, at its first budget."""
    decided = []
    names = [site.name for site in forecast.memory.sites]
    for at in times:
        forecast.observe(at, {name for name, active in zip(names, traffic, strict=True) if active(at)})
        ahead = at + REPORTED_LATE * SLOT
        if refit and forecast.refit_is_due(ahead):
            forecast.refit()
        decided.append(forecast.decide(ahead)[0])
    return decided


def sites(count: int, zone: str = "UTC", group: str = "team") -> list[Site]:
    return [Site(name=f"e{i}", timezone=zone, groups=(group,)) for i in range(count)]


def hours(count: float) -> timedelta:
    return timedelta(hours=count)
