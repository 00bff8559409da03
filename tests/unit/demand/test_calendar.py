"""Calendars: what lines and iCal texts say, what is wrong with them, and what windows make of them."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.refs import EndpointKey
from agent.demand.calendar import Almanac, Calendar, CalendarEvent, read_calendar
from agent.demand.windows import SOFT, softened, softened_days, windows
from tests.unit.demand.workloads import endpoint

DAY = date(2026, 12, 24)
BERLIN = ZoneInfo("Europe/Berlin")
CHAT = EndpointKey(namespace="team-a", name="chat")
ICS = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//a//b//EN
BEGIN:VEVENT
UID:1
DTSTAMP:20200101T000000Z
DTSTART;VALUE=DATE:20001225
DTEND;VALUE=DATE:20001227
RRULE:FREQ=YEARLY
SUMMARY:Christmas
END:VEVENT
BEGIN:VEVENT
UID:2
DTSTAMP:20200101T000000Z
DTSTART;TZID=Europe/Berlin:20261224T080000
DURATION:PT4H
SUMMARY:Sale
END:VEVENT
BEGIN:VEVENT
UID:3
DTSTAMP:20200101T000000Z
DTSTART:20261203T100000
DTEND:20261203T120000
RRULE:FREQ=WEEKLY;COUNT=6
EXDATE:20261217T100000
SUMMARY:Rehearsal
END:VEVENT
BEGIN:VEVENT
UID:3
DTSTAMP:20200101T000000Z
RECURRENCE-ID:20261224T100000
DTSTART:20261224T150000
DTEND:20261224T160000
SUMMARY:Rehearsal, later
END:VEVENT
BEGIN:VEVENT
UID:4
DTSTAMP:20200101T000000Z
DTSTART;VALUE=DATE:20261224
STATUS:CANCELLED
SUMMARY:No holiday after all
END:VEVENT
END:VCALENDAR
""".replace("\n", "\r\n")


def read(**data: str) -> tuple[Calendar, tuple[str, ...]]:
    spent = itertools.count()  # a second at each look
    found = read_calendar("c", {k.replace("_ics", ".ics"): v for k, v in data.items()}, DAY, lambda: next(spent))
    return found.calendar, found.problems


def one_event(text: str) -> str:
    return f"BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nUID:1\r\n{text}\r\nSUMMARY:x\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"


def test_lines_name_days_and_events() -> None:
    found, problems = read(
        endpoints="team-a/*, shop/chat",
        holidays="# Germany\n2026-12-25 Christmas Day\n01-01 New Year\n",
        events="2026-11-27T08:00 12h Black Friday\n2026-12-24T08:00+01:00 30m Launch",
    )
    assert problems == ()
    assert found.endpoints == ("team-a/*", "shop/chat")
    assert found.holidays == {
        date(2026, 12, 25): "Christmas Day",
        date(2026, 1, 1): "New Year",
        date(2027, 1, 1): "New Year",
    }
    assert [(e.begins(BERLIN), e.length, e.name) for e in found.events] == [
        (datetime(2026, 11, 27, 7, tzinfo=UTC), timedelta(hours=12), "Black Friday"),
        (datetime(2026, 12, 24, 7, tzinfo=UTC), timedelta(minutes=30), "Launch"),
    ]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            {"holidays": "2026-13-01 x"},
            "holidays, line 1: '2026-13-01 x' has a bad date or time, write 2026-12-25 NAME",
        ),
        ({"holidays": "\nChristmas"}, "holidays, line 2: 'Christmas' is no day"),
        ({"events": "2026-11-27T08:00"}, "events, line 1: '2026-11-27T08:00' has no length"),
        ({"events": "2026-11-27T08:00 0m x"}, "events, line 1: '0m' is not between 1s and 31 days"),
        ({"events": "tomorrow 1h x"}, "events, line 1: 'tomorrow 1h x' has a bad date or time"),
        ({"holiday": "2026-12-25"}, "holiday: unknown, a calendar has endpoints, holidays, events and NAME.ics"),
        ({"endpoints": "chat"}, "endpoints: 'chat' is no namespace/name pattern"),
        ({"a_ics": "nonsense"}, "a.ics: no iCal text: "),
        ({"a_ics": one_event("DTSTART;TZID=Mars/Olympus:20261224T080000")}, "a.ics: entry 'x': "),
        ({"a_ics": one_event("DTSTART:20261224T080000Z")}, "a.ics: entry 'x': it is not between 1s and 31 days long"),
        ({"a_ics": one_event("DURATION:PT1H")}, "a.ics: entry 'x': it has no DTSTART"),
        (
            {"a_ics": one_event("DTSTART:20261224T080000Z\r\nDURATION:PT1H\r\nRRULE:FREQ=SECONDLY")},
            "a.ics: entry 'x': it recurs SECONDLY, which an annotation `schedule` should say",
        ),
        (
            {
                "a_ics": one_event(
                    "DTSTART:20261224T080000Z\r\nDURATION:PT1M\r\nRRULE:FREQ=DAILY;BYHOUR=1,2;BYMINUTE=1,2"
                )
            },
            "a.ics: entry 'x': it recurs within a day, which an annotation `schedule` should say",
        ),
        (
            {"a_ics": one_event("DTSTART:15000101T080000Z\r\nDURATION:PT1M\r\nRRULE:FREQ=DAILY")},
            "a.ics: entry 'x': it began more than a hundred years ago",
        ),
        (
            {"a_ics": one_event("DTSTART;VALUE=DATE:20250102\r\nRRULE:FREQ=DAILY;INTERVAL=0")},
            "a.ics: entry 'x': it recurs at an INTERVAL below 1",
        ),
    ],
)
def test_what_is_wrong_is_told_and_the_rest_holds(data: dict[str, str], told: str) -> None:
    found, problems = read(**{"holidays": "2026-12-26 Boxing Day", **data})
    assert len(problems) == 1
    assert problems[0].startswith(told)
    assert bool(found.holidays) is ("holidays" not in data)


