"""Where a moment falls on the wall clocks of endpoints: slot of the day, weekday, working day or day off. Pure.

Demand follows people, and people follow the wall clock, so every table of the forecast is indexed by it. A day of a clock change
has 138 or 150 slots: in the repeated hour both passes add to the same cells, the skipped hour adds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from agent.demand.arrays import Ints

SLOT = timedelta(minutes=10)
SLOT_SECONDS = 600
DAY_SLOTS = 144
WEEK_SLOTS = 7 * DAY_SLOTS

DayOff = Callable[[str, date], bool]
"""Whether a date is a day off in a time zone."""


def weekend(zone: str, day: date) -> bool:
    """Return whether the day is a Saturday or a Sunday."""
    del zone
    return day.weekday() >= 5


@dataclass(frozen=True, slots=True, kw_only=True)
class WallTime:
    """One moment as each endpoint's clock shows it; one row for each endpoint."""

    slot: Ints  # 0..143
    weekday: Ints  # Monday is 0
    off: Ints  # 1 on a day off


class WallClock:
    """The clocks of some endpoints, in their order."""

    def __init__(self, zones: Sequence[str], day_off: DayOff = weekend) -> None:
        self._names = sorted(set(zones))
        self._zones = [ZoneInfo(name) for name in self._names]
        self.zone_of_row = np.array([self._names.index(zone) for zone in zones], np.int64)
        self._day_off = day_off

    def at(self, moment: datetime) -> WallTime:
        """Return what the clocks show at `moment`, which must be aware."""
        local = [moment.astimezone(zone) for zone in self._zones]
        slot = np.array([(each.hour * 60 + each.minute) // 10 for each in local], np.int64)
        weekday = np.array([each.weekday() for each in local], np.int64)
        off = [int(self._day_off(name, each.date())) for name, each in zip(self._names, local, strict=True)]
        row = self.zone_of_row
        return WallTime(slot=slot[row], weekday=weekday[row], off=np.array(off, np.int64)[row])
