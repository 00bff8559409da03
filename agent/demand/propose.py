"""Annotations that past traffic suggests: schedules worth declaring, declared too late or too early, or never used. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import numpy as np

from agent.core.names import PREFIX
from agent.demand.arrays import Flags
from agent.demand.price import LONG_IDLE
from agent.demand.recording import Recorded, Recording, idle_before
from agent.demand.ticks import ticks
from agent.demand.wall import DAY_SLOTS, SLOT_SECONDS

_LEAST_DAYS = 5
_REGULAR = 60  # minutes between the earliest and the latest tenth of the mornings
_MOST = 0.6  # share of the working days that must begin so
_APART = 10  # minutes between declared and real that are worth a word
_WINDOW_SLOTS = 6  # an hour, the default `window`
_MAX_STARTS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What to write on an endpoint, and why; no annotations: remove the schedule."""

    endpoint: str
    annotations: dict[str, str]
    why: str


def proposals(recording: Recording) -> Iterator[Proposal]:
    """Yield what past traffic says against each endpoint's schedule, or for one where it has none."""
    before = idle_before(recording)
    for row, endpoint in enumerate(recording.endpoints):
        used, known = recording.active[row], recording.known_slots(row)
        mornings = _mornings(recording, endpoint, used & (before[row] >= LONG_IDLE) & recording.counted)
        starts = [
            start for start in sorted(_declared(recording, endpoint)) if known[_first_hour(recording, start)].all()
        ]
        if len(starts) >= _LEAST_DAYS and not _any_used(recording, used, starts):
            yield Proposal(
                endpoint=endpoint.name,
                annotations={},
                why=f"none of {len(starts)} declared windows saw a request within its first hour",
            )
        elif proposal := _regular(endpoint, _counted_days(recording, known), mornings, starts):
            yield proposal


def _mornings(recording: Recording, endpoint: Recorded, returns: Flags) -> list[int]:
    """Return in which minute of each working day the first use after four idle hours came."""
    zone, found = ZoneInfo(endpoint.timezone), dict[date, int]()
    for slot in np.flatnonzero(returns):
        local = recording.at(int(slot)).astimezone(zone)
        if local.weekday() < 5:
            found.setdefault(local.date(), _minute(local))
    return list(found.values())


def _declared(recording: Recording, endpoint: Recorded) -> Iterator[datetime]:
    """Yield the declared starts within the slots that count, on the endpoint's clock."""
    zone, slots = ZoneInfo(endpoint.timezone), np.flatnonzero(recording.counted)
    first, end = recording.at(int(slots[0])), recording.at(int(slots[-1]) + 1)
    for cron in endpoint.schedule:
        starts = takewhile(lambda at: at < end, ticks(cron, zone, first - timedelta(seconds=1)))
        yield from (start.astimezone(zone) for start in islice(starts, _MAX_STARTS))


def _first_hour(recording: Recording, start: datetime) -> slice:
    slot = int(start.timestamp() - recording.start) // SLOT_SECONDS
    return slice(slot, slot + _WINDOW_SLOTS)


def _any_used(recording: Recording, used: Flags, starts: Iterable[datetime]) -> bool:
    return any(used[_first_hour(recording, start)].any() for start in starts)


def _counted_days(recording: Recording, known: Flags) -> float:
    return float((recording.counted & known).sum()) / DAY_SLOTS


def _regular(endpoint: Recorded, days: float, mornings: list[int], starts: list[datetime]) -> Proposal | None:
    """Return a schedule where most working days of `days` began at much the same time, and not as declared."""
    if len(mornings) < max(_LEAST_DAYS, _MOST * days * 5 / 7):
        return None
    p10, p90 = (int(np.quantile(mornings, share)) for share in (0.1, 0.9))
    declared = _first_of_day(starts)
    if p90 - p10 > _REGULAR or (declared is not None and abs(p10 - declared) < _APART):
        return None
    annotations = {PREFIX + "schedule": f"{p10 % 60} {p10 // 60} * * MON-FRI", PREFIX + "timezone": endpoint.timezone}
    said = "" if declared is None else f"declared {_clock(declared)}, real P10 {_clock(p10)}: "
    why = f"{said}of {len(mornings)} working days the middle 80 % began between {_clock(p10)} and {_clock(p90)}"
    return Proposal(endpoint=endpoint.name, annotations=annotations, why=why)


def _first_of_day(starts: Iterable[datetime]) -> int | None:
    """Return the usual minute of the first declared start of a working day; None without any."""
    days: dict[date, int] = {}
    for start in starts:
        if start.weekday() < 5:
            days.setdefault(start.date(), _minute(start))
    return int(np.median(list(days.values()))) if days else None


def _minute(local: datetime) -> int:
    return local.hour * 60 + local.minute


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"