def test_ical_all_day_entries_are_holidays_and_the_others_events() -> None:
    found, problems = read(a_ics=ICS)
    assert problems == ()
    assert found.holidays == {date(2026, 12, 25): "Christmas", date(2026, 12, 26): "Christmas"}
    begins = sorted(f"{e.begins(BERLIN):%d %H:%M} {e.name}" for e in found.events)
    assert begins == [
        "03 09:00 Rehearsal",
        "10 09:00 Rehearsal",
        "24 07:00 Sale",
        "24 14:00 Rehearsal, later",
        "31 09:00 Rehearsal",
    ]


def test_ical_that_takes_too_long_to_compute_is_left_at_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.demand.ical._MOST_SECONDS", 0)
    found, problems = read(a_ics=ICS, holidays="2026-12-26 Boxing Day")
    (problem,) = problems
    assert problem.startswith("a.ics: entry ")
    assert problem.endswith("and what follows are not read: those before took too long to compute")
    assert found.holidays == {date(2026, 12, 26): "Boxing Day"}


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_read_or_told(holidays: str, events: str, ics: str) -> None:
    read(holidays=holidays, events=events, a_ics=ics)
    read(a_ics=one_event(ics))


def almanac(holidays: str = "", events: str = "", endpoints: str = "") -> Almanac:
    found, problems = read(holidays=holidays, events=events, endpoints=endpoints)
    assert problems == ()
    return Almanac(calendars=(found,))


def lines(found: object) -> list[str]:
    return [f"{w.ready_by:%d %H:%M}-{w.until:%d %H:%M} {w.confidence}" for w in found]  # type: ignore[attr-defined]


def test_a_holiday_softens_the_windows_that_start_on_it_on_the_endpoints_own_day() -> None:
    of = endpoint({"schedule": "0 9 * * *; 30 0 * * *", "timezone": "Europe/Berlin", "lead": "0m"})
    found = windows(of, datetime(2026, 12, 24, 6, tzinfo=UTC), timedelta(0), almanac("2026-12-25 Christmas Day"))
    assert lines(found) == ["24 08:00-24 09:00 100"]
    found = windows(
        of, datetime(2026, 12, 24, 12, tzinfo=UTC), timedelta(hours=30), almanac("2026-12-25 Christmas Day")
    )
    assert lines(found) == [
        f"24 23:30-25 00:30 {SOFT}",
        f"25 08:00-25 09:00 {SOFT}",
        "25 23:30-26 00:30 100",
    ]
    assert [softened(w) for w in found] == [True, True, False]


