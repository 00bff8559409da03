"""Starts of one cron expression on the wall clock of a zone, as instants in UTC. Pure.

Expressions of elapsed time (minute or hour begins with `*`) are run over stretches of constant offset: given a zone whose clock
changes off the hour (Pacific/Chatham, at 03:45), cronsim by itself goes back and forth in the repeated hour for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim

_SECOND = timedelta(seconds=1)


def ticks(cron: str, zone: ZoneInfo, origin: datetime, *, reverse: bool = False) -> Iterator[datetime]:
    """Yield the starts after (with `reverse` before) `origin`, nearest first. Endless unless the calendar ends."""
    if _elapsed(cron):
        yield from _of_elapsed_time(cron, zone, origin.astimezone(UTC), reverse=reverse)
        return
    for tick in CronSim(cron, origin.astimezone(zone), reverse=reverse):
        yield tick.astimezone(UTC)


def _elapsed(cron: str) -> bool:
    minute, hour, *_ = cron.split()
    return minute.startswith("*") or hour.startswith("*")


def _of_elapsed_time(cron: str, zone: ZoneInfo, at: datetime, *, reverse: bool) -> Iterator[datetime]:
    """Count in the offset that holds; where a tick falls beyond its end, begin anew at the change.

    No tick is lost when several changes lie between two ticks: an hour that repeats or is skipped holds only minutes that the
    expression does not name, or it would hold a tick.
    """
    # Clocks change at whole seconds: with a fraction, a change that is a tick itself could not be told from `at`.
    whole = at.replace(microsecond=0)
    at = whole + _SECOND if reverse and whole < at else whole
    offset = _offset(at, zone)
    while True:
        for tick in CronSim(cron, at + offset, reverse=reverse):
            found = tick - offset
            if _offset(found, zone) != offset:
                break
            at = found
            yield found
        else:
            return
        change = _change(at, found, offset, zone)
        at = change if reverse else change - _SECOND
        offset = _offset(change - _SECOND if reverse else change, zone)


def _change(inside: datetime, outside: datetime, offset: timedelta, zone: ZoneInfo) -> datetime:
    """Return the second at which the clock changes between two instants, of which only one has this offset."""
    while abs(outside - inside) > _SECOND:
        middle = inside + timedelta(seconds=(outside - inside) // _SECOND // 2)
        if _offset(middle, zone) == offset:
            inside = middle
        else:
            outside = middle
    return max(inside, outside)


def _offset(at: datetime, zone: ZoneInfo) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta(0)
