"""Holidays and one-off events, and which endpoints they concern. Pure.

A holiday softens the windows that start on it (`agent.demand.windows`), an event is a window more. Days and times without a zone
are those of the endpoint's wall clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatchcase
from zoneinfo import ZoneInfo

from agent.core.errors import Invalid, cut
from agent.core.refs import EndpointKey
from agent.core.units import parse_duration

MAX_EVENT = timedelta(days=31)
_MAX_LINES = 5000
_FIRST_YEAR, _LAST_YEAR = 2000, 9000  # clear of the ends of the calendar, where zones and leads would leave it
_DAY = re.compile(r"(?:(\d{4})-)?(\d{2})-(\d{2})")
_KEYS = ("endpoints", "holidays", "events")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalendarEvent:
    """Traffic that comes once: from `begin` (aware, or naive for the endpoint's wall clock) for `length`."""

    begin: datetime
    length: timedelta
    name: str = ""

    def begins(self, zone: ZoneInfo) -> datetime:
        """Return the instant (UTC, whole seconds) it begins for an endpoint of that zone; a time a clock skips is taken after the gap."""
        begin = self.begin if self.begin.tzinfo else self.begin.replace(tzinfo=zone)
        return begin.astimezone(UTC).replace(microsecond=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """One calendar, spelled out for the days around now. `endpoints` are patterns of namespace/name; none: all."""

    name: str = ""
    endpoints: tuple[str, ...] = ()
    holidays: Mapping[date, str] = field(default_factory=dict)
    events: tuple[CalendarEvent, ...] = ()

    def concerns(self, key: EndpointKey) -> bool:
        """Say whether an endpoint follows this calendar."""
        path = f"{key.namespace}/{key.name}"
        return not self.endpoints or any(fnmatchcase(path, pattern) for pattern in self.endpoints)


@dataclass(frozen=True, slots=True, kw_only=True)
class Almanac:
    """All calendars of the fleet."""

    calendars: tuple[Calendar, ...] = ()

    def holiday(self, key: EndpointKey, day: date) -> str:
        """Return the name of the holiday that this day is for an endpoint, "" if it is none."""
        found = (c.holidays[day] for c in self.calendars if day in c.holidays and c.concerns(key))
        return next(found, "")

    def events(self, key: EndpointKey) -> Iterator[CalendarEvent]:
        """Yield the events that concern an endpoint."""
        for calendar in self.calendars:
            if calendar.events and calendar.concerns(key):
                yield from calendar.events


@dataclass(frozen=True, slots=True, kw_only=True)
class CalendarReading:
    """A calendar and what is wrong with its source; what is right in it holds all the same."""

    calendar: Calendar
    problems: tuple[str, ...] = ()


def read_calendar(
    name: str, data: Mapping[str, str], around: date, spent: Callable[[], float] = lambda: 0.0
) -> CalendarReading:
    """Read a ConfigMap's data: `endpoints`, `holidays`, `events`, and iCal texts under keys that end in `.ics`.

    `holidays` has lines `2026-12-25 NAME`, or `12-25 NAME` for every year; `events` lines `2026-11-27T08:00 12h NAME`, where the
    time may carry an offset. Recurring entries are spelled out from MAX_EVENT before `around` until ten days after it. `spent` tells
    seconds of CPU (`time.thread_time`), for an iCal rule can take any number of them.
    """
    first, last = around - MAX_EVENT - timedelta(days=1), around + timedelta(days=10)
    problems: list[str] = []
    holidays: dict[date, str] = {}
    events: list[CalendarEvent] = []
    for number, line in _lines(data, "holidays", problems):
        try:
            holidays |= dict.fromkeys(_days(line.split()[0], range(first.year, last.year + 1)), _name(line, 1))
        except (Invalid, ValueError) as error:
            problems.append(f"holidays, line {number}: {_why(error, line)}, write 2026-12-25 NAME, or 12-25 NAME")
    for number, line in _lines(data, "events", problems):
        try:
            events.append(_event(line))
        except (Invalid, ValueError) as error:
            problems.append(f"events, line {number}: {_why(error, line)}, write 2026-11-27T08:00 12h NAME")
    for key in sorted(data):
        if key.endswith(".ics"):
            from agent.demand.ical import read_ical

            found = read_ical(data[key], first, last, spent)
            holidays, events = {**found.holidays, **holidays}, [*events, *found.events]
            problems += [f"{cut(key, 60)}: {problem}" for problem in found.problems]
        elif key not in _KEYS:
            problems.append(f"{cut(key, 60)}: unknown, a calendar has {', '.join(_KEYS)} and NAME.ics")
    endpoints = tuple(data.get("endpoints", "").replace(",", " ").split())
    problems += [f"endpoints: {cut(p, 80)!r} is no namespace/name pattern" for p in endpoints if p.count("/") != 1]
    calendar = Calendar(name=name, endpoints=endpoints, holidays=holidays, events=tuple(events))
    return CalendarReading(calendar=calendar, problems=tuple(problems))


def _lines(data: Mapping[str, str], key: str, problems: list[str]) -> Iterator[tuple[int, str]]:
    lines = data.get(key, "").splitlines()
    if len(lines) > _MAX_LINES:
        problems.append(f"{key}: only the first {_MAX_LINES} of {len(lines)} lines are read")
    for number, line in enumerate(lines[:_MAX_LINES], 1):
        if text := line.partition("#")[0].strip():
            yield number, text


def _days(text: str, years: Sequence[int]) -> Iterator[date]:
    found = _DAY.fullmatch(text)
    if not found:
        raise Invalid(f"{cut(text, 40)!r} is no day")
    month, day = int(found[2]), int(found[3])
    if found[1]:
        yield date(int(found[1]), month, day)
        return
    date(2024, month, day)  # a leap year: the 29th of February is a day, in some years
    for year in years:
        if (month, day) != (2, 29) or year % 4 == 0:
            yield date(year, month, day)


def _event(line: str) -> CalendarEvent:
    if len(words := line.split()) < 2:
        raise Invalid(f"{cut(line, 60)!r} has no length")
    begin, length = datetime.fromisoformat(words[0]), parse_duration(words[1])
    if not _FIRST_YEAR <= begin.year <= _LAST_YEAR:
        raise Invalid(f"{cut(words[0], 40)!r} is in no year to plan for")
    if not timedelta(0) < length <= MAX_EVENT:
        raise Invalid(f"{cut(words[1], 40)!r} is not between 1s and {MAX_EVENT.days} days")
    return CalendarEvent(begin=begin, length=length, name=_name(line, 2))


def _name(line: str, words: int) -> str:
    return cut(" ".join(line.split()[words:]), 80) or "unnamed"


def _why(error: Exception, line: str) -> str:
    return str(error) if isinstance(error, Invalid) else f"{cut(line, 60)!r} has a bad date or time"
