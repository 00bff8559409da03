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
    """One thread's fetch of a range. `waiting` while it is held back by a bandwidth cap, which is nobody's fault."""

    flight: Flight
    abort: Callable[[], None]
    started: float
    is_extra: bool
    waiting: bool = False

    @property
    def lost(self) -> bool:
        """Whether another copy came first."""
        return self.flight.winner is not None and self.flight.winner is not self


@dataclass(eq=False, slots=True)
class Flight:
    """One range that is being fetched, and what the journal claims of it."""

    part: Part
    claim: RangeSums | None
    copies: list[Copy] = field(default_factory=list)
    winner: Copy | None = None


class Flights:
    """The ranges that are being fetched now."""

    def __init__(self, tail: Tail, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._tail, self._monotonic = tail, monotonic
        self._flying: dict[Part, Flight] = {}

    def __bool__(self) -> bool:
        """Whether any range is on its way."""
        return bool(self._flying)

    def start(self, part: Part, claim: RangeSums | None, abort: Callable[[], None]) -> Copy:
        """Note that a thread, which `abort` would wake, begins to fetch a range."""
        flight = self._flying[part] = Flight(part, claim)
        return self._copy(flight, abort, is_extra=False)

    def another(self, abort: Callable[[], None]) -> Copy | None:
        """Return one more copy of the range whose youngest one is late for longest, if any is, and the budget has its bytes."""
        now, late = self._monotonic(), None
        for flight in self._flying.values():
            copies = flight.copies
            if flight.winner is None and 0 < len(copies) < MOST_COPIES and not any(c.waiting for c in copies):
                patience = self._tail.patience_seconds(flight.part.length)
                age = now - max(c.started for c in copies)
                if patience is not None and age > patience and (late is None or age > late[0]):
                    late = age, flight
        if late is None or not self._tail.spend(late[1].part.length):
            return None
        return self._copy(late[1], abort, is_extra=True)

    def _copy(self, flight: Flight, abort: Callable[[], None], *, is_extra: bool) -> Copy:
        copy = Copy(flight, abort, self._monotonic(), is_extra)
        flight.copies.append(copy)
        return copy

    def wins(self, copy: Copy) -> bool:
        """Say whether a copy, whole now, is the first; then the others are cut."""
        flight = copy.flight
        if flight.winner is None:
            flight.winner = copy
            for other in flight.copies:
                if other is not copy:
                    other.abort()
        return flight.winner is copy

    def end(self, copy: Copy, fetched_bytes: int) -> None:
        """Forget a copy that came, lost or failed; `fetched_bytes` is what it brought."""
        flight = copy.flight
        flight.copies.remove(copy)
        if copy.lost:
            self._tail.give_back(flight.part.length - fetched_bytes)
        done = flight.winner is copy or not flight.copies  # one that lost may hang on for a while: nobody waits for it
        if done and self._flying.get(flight.part) is flight:
            del self._flying[flight.part]

    def abort(self) -> None:
        """Cut every connection that is in use."""
        for flight in self._flying.values():
            for copy in flight.copies:
                copy.abort()
