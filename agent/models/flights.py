"""Ranges on their way: each fetched by one thread, by two once it is unusually late, by three once the second copy is too.

The first copy to be whole is written. Not safe for threads by itself: `Transfer` calls it under its lock. Only what wins is ever
written or counted; the connections of the others are cut, and made anew: a slow connection does not come back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.models.checksum import RangeSums
from agent.models.ranges import Part
from agent.models.tail import Tail

MOST_COPIES = 3  # one answer in a hundred is late: all of three are, one time in a million


class Superseded(Exception):
    """Another copy of the range was quicker."""


@dataclass(eq=False, slots=True)
class Copy:
    """One thread's fetch of a range. `waiting` while it is held back by a bandwidth cap, by others or its own thread: no server's fault."""

    flight: Flight
    abort: Callable[[], None]
    started: float
    is_extra: bool
    waiting: bool = False
    received: int = 0
    asked: bool = False  # its answer is under way, and its slot is taken
    ahead_seconds: float = 0.0  # how long before its turn it was asked for
    won: bool = False
    lost: bool = False  # another copy came first


@dataclass(eq=False, slots=True)
class Flight:
    """One range that is being fetched, and what the journal claims of it."""

    part: Part
    claim: RangeSums | None
    copies: list[Copy] = field(default_factory=list)
    won: bool = False


class Flights:
    """The ranges that are being fetched now."""

    def __init__(self, tail: Tail, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._tail, self._monotonic = tail, monotonic
        self._flying: set[Flight] = set()

    def __bool__(self) -> bool:
        """Whether any range is on its way."""
        return bool(self._flying)

    def start(self, part: Part, claim: RangeSums | None, abort: Callable[[], None]) -> Copy:
        """Note that a thread, which `abort` would wake, begins to fetch a range."""
        flight = Flight(part, claim)
        self._flying.add(flight)
        return self._copy(flight, abort, is_extra=False)

    def another(self, abort: Callable[[], None]) -> Copy | None:
        """Return one more copy of the range that is late for longest, if any is, and the budget has its bytes."""
        flight = self.late()
        if flight is None or not self._tail.spend(flight.part.length):
            return None
        return self._copy(flight, abort, is_extra=True)

    def late(self) -> Flight | None:
        """Return the range whose youngest copy is late for longest, if any is."""
        now, late = self._monotonic(), None
        for flight in self._flying:
            copies = flight.copies
            if not flight.won and 0 < len(copies) < MOST_COPIES and not any(c.waiting for c in copies):
                patience = self._tail.patience_seconds(flight.part.length)
                age = now - max(c.started for c in copies)
                if patience is not None and age > patience and (late is None or age > late[0]):
                    late = age, flight
        return late[1] if late else None

    def _copy(self, flight: Flight, abort: Callable[[], None], *, is_extra: bool) -> Copy:
        copy = Copy(flight, abort, self._monotonic(), is_extra)
        flight.copies.append(copy)
        return copy

    def wins(self, copy: Copy) -> bool:
        """Say whether a copy, whole now, is the first; then the others are cut."""
        flight = copy.flight
        if not flight.won:
            flight.won = copy.won = True
            for other in flight.copies:
                if other is not copy:
                    other.lost = True
                    other.abort()
        return copy.won

    def end(self, copy: Copy) -> None:
        """Forget a copy that came, lost or failed."""
        flight = copy.flight
        flight.copies.remove(copy)
        if copy.lost:
            self._tail.give_back(flight.part.length - copy.received)
        if copy.won or not flight.copies:  # one that lost may hang on for a while: nobody waits for it
            self._flying.discard(flight)

    def abort(self) -> None:
        """Cut every connection that is in use."""
        for flight in self._flying:
            for copy in flight.copies:
                copy.abort()
