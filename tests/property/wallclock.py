"""A second implementation of schedules, to check the first against: walk the minutes of a zone and look at its clock.

It shares no code with `agent.demand.windows` and none with cronsim. The rule (Debian's cron): an expression that begins neither
its minute nor its hour with `*` starts once for every minute of the calendar it names, when the wall clock first shows that minute
or first passes it. One that does starts whenever the clock shows a minute it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

FIRST, LAST = datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
_WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]


class Cron:
    """Five fields of numbers, names of days, lists, ranges and steps."""

    def __init__(self, text: str) -> None:
        minute, hour, day, month, weekday = text.split()
        self.elapsed = minute.startswith("*") or hour.startswith("*")
        self._minutes, self._hours = _numbers(minute, 0, 59), _numbers(hour, 0, 23)
        self._days, self._months = _numbers(day, 1, 31), _numbers(month, 1, 12)
        for n, name in enumerate(_WEEKDAYS):
            weekday = weekday.replace(name, str(n))
        self._weekdays = {n % 7 for n in _numbers(weekday, 0, 7)}
        self._either = day != "*" and weekday != "*"

    def names(self, wall: datetime) -> bool:
        """Say whether the expression names this minute of the calendar."""
        if wall.minute not in self._minutes or wall.hour not in self._hours or wall.month not in self._months:
            return False
        day, weekday = wall.day in self._days, wall.isoweekday() % 7 in self._weekdays
        return (day or weekday) if self._either else (day and weekday)


def _numbers(field: str, least: int, most: int) -> set[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        low, high = (least, most) if span == "*" else (int(first), int(last or first))
        found |= set(range(low, high + 1, int(step or 1)))
    return found


def starts(cron: Cron, zone: ZoneInfo, since: datetime, until: datetime) -> Iterator[datetime]:
    """Yield the starts in [since, until), in UTC; `since` and `until` are whole UTC minutes."""
    at = since
    shown = (at - MINUTE).astimezone(zone).replace(tzinfo=None)  # the latest minute that the wall clock has shown
    while at < until:
        wall = at.astimezone(zone).replace(tzinfo=None)
        if cron.elapsed:
            if cron.names(wall):
                yield at
        elif wall > shown:
            passed = (shown + MINUTE * n for n in range(1, int((wall - shown) / MINUTE) + 1))
            if any(cron.names(minute) for minute in passed):
                yield at
        shown = max(shown, wall)
        at += MINUTE


def changes(zone: ZoneInfo) -> tuple[datetime, ...]:
    """Return the minutes of ten years at which the zone's offset changes."""
    found, at = [], FIRST
    while at < LAST:
        if at.astimezone(zone).utcoffset() != (at + DAY).astimezone(zone).utcoffset():
            found.append(next(m for m in _minutes(at) if _offset(m - MINUTE, zone) != _offset(m, zone)))
        at += DAY
    return tuple(found)


def _minutes(day: datetime) -> Iterator[datetime]:
    return (day + MINUTE * n for n in range(1, 1441))


def _offset(at: datetime, zone: ZoneInfo) -> timedelta | None:
    return at.astimezone(zone).utcoffset()


@cache
def zones_with_changes() -> Sequence[str]:
    """Return every IANA zone whose clock changes in these ten years, in order."""
    middle = [datetime(year, month, 15, tzinfo=UTC) for year in range(2026, 2036) for month in range(1, 13)]
    names = sorted(available_timezones() - {"localtime", "posixrules", "Factory"})
    return [n for n in names if len({at.astimezone(ZoneInfo(n)).utcoffset() for at in middle}) > 1]
