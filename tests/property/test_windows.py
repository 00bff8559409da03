"""Windows: daylight saving by known answers, and promises over any schedule, zone and time."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.assignment import Window, WindowSource
from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint, Schedule, WorkloadRef
from agent.demand.windows import HORIZON, MAX_WINDOWS, windows

REF = WorkloadRef(api_version="apps/v1", kind="Deployment", namespace="a", name="b", uid="u")
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "America/Santiago",
    "Africa/Cairo",
]


def endpoint(*crons: str, zone: str = "UTC", window: str | timedelta = "1h", lead: str | timedelta = "0m") -> Endpoint:
    return Endpoint(
        key=EndpointKey(namespace="a", name="b"),
        workload=REF,
        schedule=tuple(Schedule(cron=cron, zone=zone) for cron in crons),
        window=_length(window),
        lead=_length(lead),
    )


def _length(value: str | timedelta) -> timedelta:
    if isinstance(value, timedelta):
        return value
    return timedelta(**{{"h": "hours", "m": "minutes", "d": "days"}[value[-1]]: int(value[:-1])})


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def starts(found: tuple[Window, ...], until: str) -> list[str]:
    return [w.ready_by.strftime("%d %H:%M") for w in found if w.ready_by < at(until)]


# zone, cron, now (UTC), starts in UTC before the second day's end
DST = [
    # Berlin: 02:00-03:00 does not exist on 29 March 2026, and comes twice on 25 October
    ("Europe/Berlin", "30 2 * * *", "2026-03-28T00:00", "2026-03-30T00:00", ["28 01:30", "29 01:00"]),
    ("Europe/Berlin", "0 9 * * *", "2026-03-28T00:00", "2026-03-30T00:00", ["28 08:00", "29 07:00"]),
    ("Europe/Berlin", "30 2 * * *", "2026-10-24T00:00", "2026-10-26T00:00", ["24 00:30", "25 00:30"]),
    ("Europe/Berlin", "0 9 * * *", "2026-10-24T00:00", "2026-10-26T00:00", ["24 07:00", "25 08:00"]),
    # a starred hour is elapsed time: the repeated hour starts twice, the missing one not at all
    ("Europe/Berlin", "15 * * * *", "2026-10-24T23:30", "2026-10-25T02:30", ["25 00:15", "25 01:15", "25 02:15"]),
    ("Europe/Berlin", "15 * * * *", "2026-03-28T23:30", "2026-03-29T02:30", ["29 00:15", "29 01:15", "29 02:15"]),
    # New York: 8 March and 1 November 2026
    ("America/New_York", "30 2 * * *", "2026-03-07T05:00", "2026-03-09T00:00", ["07 07:30", "08 07:00"]),
    ("America/New_York", "30 1 * * *", "2026-10-31T04:00", "2026-11-02T00:00", ["31 05:30", "01 05:30"]),
    # Lord Howe moves by half an hour: 02:00-02:30 missing on 4 October, 01:30-02:00 twice on 5 April
    ("Australia/Lord_Howe", "15 2 * * *", "2026-10-02T15:40", "2026-10-04T15:00", ["02 15:45", "03 15:30"]),
    ("Australia/Lord_Howe", "0 9 * * *", "2026-10-02T15:40", "2026-10-04T15:00", ["02 22:30", "03 22:00"]),
    ("Australia/Lord_Howe", "45 1 * * *", "2026-04-03T14:00", "2026-04-05T14:00", ["03 14:45", "04 14:45"]),
]


@pytest.mark.parametrize(("zone", "cron", "now", "until", "expected"), DST)
def test_starts_follow_the_wall_clock_through_daylight_saving(
    zone: str, cron: str, now: str, until: str, expected: list[str]
) -> None:
    assert starts(windows(endpoint(cron, zone=zone, window="10m"), at(now)), until) == expected


def test_a_window_in_the_repeated_hour_is_still_open_in_its_second_pass() -> None:
    now = at("2026-10-25T01:40")  # 02:40 in Berlin for the second time; 02:45 was 55 minutes ago
    (first, *_) = windows(endpoint("45 2 * * *", zone="Europe/Berlin", window="1h"), now)
    assert (first.ready_by, first.until) == (at("2026-10-25T00:45"), at("2026-10-25T01:45"))


def test_ready_by_is_the_start_less_the_lead_and_until_the_start_plus_the_window() -> None:
    found = windows(endpoint("0 9 * * *", zone="Europe/Berlin", window="2h", lead="5m"), at("2026-06-01T06:00"))
    assert found[0] == Window(
        ready_by=at("2026-06-01T06:55"), until=at("2026-06-01T09:00"), source=WindowSource.DECLARED, confidence=100
    )


def test_a_window_across_midnight_and_the_week_end_lasts_as_long_as_written() -> None:
    (only,) = windows(endpoint("0 22 * * FRI", window="4h"), at("2026-11-27T20:00"))
    assert (only.ready_by, only.until) == (at("2026-11-27T22:00"), at("2026-11-28T02:00"))


@pytest.mark.parametrize(("now", "opened"), [("2026-06-03T11:59:59", True), ("2026-06-03T12:00", False)])
def test_a_window_is_listed_until_it_ends(now: str, opened: bool) -> None:
    found = windows(endpoint("0 12 1 * *", window="2d"), at(now))
    assert bool(found) is opened
    if opened:
        assert found[0].ready_by == at("2026-06-01T12:00")


def test_overlapping_and_touching_windows_are_one() -> None:
    found = windows(
        endpoint("0 9 * * *", "30 9 * * *", "30 10 * * *", "0 20 * * *"), at("2026-06-01T08:00"), timedelta(0)
    )
    assert [(w.ready_by, w.until) for w in found] == [(at("2026-06-01T09:00"), at("2026-06-01T11:30"))]


def test_the_lead_alone_can_join_windows() -> None:
    found = windows(endpoint("0 9,11 * * *", window="1h", lead="1h"), at("2026-06-01T07:00"), timedelta(hours=6))
    assert (found[0].ready_by, found[0].until) == (at("2026-06-01T08:00"), at("2026-06-01T12:00"))


def test_the_lead_joins_a_window_with_one_that_has_ended() -> None:
    (found, *_) = windows(endpoint("0 9,11 * * *", window="1h", lead="1h"), at("2026-06-01T11:30"))
    assert (found.ready_by, found.until) == (at("2026-06-01T08:00"), at("2026-06-01T12:00"))


@pytest.mark.parametrize("zone", ZONES)
def test_a_window_that_starts_this_very_second_is_open(zone: str) -> None:
    now = at("2026-06-01T12:30")
    cron = f"{now.astimezone(ZoneInfo(zone)):%M %H} * * *"
    assert windows(endpoint(cron, zone=zone), now)[0] == Window(ready_by=now, until=now + timedelta(hours=1))


def test_every_minute_is_one_long_window_and_changes_only_every_six_hours() -> None:
    always = endpoint("* * * * *", window="5m")
    answers = {windows(always, at("2026-06-01T06:00") + timedelta(minutes=7 * n)) for n in range(51)}
    ((only,),) = answers
    assert only.ready_by <= at("2026-06-01T00:00")
    assert only.until >= at("2026-06-01T12:00") + HORIZON


def test_many_short_windows_are_cut_to_the_earliest() -> None:
    found = windows(endpoint("*/2 * * * *", window="1m"), at("2026-06-01T00:00"))
    assert len(found) == MAX_WINDOWS
    assert found[-1].ready_by == at("2026-06-01T00:00") + timedelta(minutes=2 * MAX_WINDOWS - 2)


def test_no_schedule_gives_no_window() -> None:
    assert windows(endpoint(), at("2026-06-01T00:00")) == ()


FIELD = st.sampled_from(["*", "*/7", "*/15", "0", "30", "5,50", "10-20"])
HOUR = st.sampled_from(["*", "*/5", "0", "1", "2", "3", "9", "22,23", "0-4"])
CRON = st.builds(
    "{} {} {} * {}".format,
    FIELD,
    HOUR,
    st.sampled_from(["*", "1", "29", "L"]),
    st.sampled_from(["*", "MON-FRI", "6#2"]),
)
TIME = st.datetimes(datetime(2025, 1, 1), datetime(2028, 1, 1)).map(lambda t: t.replace(tzinfo=UTC))  # noqa: DTZ001
LENGTH = st.integers(1, 3000).map(lambda minutes: timedelta(minutes=minutes))
LEAD = st.integers(0, 1440).map(lambda minutes: timedelta(minutes=minutes))
ENDPOINT = st.builds(
    lambda crons, zone, window, lead: endpoint(*crons, zone=zone, window=window, lead=lead),
    st.lists(CRON, max_size=3),
    st.sampled_from(ZONES),
    LENGTH,
    LEAD,
)


@given(ENDPOINT, TIME)
def test_windows_are_sorted_apart_ahead_and_within_reach(of: Endpoint, now: datetime) -> None:
    found = windows(of, now)
    assert list(found) == sorted(found)
    assert all(a.until < b.ready_by for a, b in itertools.pairwise(found))
    assert all(w.until > now and w.until - w.ready_by >= of.window + of.lead for w in found)
    assert all(w.ready_by <= now + HORIZON + timedelta(hours=6) for w in found)
    assert len(found) <= MAX_WINDOWS


@given(st.sampled_from(ZONES), LENGTH, LEAD, TIME)
def test_a_time_of_day_starts_a_window_when_the_wall_clock_shows_it(
    zone: str, window: timedelta, lead: timedelta, now: datetime
) -> None:
    """Known without cron: on days without a change of the clock, the time it is now comes back in 24 hours."""
    local = now.astimezone(ZoneInfo(zone))
    minute, hour = local.minute, local.hour
    if len({(local + timedelta(days=d)).utcoffset() for d in (-1, 0, 1, 2)}) > 1:
        return
    soon = windows(endpoint(f"{minute} {hour} * * *", zone=zone, window=window, lead=lead), now)
    start = now.replace(second=0, microsecond=0)
    assert soon
    assert soon[0].ready_by <= start - lead
    assert any(
        w.ready_by <= start + timedelta(days=1) - lead and start + timedelta(days=1) + window <= w.until for w in soon
    )


@given(ENDPOINT, TIME, st.integers(0, 1800))
def test_a_window_that_stays_keeps_its_end_as_time_passes(of: Endpoint, now: datetime, seconds: int) -> None:
    later = now + timedelta(seconds=seconds)
    before, after = windows(of, now), windows(of, later)
    if len(before) == MAX_WINDOWS or later.hour // 6 != now.hour // 6 or not before:
        return
    assert [w.until for w in after] == [w.until for w in before if w.until > later]


@given(ENDPOINT, TIME)
def test_the_order_of_expressions_and_the_zone_of_now_do_not_matter(of: Endpoint, now: datetime) -> None:
    turned = endpoint(
        *(s.cron for s in reversed(of.schedule)),
        zone=of.schedule[0].zone if of.schedule else "UTC",
        window=of.window,
        lead=of.lead,
    )
    assert windows(turned, now.astimezone(ZoneInfo("Asia/Tokyo"))) == windows(of, now)
