"""Windows met, late and missed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from agent.core.assignment import Assignment, EndpointWant, Window, WindowSource
from agent.core.refs import EndpointKey
from agent.observe.windows import Verdict, Watched, settle

KEY = EndpointKey(namespace="shop", name="chat")
READY, NOT = frozenset({KEY}), frozenset[EndpointKey]()
T0 = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
ASKED = Assignment(endpoints=(EndpointWant(key=KEY, windows=(Window(ready_by=T0, until=T0 + timedelta(hours=1)),)),))


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def told(*looks: tuple[Assignment | None, frozenset[EndpointKey], float]) -> list[float | None]:
    watched, late = Watched(), list[float | None]()
    for assignment, ready, seconds in looks:
        watched, verdicts = settle(watched, assignment, ready, at(seconds))
        assert all(v == Verdict(key=KEY, late_seconds=v.late_seconds) for v in verdicts)
        late += [v.late_seconds for v in verdicts]
    return late


def test_ready_when_due_is_in_time_and_counted_once() -> None:
    assert told((ASKED, NOT, -60), (ASKED, READY, -30), (ASKED, READY, 0.05), (ASKED, READY, 5)) == [0.0]


def test_ready_after_it_was_due_is_late_by_that_much() -> None:
    assert told((ASKED, NOT, -60), (ASKED, NOT, 0), (ASKED, NOT, 20), (ASKED, READY, 42)) == [42.0]


def test_not_ready_by_the_end_is_missed() -> None:
    assert told((ASKED, NOT, -60), (ASKED, NOT, 0), (ASKED, NOT, 3600)) == [None]
    assert told((ASKED, NOT, -60), (None, NOT, 10), (None, NOT, 3600)) == []


def test_a_window_that_is_only_foretold_is_not_counted() -> None:
    (asked,) = ASKED.endpoints
    guess = replace(asked.windows[0], source=WindowSource.PREDICTED, confidence=60)
    foretold = replace(ASKED, endpoints=(replace(asked, windows=(guess,)),))
    assert told((foretold, NOT, -60), (foretold, NOT, 0), (foretold, READY, 42)) == []
    assert told((foretold, NOT, -60), (foretold, NOT, 3600)) == []
    assert told((foretold, NOT, -60), (ASKED, NOT, -30), (ASKED, READY, 42)) == [42.0], "declared meanwhile"


def test_a_window_first_seen_when_it_was_due_is_not_counted() -> None:
    assert told((ASKED, NOT, 1), (ASKED, READY, 5), (ASKED, NOT, 3601)) == []


def test_a_window_taken_back_before_it_was_due_is_not_counted() -> None:
    assert told((ASKED, NOT, -60), (None, NOT, -30), (None, NOT, 10), (None, NOT, 3601)) == []


def test_an_endpoint_that_loses_its_claim_before_the_window_is_late() -> None:
    assert told((ASKED, READY, -60), (ASKED, NOT, 0), (ASKED, READY, 3)) == [3.0]


def test_a_clock_that_is_set_back_counts_no_window_twice() -> None:
    assert told((ASKED, READY, -60), (ASKED, READY, 1), (ASKED, READY, -50), (ASKED, READY, 1)) == [1.0]
