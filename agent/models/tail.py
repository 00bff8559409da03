"""How long ranges take on this node, and so which one is worth another copy, within a budget of extra bytes.

A few answers in a thousand take seconds where the others take a tenth (AWS, "Performance design patterns for Amazon S3":
ask again for the slowest). A copy that comes first spares the wait; what the slower one brought is wasted.
"""

from __future__ import annotations

import threading
from collections import deque

EXTRA_SHARE = 0.02  # of all fetched bytes may be spent on further copies
FIRST_EXTRA_BYTES = 8 << 20  # so that one range of a small model may have a second copy too
SAMPLES = 256  # of each size class: old ones tell of another hour's network
ENOUGH_SAMPLES = 16  # fewer have no tail to speak of
_MARGIN = 1.5  # past the 99th percentile, so that ordinary ranges do not eat the budget
_FLOOR_SECONDS = 0.1  # a scheduler's hiccup
_REFRESH = 16  # samples between two looks at the percentile


class Tail:
    """Shared by all threads and by all downloads of an engine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: dict[int, deque[float]] = {}
        self._counts: dict[int, int] = {}
        self._patience: dict[int, float] = {}
        self._fetched_bytes = self._extra_bytes = 0

    def took(self, length: int, seconds: float) -> None:
        """Note that a range of `length` bytes arrived `seconds` after this copy of it was asked for."""
        size = length.bit_length()
        with self._lock:
            self._fetched_bytes += length
            samples = self._samples.setdefault(size, deque(maxlen=SAMPLES))
            samples.append(seconds)
            count = self._counts[size] = self._counts.get(size, 0) + 1
            if len(samples) >= ENOUGH_SAMPLES and (size not in self._patience or count % _REFRESH == 0):
                ordered = sorted(samples)
                p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
                self._patience[size] = max(_FLOOR_SECONDS, _MARGIN * p99)

    def patience_seconds(self, length: int) -> float | None:
        """Return after how long a range of this size is unusually late; None while too little is known."""
        return self._patience.get(length.bit_length())

    def spend(self, length: int) -> bool:
        """Take the bytes of one more copy from the budget; False if they are not in it."""
        with self._lock:
            if self._extra_bytes + length > EXTRA_SHARE * self._fetched_bytes + FIRST_EXTRA_BYTES:
                return False
            self._extra_bytes += length
            return True

    def give_back(self, length: int) -> None:
        """Return what of a copy's bytes was not fetched after all."""
        with self._lock:
            self._extra_bytes -= length
