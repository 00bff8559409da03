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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from heapq import merge
from itertools import takewhile
from zoneinfo import ZoneInfo

from agent.core.assignment import Window, WindowSource
from agent.demand.calendar import Almanac
from agent.demand.endpoint import Endpoint
from agent.demand.ticks import ticks

HORIZON = timedelta(hours=48)
MAX_WINDOWS = 200
SOFT = 50  # the confidence of a declared window on a holiday, in percent
NO_ALMANAC = Almanac()
Span = tuple[datetime, datetime]
_STEP = timedelta(hours=6)
_WEEK = timedelta(days=7)
_SHORTEST = timedelta(minutes=30)  # of what declared windows leave of a predicted one: a sliver is worth no download
_DENSE = 100  # starts in six hours
# Longer than any clock is set back: in a repeated hour a past start may show a later wall-clock time than now.
_FOLD = timedelta(hours=3)


def windows(
    endpoint: Endpoint, now: datetime, horizon: timedelta = HORIZON, almanac: Almanac = NO_ALMANAC
) -> tuple[Window, ...]:
    """Return the declared windows that have not ended at `now` and whose start is due within `horizon`.

    Each is ready by its start less the lead, and lasts until its start plus the window. Those that touch or overlap are one; a
    softened one is cut where it meets another. Sorted, at most MAX_WINDOWS (the earliest); up to six hours beyond `horizon` may
    be included. An endless chain of overlapping windows is cut at both ends: seven days before `now`, and where starts are so
    dense that these would be thousands, between 6 and 12 hours before it.
    """
    now, last = now.astimezone(UTC), _last(endpoint, now, horizon)
    events = list(_events(endpoint, almanac))
    starts = set(_starts(endpoint, now, last, events))
    soft = {start for start in starts if holiday(endpoint, start, almanac)} if almanac.calendars else set()
    spans = [(start - endpoint.lead, start + endpoint.window) for start in starts - soft]
    spans += [span for span in events if span[0] <= last - endpoint.lead]
    firm = _merge(sorted(spans))
    softer = _outside(_merge(sorted((s - endpoint.lead, s + endpoint.window) for s in soft)), firm)
    found = [Window(ready_by=a, until=b, source=WindowSource.DECLARED) for a, b in firm if b > now]
    found += [Window(ready_by=a, until=b, source=WindowSource.DECLARED, confidence=SOFT) for a, b in softer if b > now]
    return tuple(sorted(found)[:MAX_WINDOWS])


def softened_days(endpoint: Endpoint, found: Iterable[Window], now: datetime, almanac: Almanac) -> Mapping[date, str]:
    """Return the holidays that softened windows of `found` = windows(endpoint, now, …, almanac), on the endpoint's wall clock, by name."""
    soft = [window for window in found if softened(window)]
    if not soft:
        return {}
    zone, events = ZoneInfo(endpoint.zone), list(_events(endpoint, almanac))
    days = {}
    for start in sorted(set(_starts(endpoint, now.astimezone(UTC), _last(endpoint, now, HORIZON), events))):
        begin, end = start - endpoint.lead, start + endpoint.window
        if any(w.ready_by < end and begin < w.until for w in soft) and (name := holiday(endpoint, start, almanac)):
            days[start.astimezone(zone).date()] = name
    return days


def with_predicted(declared: tuple[Window, ...], predicted: Iterable[Window], now: datetime) -> tuple[Window, ...]:
    """Return declared windows and, where these leave half an hour or more, predicted ones; sorted, at most MAX_WINDOWS, declared ones first."""
    firm = _merge((w.ready_by, w.until) for w in declared)
    spans = ((w, a, b) for w in predicted for a, b in _outside([(w.ready_by, w.until)], firm))
    left = [replace(w, ready_by=a, until=b) for w, a, b in spans if b - a >= _SHORTEST]
    room = MAX_WINDOWS - len(declared)
    return tuple(sorted((*declared, *sorted(w for w in left if w.until > now)[:room])))


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


def _starts(endpoint: Endpoint, now: datetime, last: datetime, events: Sequence[Span]) -> Iterator[datetime]:
    """Yield the starts up to `last`, and the past ones of windows that have not ended or touch one that has not."""
    schedules = [(each.cron, ZoneInfo(each.zone)) for each in dict.fromkeys(endpoint.schedule)]
    ahead = [t for cron, zone in schedules for t in takewhile(lambda t: t <= last, ticks(cron, zone, now))]
    yield from ahead
    reach = min([now, *(start - endpoint.lead for start in ahead if start > now)])
    back = merge(*(ticks(cron, zone, now + _FOLD, reverse=True) for cron, zone in schedules), reverse=True)
    yield from _chain(back, endpoint, now, reach, events)


def _chain(
    back: Iterable[datetime], endpoint: Endpoint, now: datetime, reach: datetime, events: Sequence[Span]
) -> Iterator[datetime]:
    """Yield past starts, latest first, as long as each one's window reaches the one after it (the first: `reach`) or an event."""
    near, week, dense = _floor(now) - _STEP, _floor(now) - _WEEK, 0
    for start in back:
        if start > now:
            continue
        while earlier := [begin for begin, end in events if begin < reach <= end]:
            reach = min(earlier)
        if start + endpoint.window < reach:
            return
        yield start
        dense += near <= start < near + _STEP
        if start < week or (start < near and dense > _DENSE):
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


def _last(endpoint: Endpoint, now: datetime, horizon: timedelta) -> datetime:
    """Return the latest start that is looked at."""
    return _floor(now.astimezone(UTC) + horizon) + _STEP + endpoint.lead


def _floor(time: datetime) -> datetime:
    return time.replace(hour=time.hour // 6 * 6, minute=0, second=0, microsecond=0)
