"""A history as text: a line for each day, a mark for each half hour of the wall clock. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from agent.demand.history import DAY_SLOTS, SLOT_SECONDS, Track, slot_of, slot_start

CELL_MINUTES = 30
CELLS = 24 * 60 // CELL_MINUTES
MARKS = "·░▒█"  # idle, active in one, two, all three of the slots
UNKNOWN = "?"
ABSENT = " "  # later than now, or skipped by a change of the clock


def heat_map(track: Track, now: datetime, zone: str, days: int) -> Iterator[str]:
    """Yield the lines: the hours, then the `days` days that end with today on the clock of `zone`, then what the marks mean."""
    cells = _cells(track, now, zone, days)
    today = now.astimezone(ZoneInfo(zone)).date()
    hours = "".join(f"{hour:02d}".ljust(3 * 60 // CELL_MINUTES) for hour in range(0, 24, 3))
    yield f"{'':15}{hours}".rstrip()
    for day in (today - timedelta(days=n) for n in reversed(range(days))):
        line = "".join(_mark(cells.get((day, cell), [])) for cell in range(CELLS))
        yield f"{day:%a %Y-%m-%d} {line}".rstrip()
    yield f"{'':15}{MARKS[0]} idle   {MARKS[1:]} active, in part or all of a half hour   {UNKNOWN} unknown"


def day_states(track: Track, now: datetime, days: int) -> Iterator[tuple[str, str]]:
    """Yield each UTC day's date and its slots in order: 1 active, 0 idle, ? unknown."""
    words = {True: "1", False: "0", None: "?"}
    today = slot_of(now) // DAY_SLOTS
    for day in range(today - days + 1, today + 1):
        slots = range(day * DAY_SLOTS, (day + 1) * DAY_SLOTS)
        yield f"{slot_start(slots.start):%Y-%m-%d}", "".join(words[track.state(slot)] for slot in slots)


def _cells(track: Track, now: datetime, zone: str, days: int) -> dict[tuple[date, int], list[bool | None]]:
    """Return the states of the slots that begin in each half hour, up to the slot of `now`; a repeated hour counts twice."""
    cells: defaultdict[tuple[date, int], list[bool | None]] = defaultdict(list)
    clock, end = ZoneInfo(zone), slot_of(now) + 1
    for slot in range(end - (days + 1) * 24 * 3600 // SLOT_SECONDS, end):
        local = slot_start(slot).astimezone(clock)
        cells[local.date(), (local.hour * 60 + local.minute) // CELL_MINUTES].append(track.state(slot))
    return cells


def _mark(states: list[bool | None]) -> str:
    known = [state for state in states if state is not None]
    if not known:
        return UNKNOWN if states else ABSENT
    return MARKS[math.ceil(sum(known) / len(known) * (len(MARKS) - 1))]