def test_no_window_is_lost_to_a_holiday_where_it_meets_others() -> None:
    of = endpoint({"schedule": "*/30 * * * *", "timezone": "UTC", "lead": "0m", "window": "1h"})
    now = datetime(2026, 12, 24, 20, tzinfo=UTC)
    plain = windows(of, now)
    found = windows(of, now, almanac=almanac("2026-12-25 Christmas Day"))
    assert lines(found) == ["17 17:30-25 00:30 100", f"25 00:30-26 00:00 {SOFT}", "26 00:00-27 01:00 100"]
    assert (plain[0].ready_by, plain[-1].until) == (found[0].ready_by, found[-1].until)


def test_the_days_told_are_the_holidays_on_which_softened_windows_start() -> None:
    now, of = datetime(2026, 12, 24, 12, tzinfo=UTC), {"timezone": "UTC", "lead": "0m"}
    evening = endpoint({"schedule": "0 20 * * *", "window": "10h"} | of)
    cut = almanac("2026-12-25 Christmas Day", "2026-12-25T19:00 7h Launch")
    found = windows(evening, now, almanac=cut)
    assert lines(found)[1:3] == ["25 19:00-26 02:00 100", f"26 02:00-26 06:00 {SOFT}"]
    assert softened_days(evening, found, now, cut) == {date(2026, 12, 25): "Christmas Day"}
    always = endpoint({"schedule": "0 9 * * *", "window": "1d"} | of)
    both = almanac("2026-12-25 Christmas Day\n2026-12-26 Boxing Day")
    assert softened_days(always, windows(always, now, almanac=both), now, both) == {
        date(2026, 12, 25): "Christmas Day",
        date(2026, 12, 26): "Boxing Day",
    }
    covered = almanac("2026-12-25 Christmas Day", "2026-12-25T19:00 1d Launch")
    assert softened_days(evening, windows(evening, now, almanac=covered), now, covered) == {}


def test_an_event_begins_at_a_whole_second() -> None:
    of = endpoint({"schedule": "0 8 * * *", "timezone": "UTC", "lead": "0m", "window": "1h"})
    found = windows(
        of, datetime(2026, 12, 25, 6, tzinfo=UTC), almanac=almanac("2026-12-25 x", "2026-12-25T08:00:00.5 12h Sale")
    )
    assert lines(found)[0] == "25 08:00-25 20:00 100"
    assert not found[0].ready_by.microsecond


@pytest.mark.parametrize(
    ("schedule", "events"),
    [
        ("0 9 * * *; 45 9 * * *", ""),
        ("0 7-20 * * *", ""),
        ("0 9 * * *; 30 8 * * 1-5; 15 10 * * *", ""),
        ("0 9 * * *", "2026-12-24T09:30 3h Launch\n2026-12-24T12:15 1h After"),
    ],
)
def test_a_window_is_due_at_one_time_for_as_long_as_it_lasts(schedule: str, events: str) -> None:
    of = endpoint({"schedule": schedule, "timezone": "UTC", "lead": "5m", "window": "1h"})
    due: dict[datetime, datetime] = {}
    for minute in range(0, 36 * 60, 5):
        for window in windows(
            of, datetime(2026, 12, 24, tzinfo=UTC) + timedelta(minutes=minute), almanac=almanac(events=events)
        ):
            assert due.setdefault(window.until, window.ready_by) == window.ready_by


@pytest.mark.parametrize("event", ["9999-12-31T23:00 12h x", "0001-01-01T00:00 1h x", "9999-12-31T23:00+14:00 1h x"])
def test_an_event_at_an_end_of_the_calendar_is_a_problem_told(event: str) -> None:
    found, problems = read(events=event)
    assert (found.events, len(problems)) == ((), 1)


def test_an_event_is_a_window_more_for_those_it_concerns() -> None:
    calendar = almanac(events="2026-12-24T15:00 2h Launch", endpoints="team-a/ch*")
    now = datetime(2026, 12, 24, 12, tzinfo=UTC)
    of = endpoint({"schedule": "0 9 1 1 *", "timezone": "America/New_York", "lead": "10m"})
    assert lines(windows(of, now, almanac=calendar)) == ["24 19:50-24 22:00 100"]
    other = endpoint({"schedule": "0 9 1 1 *"}, name="code")
    assert windows(other, now, almanac=calendar) == ()


def test_an_event_in_the_hour_a_clock_skips_begins_after_it() -> None:
    event = CalendarEvent(begin=datetime(2026, 3, 29, 2, 30), length=timedelta(hours=1))  # noqa: DTZ001 (wall clock)
    assert event.begins(BERLIN) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
