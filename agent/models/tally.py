"""What became of the ranges that this node asked for, counted since the start: for metrics."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum


class Outcome(StrEnum):
    """What became of one range."""

    OK = "ok"
    HEDGED = "hedged"  # a further copy of it came first
    RETRIED = "retried"  # it failed and was asked for again
    CORRUPT = "corrupt"  # its file's checksum differed from the source's, and all of the file was fetched again


class Tally:
    """Counted by threads, read by anybody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: Counter[Outcome] = Counter()
        self._fetched_bytes = 0

    def add(self, outcome: Outcome, count: int = 1) -> None:
        """Count ranges."""
        with self._lock:
            self._parts[outcome] += count

    def fetched(self, size_bytes: int) -> None:
        """Count bytes that came over the wire, also such as were thrown away."""
        with self._lock:
            self._fetched_bytes += size_bytes

    @property
    def parts(self) -> Mapping[str, int]:
        """Return how many ranges had each outcome."""
        with self._lock:
            return {outcome.value: self._parts[outcome] for outcome in Outcome}

    @property
    def fetched_bytes(self) -> int:
        """Return all bytes that came over the wire."""
        with self._lock:
            return self._fetched_bytes
