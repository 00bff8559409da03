"""iCal text (RFC 5545) -> holidays and events. All-day entries are holidays, those with a time of day are events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import islice, takewhile
from typing import Any

from dateutil.rrule import rrulestr
from icalendar import Calendar as Ical

from agent.core.errors import Invalid, cut
from agent.demand.calendar import MAX_EVENT, CalendarEvent

_MAX_ENTRIES = 5000
_MAX_EVENTS = 1000  # of one text, in the days asked for
_MOST_SECONDS = 10.0  # of CPU, for one text: a rule that never comes true takes 4 s to search all years
_OLDEST = timedelta(days=366 * 100)  # an occurrence is found by counting from the first one
_RARE = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")  # what recurs more often is a schedule


@dataclass(slots=True)
class IcalReading:
    """What a text says of the days asked for, and what of it could not be read."""

    holidays: dict[date, str] = field(default_factory=dict)
    events: list[CalendarEvent] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_ical(text: str, first: date, last: date, spent: Callable[[], float]) -> IcalReading:
    """Read the entries that begin from `first` to `last`; one that cannot be read is a problem, never an exception.

    `spent` tells seconds of CPU: what takes too many is left out.
    """
    reading = IcalReading()
    try:
        entries = [e for c in Ical.from_ical(text, multiple=True) for e in c.walk("VEVENT")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        reading.problems.append(f"no iCal text: {cut(error, 120)}")
        return reading
    if len(entries) > _MAX_ENTRIES:
        reading.problems.append(f"only the first {_MAX_ENTRIES} of {len(entries)} entries are read")
    entries = entries[:_MAX_ENTRIES]
    moved: defaultdict[str, set[date]] = defaultdict(set)
    began = spent()
    # Those that replace an occurrence come first: what they replace must be known.
    for entry in sorted(entries, key=lambda e: "RECURRENCE-ID" not in e):
        name = cut(" ".join(str(entry.get("SUMMARY", "")).split()), 80) or "unnamed"
        if spent() - began > _MOST_SECONDS:
            reading.problems.append(
                f"entry {name!r} and what follows are not read: those before took too long to compute"
            )
            break
        try:
            _read(entry, name, moved[str(entry.get("UID"))], (first, last), reading)
        except (Invalid, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            reading.problems.append(f"entry {name!r}: {cut(error, 160)}")
    return reading


def _read(entry: Any, name: str, moved: set[date], span: tuple[date, date], reading: IcalReading) -> None:
    replaces = "RECURRENCE-ID" in entry
    if replaces:
        moved.add(_value(entry, "RECURRENCE-ID"))
    if str(entry.get("STATUS", "")).upper() == "CANCELLED":
        return
    begin, length = _value(entry, "DTSTART"), _length(entry)
    for at in _occurrences(entry, begin, set() if replaces else moved, span):
        if isinstance(at, datetime):
            if not timedelta(0) < length <= MAX_EVENT:
                raise Invalid(f"it is not between 1s and {MAX_EVENT.days} days long")
            if len(reading.events) >= _MAX_EVENTS:
                raise Invalid(f"it comes after {_MAX_EVENTS} events, which is all that one calendar may have")
            reading.events.append(CalendarEvent(begin=at, length=length, name=name))
        else:
            days = max(1, min(length, MAX_EVENT).days)
            reading.holidays |= dict.fromkeys((at + timedelta(days=n) for n in range(days)), name)


def _occurrences(entry: Any, begin: date, moved: set[date], span: tuple[date, date]) -> Iterator[date]:
    """Yield the starts within the span: dates as dates, times as times."""
    first, last = span
    if "RRULE" not in entry and "RDATE" not in entry:
        if first <= begin_day(begin) <= last and begin not in moved:
            yield begin
        return
    skipped = {d.dt for group in _list(entry.get("EXDATE")) for d in group.dts} | moved
    zone = begin.tzinfo if isinstance(begin, datetime) else None
    bounds = (datetime.combine(first, time(), zone), datetime.combine(last, time.max, zone))
    if first - begin_day(begin) > _OLDEST:
        raise Invalid("it began more than a hundred years ago")
    after = rrulestr(_rules(entry, begin), dtstart=_moment(begin)).xafter(bounds[0], inc=True)
    found = set(islice(takewhile(lambda at: at <= bounds[1], after), _MAX_EVENTS))
    found |= {_moment(d.dt) for group in _list(entry.get("RDATE")) for d in group.dts if isinstance(d.dt, date)}
    for at in sorted(found):
        start = at if isinstance(begin, datetime) else at.date()
        if start not in skipped and first <= begin_day(start) <= last:
            yield start


def _rules(entry: Any, begin: date) -> str:
    rules = []
    for rule in _list(entry.get("RRULE")):
        frequency = str(rule.get("FREQ", [""])[0]).upper()
        if frequency not in _RARE:
            raise Invalid(f"it recurs {frequency or 'in an unknown way'}, which an annotation `schedule` should say")
        if {"BYHOUR", "BYMINUTE", "BYSECOND"} & {str(key).upper() for key in rule}:
            raise Invalid("it recurs within a day, which an annotation `schedule` should say")
        if any(int(step) < 1 for step in _list(rule.get("INTERVAL", 1))):
            raise Invalid("it recurs at an INTERVAL below 1")  # which would be the same day for ever
        rules.append("RRULE:" + rule.to_ical().decode())
    return "\n".join(rules) or f"RRULE:FREQ=DAILY;COUNT=1;BYMONTHDAY={begin.day}"


def begin_day(at: date) -> date:
    """Return the day of a date or time."""
    return at.date() if isinstance(at, datetime) else at


def _moment(at: date) -> datetime:
    return at if isinstance(at, datetime) else datetime.combine(at, time())


def _value(entry: Any, key: str) -> date:
    """Return a date, an aware time, or a naive one where the entry names no zone.

    Raises:
        Invalid: it names a zone that nobody knows, or has no such value.
    """
    if key not in entry:
        raise Invalid(f"it has no {key}")
    found: date = entry.decoded(key)
    named: str = entry[key].params.get("TZID", "")
    if isinstance(found, datetime) and named and found.tzinfo is None:
        raise Invalid(f"{cut(named, 60)!r} is no IANA time zone")
    zone: tzinfo | None = found.tzinfo if isinstance(found, datetime) else None
    return found.astimezone(UTC) if isinstance(found, datetime) and zone is UTC else found


def _length(entry: Any) -> timedelta:
    if "DURATION" in entry:
        length: timedelta = entry.decoded("DURATION")
        return length
    begin = _value(entry, "DTSTART")
    if "DTEND" not in entry:
        return timedelta(0 if isinstance(begin, datetime) else 1)
    return _moment(_value(entry, "DTEND")) - _moment(begin)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
