"""Declared windows against a second implementation, around every change of the clock of ten years.

A run looks at a few zones, others each day; `python -m bench.zones` looks at all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

import pytest

from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint, Schedule, WorkloadRef
from agent.demand.windows import windows
from tests.property.wallclock import Cron, changes, starts, zones_with_changes

REF = WorkloadRef(api_version="apps/v1", kind="Deployment", namespace="a", name="b", uid="u")
CRONS = (
    "0 9 * * MON-FRI",
    "30 2 * * *",
    "15 1 * * *",
    "59 23 * * SUN",
    "0 0 1 * *",
    "0,30 1-3 * * *",
    "10 2 29 2,3,10 SUN",
    "*/20 * * * *",
    "45 */2 * * *",
    "5 0-4 * * *",
    "*/20 0 * * *",
)
NOWS = (
    timedelta(hours=-37, milliseconds=300),  # as a clock's answer, which has fractions of a second
    timedelta(hours=-2),
    timedelta(minutes=-1),
    timedelta(0),
    timedelta(minutes=61, milliseconds=300),
)
SPAN = timedelta(hours=48)
# Others each day, so that CI meets all of them in time, and the same ones all day, so that a failure can be repeated.
TODAY = Random(datetime.now(UTC).toordinal()).sample(zones_with_changes(), 4)
# They change at a quarter to, by half an hour, at midnight.
ALWAYS = ["Pacific/Chatham", "Australia/Lord_Howe", "Africa/Cairo"]


def differences(zone: str, moments: int | None = None) -> Iterator[str]:
    """Yield a line for each answer around a zone's changes (all, or a sample) that the second implementation gives otherwise."""
    info = ZoneInfo(zone)
    found = changes(info)
    for change in found if moments is None else Random(zone).sample(found, min(moments, len(found))):
        for cron in CRONS:
            first, last = (change + min(NOWS)).replace(microsecond=0), change + max(NOWS) + SPAN
            expected = list(starts(Cron(cron), info, first, last))
            for now in (change + shift for shift in NOWS):
                mine = [at for at in _windows(cron, zone, now) if now < at < now + SPAN]
                if mine != [at for at in expected if now < at < now + SPAN]:
                    yield f"{zone}, {cron!r} at {now:%Y-%m-%dT%H:%MZ}"


def _windows(cron: str, zone: str, now: datetime) -> list[datetime]:
    of = Endpoint(
        key=EndpointKey(namespace="a", name="b"),
        workload=REF,
        schedule=(Schedule(cron=cron, zone=zone),),
        window=timedelta(seconds=30),
        lead=timedelta(0),
    )
    return [w.ready_by for w in windows(of, now)]


@pytest.mark.parametrize("zone", [*ALWAYS, *TODAY])
def test_windows_are_those_of_the_wall_clock_around_changes(zone: str) -> None:
    assert list(differences(zone, moments=3)) == []


def test_the_second_implementation_knows_what_people_expect() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    found = [
        f"{at:%d %H:%M}"
        for at in starts(
            Cron("30 2 * * *"), berlin, datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 3, 31, tzinfo=UTC)
        )
    ]
    assert found == ["28 01:30", "29 01:00", "30 00:30"]
    found = [
        f"{at:%d %H:%M}"
        for at in starts(
            Cron("30 2 * * *"), berlin, datetime(2026, 10, 24, tzinfo=UTC), datetime(2026, 10, 27, tzinfo=UTC)
        )
    ]
    assert found == ["24 00:30", "25 00:30", "26 01:30"]
