"""Declared schedules -> traffic windows of the coming 48 h, in UTC. Pure: `now` is an argument.

Wall-clock time and daylight saving, as cronsim does it after Debian's cron:
- an hour and minute that are both named (`30 2 * * *`) mean the wall clock. In spring, when 02:30 does not exist, the window
  starts at the first minute that does (03:00). In autumn, when 02:30 comes twice, it starts at the first one only.
- a minute or hour field that begins with `*` (`*/15 * * * *`) means elapsed time: skipped hours are skipped, repeated ones repeat.

So that an unchanged schedule gives an unchanged answer (a NodeWarmup is written only when it changes), both edges of what is
looked at move in steps of six hours, not with every second of `now`.

On a holiday of the endpoint's calendars a window stays, with less confidence: the fleet keeps it on fewer nodes
(`softened`). An event of its calendars is a window more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

from agent.core.assignment import Window, WindowSource
from agent.demand.calendar import Almanac
from agent.demand.endpoint import Endpoint, Schedule
from agent.demand.ticks import ticks

HORIZON = timedelta(hours=48)
MAX_WINDOWS = 200
SOFT = 50  # the confidence of a declared window on a holiday, in percent
NO_ALMANAC = Almanac()
_STEP = timedelta(hours=6)
# Longer than any clock is set back: in a repeated hour a past start may show a later wall-clock time than now.
_FOLD = timedelta(hours=3)


def windows(
    endpoint: Endpoint, now: datetime, horizon: timedelta = HORIZON, almanac: Almanac = NO_ALMANAC
) -> tuple[Window, ...]:
    """Return the declared windows that have not ended at `now` and whose start is due within `horizon`.

    Each is ready by its start less the lead, and lasts until its start plus the window. Those that touch or overlap are one; a
    softened one is cut where it meets another. Sorted, at most MAX_WINDOWS (the earliest); up to six hours beyond `horizon` may
    be included. An endless chain of overlapping windows is cut at both ends, between 6 and 12 hours before `now` or at the last
    start before that.
    """
    now = now.astimezone(UTC)
    last = _floor(now + horizon) + _STEP + endpoint.lead
    starts = {start for each in endpoint.schedule for start in _starts(each, endpoint, now, last)}
    soft = {start for start in starts if holiday(endpoint, start, almanac)} if almanac.calendars else set()
    spans = [(start - endpoint.lead, start + endpoint.window) for start in starts - soft]
    spans += [span for span in _events(endpoint, almanac) if span[0] <= last - endpoint.lead]
    firm = _merge(sorted(spans))
    softer = _outside(_merge(sorted((s - endpoint.lead, s + endpoint.window) for s in soft)), firm)
    found = [Window(ready_by=a, until=b, source=WindowSource.DECLARED) for a, b in firm if b > now]
    found += [Window(ready_by=a, until=b, source=WindowSource.DECLARED, confidence=SOFT) for a, b in softer if b > now]
    return tuple(sorted(found)[:MAX_WINDOWS])


def softened(window: Window) -> bool:
    """Say whether a window was declared, and softened because it starts on a holiday."""
    return window.source is WindowSource.DECLARED and window.confidence < 100


def holiday(endpoint: Endpoint, at: datetime, almanac: Almanac) -> str:
    """Return the name of the holiday an instant falls on, on the endpoint's wall clock, "" if it is none."""
    return almanac.holiday(endpoint.key, at.astimezone(ZoneInfo(endpoint.zone)).date())


def _events(endpoint: Endpoint, almanac: Almanac) -> Iterator[tuple[datetime, datetime]]:
    for event in almanac.events(endpoint.key):
        begin = event.begins(ZoneInfo(endpoint.zone))
        yield begin - endpoint.lead, begin + event.length


def _starts(schedule: Schedule, endpoint: Endpoint, now: datetime, last: datetime) -> list[datetime]:
    zone = ZoneInfo(schedule.zone)
    ahead = list(takewhile(lambda start: start <= last, ticks(schedule.cron, zone, now)))
    following = next((start for start in ahead if start > now), None)
    reach = min(now, following - endpoint.lead) if following else now
    back = ticks(schedule.cron, zone, now + _FOLD, reverse=True)
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


def _merge(spans: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    merged: list[tuple[datetime, datetime]] = []
    for begin, end in spans:
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def _outside(
    spans: Iterable[tuple[datetime, datetime]], firm: Iterable[tuple[datetime, datetime]]
) -> Iterator[tuple[datetime, datetime]]:
    """Yield the parts of `spans` that no span of `firm` covers."""
    firm = list(firm)
    for begin, end in spans:
        for a, b in firm:
            if b <= begin or a >= end:
                continue
            if a > begin:
                yield begin, a
            begin = b  # noqa: PLW2901 (what is left of the span)
        if begin < end:
            yield begin, end


def _floor(time: datetime) -> datetime:
    return time.replace(hour=time.hour // 6 * 6, minute=0, second=0, microsecond=0)
