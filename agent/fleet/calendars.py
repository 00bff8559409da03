"""The fleet's calendars, read from ConfigMaps once a day and when they change."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from time import thread_time

from agent.demand.calendar import Almanac, CalendarReading, read_calendar
from agent.kube.events import Announcement
from agent.kube.objects import ConfigMapView, ObjectRef

_TOLD = 10  # problems of one calendar: each is an Event


class Calendars:
    """Remembers how it read an unchanged ConfigMap: an iCal text of a thousand entries costs a second."""

    def __init__(self) -> None:
        self.almanac = Almanac()
        self._readings: dict[str, tuple[ConfigMapView, date, CalendarReading]] = {}

    def read(self, configmaps: Iterable[ConfigMapView], now: datetime) -> frozenset[Announcement]:
        """Bring `almanac` up to date (the same object while nothing changes) and return what is wrong with its sources."""
        before, self._readings, today = self._readings, {}, now.astimezone(UTC).date()
        for each in sorted(configmaps, key=lambda c: c.name):
            old = before.get(each.name)
            same = old is not None and old[:2] == (each, today)
            reading = old[2] if old and same else read_calendar(each.name, each.data, today, thread_time)
            self._readings[each.name] = (each, today, reading)
        calendars = tuple(reading.calendar for _, _, reading in self._readings.values())
        if calendars != self.almanac.calendars:
            self.almanac = Almanac(calendars=calendars)
        return frozenset(
            Announcement(about=_ref(each), reason="Invalid", message=problem)
            for each, _, reading in self._readings.values()
            for problem in reading.problems[:_TOLD]
        )

    def until(self, now: datetime) -> datetime | None:
        """Return when they are to be read again: at midnight UTC, where there are any."""
        tomorrow = datetime.combine(now.astimezone(UTC).date() + timedelta(days=1), time(), UTC)
        return tomorrow if self._readings else None


def _ref(found: ConfigMapView) -> ObjectRef:
    return ObjectRef(api_version="v1", kind="ConfigMap", namespace=found.namespace, name=found.name, uid=found.uid)
