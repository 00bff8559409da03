"""When an idle endpoint is used next: the hazard rolled forward through silence. Pure.

The further future is looked at in coarser steps: ten minutes for six hours, then half hours whose hazard holds for their three slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from agent.demand.activity import NEVER, RETURN_AFTER
from agent.demand.arrays import Flags, Floats
from agent.demand.features import look
from agent.demand.forecast import Forecast
from agent.demand.price import scores
from agent.demand.wall import SLOT

HORIZON = timedelta(hours=48)
_FINE = 36  # slots
_COARSE = 3  # slots
_SLOT_SECONDS = int(SLOT.total_seconds())
QUANTILES = (0.1, 0.5, 0.9)
_STILL_IDLE = 0.1  # chance: who is less likely to be so is asked again when it is seen what came


@dataclass(frozen=True, slots=True, kw_only=True)
class NextUse:
    """Starts of the slots by which the next use has come with chances of 10, 50 and 90 %; None if not within the horizon."""

    p10: datetime | None
    p50: datetime | None
    p90: datetime | None


def next_use(forecast: Forecast, at: datetime, horizon: timedelta = HORIZON) -> Mapping[str, NextUse]:
    """Return for every endpoint seen before when it is used next, for the slot at `at` that is two after the newest report."""
    steps = _steps(horizon // SLOT)
    used = _used_by_then(forecast, at, steps)
    starts = [at + slot * SLOT for slot, _ in steps]
    found = {}
    for row, site in enumerate(forecast.memory.sites):
        if forecast.memory.age[row] < NEVER:
            p10, p50, p90 = (_first(used[:, row] >= quantile, starts) for quantile in QUANTILES)
            found[site.name] = NextUse(p10=p10, p50=p50, p90=p90)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A stretch of the future from `at` on: who is worth being warm in it, and with which chance each is used if not before."""

    at: datetime
    worth: Flags
    chance: Floats


def ahead(forecast: Forecast, at: datetime, until: datetime) -> Iterator[Step]:
    """Yield the steps from `at` on, which is two slots after the newest report, those of half an hour on half hours in UTC.

    What is worth it is so by the first budget's price, and up to a use that is nearly certain: what is said of a step assumes that none
    came before it.
    """
    seen = forecast.memory.age < NEVER
    idle = np.ones(len(seen))  # chance of no use before the step
    for slot, length in _steps((until - at) // SLOT, int(at.timestamp()) // _SLOT_SECONDS):
        view = look(forecast.memory, at + slot * SLOT, silent=slot)
        hazard = forecast.hazard(view)
        worth = seen & (scores(hazard, view.idle) >= forecast.prices[0].value) & (idle >= _STILL_IDLE)
        quiet = (1 - hazard) ** length
        yield Step(at=view.at, worth=worth, chance=1 - quiet)
        idle = idle * np.where(view.idle >= RETURN_AFTER, quiet, 1)


def _used_by_then(forecast: Forecast, at: datetime, steps: list[tuple[int, int]]) -> Floats:
    """Return the chance of a use up to the end of each step [step, endpoint]."""
    quiet = np.zeros(len(forecast.memory.sites))  # logarithm of the chance of no use so far
    chances = []
    for slot, length in steps:
        view = look(forecast.memory, at + slot * SLOT, silent=slot)
        quiet = quiet + length * np.log1p(-np.clip(forecast.hazard(view), 0, 1 - 1e-9))
        chances.append(1 - np.exp(quiet))
    used: Floats = np.array(chances).reshape(len(steps), -1)
    return used


def _steps(slots: int, number: int = 0) -> list[tuple[int, int]]:
    """Return first slot and length of every step; `number` is that of the first slot, if coarse ones are to begin at multiples."""
    fine = _FINE + -(number + _FINE) % _COARSE
    return [(slot, 1) for slot in range(min(slots, fine))] + [(slot, _COARSE) for slot in range(fine, slots, _COARSE)]


def _first(reached: np.ndarray[tuple[int], np.dtype[np.bool_]], starts: list[datetime]) -> datetime | None:
    return starts[int(reached.argmax())] if reached.any() else None
