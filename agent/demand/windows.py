"""Declared schedules -> traffic windows of the coming 48 h, in UTC. Pure: `now` is an argument.

Wall-clock time and daylight saving, as cronsim does it after Debian's cron:
- an hour and minute that are both named (`30 2 * * *`) mean the wall clock. In spring, when 02:30 does not exist, the window
  starts at the first minute that does (03:00). In autumn, when 02:30 comes twice, it starts at the first one only.
- a minute or hour field that begins with `*` (`*/15 * * * *`) means elapsed time: skipped hours are skipped, repeated ones repeat.

So that an unchanged schedule gives an unchanged answer (a NodeWarmup is written only when it changes), both edges of what is
looked at move in steps of six hours, not with every second of `now`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim

from agent.core.assignment import Window, WindowSource
from agent.demand.endpoint import Endpoint, Schedule

HORIZON = timedelta(hours=48)
MAX_WINDOWS = 200
_STEP = timedelta(hours=6)
# Longer than any clock is set back: in a repeated hour a past start may show a later wall-clock time than now.
_FOLD = timedelta(hours=3)


def windows(endpoint: Endpoint, now: datetime, horizon: timedelta = HORIZON) -> tuple[Window, ...]:
    """Return the declared windows that have not ended at `now` and whose start is due within `horizon`.

    Each is ready by its start less the lead, and lasts until its start plus the window. Those that touch or overlap are one.
    Sorted, at most MAX_WINDOWS (the earliest); up to six hours beyond `horizon` may be included. An endless chain of
    overlapping windows is cut at both ends, between 6 and 12 hours before `now` or at the last start before that.
    """
    now = now.astimezone(UTC)
    last = _floor(now + horizon) + _STEP + endpoint.lead
    starts = {start for each in endpoint.schedule for start in _starts(each, endpoint, now, last)}
    merged = _merge((start - endpoint.lead, start + endpoint.window) for start in sorted(starts))
    open_or_ahead = [Window(ready_by=a, until=b, source=WindowSource.DECLARED) for a, b in merged if b > now]
    return tuple(open_or_ahead[:MAX_WINDOWS])


def _starts(schedule: Schedule, endpoint: Endpoint, now: datetime, last: datetime) -> list[datetime]:
    zone = ZoneInfo(schedule.zone)
    ahead = list(takewhile(lambda start: start <= last, _ticks(schedule.cron, now.astimezone(zone))))
    following = next((start for start in ahead if start > now), None)
    reach = min(now, following - endpoint.lead) if following else now
    back = _ticks(schedule.cron, (now + _FOLD).astimezone(zone), reverse=True)
    return [*ahead, *_chain(back, endpoint, now, reach)]


def _chain(back: Iterable[datetime], endpoint: Endpoint, now: datetime, reach: datetime) -> Iterator[datetime]:
    """Yield past starts, latest first, as long as each one's window reaches the one after it (the first: `reach`)."""
    origin = _floor(now) - _STEP
    for start in back:
        if start > now:
            continue
        if start + endpoint.window < reach:
            return
        yield start
        if start < origin:
            return
        reach = min(reach, start - endpoint.lead)


def _ticks(cron: str, origin: datetime, *, reverse: bool = False) -> Iterator[datetime]:
    """Yield starts after (before) `origin`, a local time, in UTC."""
    for tick in CronSim(cron, origin, reverse=reverse):
        yield tick.astimezone(UTC)


def _merge(spans: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    merged: list[tuple[datetime, datetime]] = []
    for begin, end in spans:
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def _floor(time: datetime) -> datetime:
    return time.replace(hour=time.hour // 6 * 6, minute=0, second=0, microsecond=0)
