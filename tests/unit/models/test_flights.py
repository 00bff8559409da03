"""Which range gets one more copy, when, and for how many bytes."""

from __future__ import annotations

from agent.models.flights import MOST_COPIES, Flights
from agent.models.ranges import Part
from agent.models.tail import ENOUGH_SAMPLES, FIRST_EXTRA_BYTES, Tail

SIZE = 1 << 20
PART = Part(file=0, offset=0, length=SIZE)


class Sky:
    """Flights on a clock that the test moves, after answers that took 0.1 s each: 0.15 s and more are late."""

    def __init__(self) -> None:
        self.now = 0.0
        self.cut: list[str] = []
        self.tail = Tail()
        for _ in range(ENOUGH_SAMPLES):
            self.tail.took(SIZE, 0.1)
        self.flights = Flights(self.tail, lambda: self.now)


def test_a_range_gets_a_second_copy_when_it_is_late_and_a_third_when_that_is_late() -> None:
    sky = Sky()
    first = sky.flights.start(PART, None, lambda: sky.cut.append("first"))
    sky.now = 0.14
    assert sky.flights.another(lambda: None) is None
    sky.now = 0.16
    second = sky.flights.another(lambda: sky.cut.append("second"))
    assert second is not None
    assert sky.flights.another(lambda: None) is None  # the second copy is not late yet
    sky.now = 0.30
    assert sky.flights.another(lambda: None) is None
    sky.now = 0.32
    third = sky.flights.another(lambda: sky.cut.append("third"))
    assert third is not None
    sky.now = 100.0
    assert sky.flights.another(lambda: None) is None
    assert len(first.flight.copies) == MOST_COPIES
    assert sky.flights.wins(third)
    assert sky.cut == ["first", "second"]
    assert not sky.flights.wins(first)
    assert [copy.lost for copy in (first, second, third)] == [True, True, False]
    for copy in (first, second, third):
        copy.received = SIZE
        sky.flights.end(copy)
    assert not sky.flights


def test_a_copy_that_waits_for_bandwidth_is_not_late() -> None:
    sky = Sky()
    sky.flights.start(PART, None, lambda: None).waiting = True
    sky.now = 5.0
    assert sky.flights.another(lambda: None) is None


def test_no_more_copies_than_the_budget_has_bytes() -> None:
    sky = Sky()
    for n in range(FIRST_EXTRA_BYTES // SIZE + 2):
        sky.flights.start(Part(file=0, offset=n * SIZE, length=SIZE), None, lambda: None)
    sky.now = 1.0
    extra = 0
    while sky.flights.another(lambda: None):
        extra += 1
    assert extra == FIRST_EXTRA_BYTES // SIZE


def test_a_range_that_has_come_gets_no_copy() -> None:
    sky = Sky()
    first = sky.flights.start(PART, None, lambda: None)
    assert sky.flights.wins(first)
    sky.now = 5.0
    assert sky.flights.another(lambda: None) is None
