"""How many ranges this node asks for at once: one more after a clean round, half as many after a refusal (AIMD).

S3 says 503 SlowDown to who asks too much (AWS: some 5,500 reads a second and prefix); a hundred nodes that open a window
at nine o'clock find the share that is theirs only if each gives way at once and comes back slowly (Chiu and Jain 1989).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

ROUND_SECONDS = 0.5  # refusals of one round count once
_LOOK_SECONDS = 0.2  # how often one who waits looks whether it should stop


class Concurrency:
    """Slots for threads; `most` is never exceeded, and one is always free to be used."""

    def __init__(self, most: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._most, self._limit = most, float(most)
        self._used, self._waiting, self._cut_at = 0, 0, float("-inf")
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._free = threading.Condition(self._lock)

    @property
    def limit(self) -> int:
        """Return how many slots there are now."""
        return int(self._limit)

    @property
    def held(self) -> int:
        """Return how many slots are taken; more than `limit` for a while after a refusal."""
        return self._used

    def take(self, stopped: Callable[[], None]) -> None:
        """Take a slot; `stopped` is called while waiting for one, and raises to end that."""
        with self._lock:
            self._waiting += 1
            try:
                while self._used >= self.limit:
                    self._free.wait(_LOOK_SECONDS)
                    stopped()
            finally:
                self._waiting -= 1
            self._used += 1

    def take_if_free(self) -> bool:
        """Take a slot if one is free and nobody waits for it; else False."""
        with self._lock:
            if self._waiting or self._used >= self.limit:
                return False
            self._used += 1
            return True

    def give_back(self) -> None:
        """Give a slot back."""
        with self._lock:
            self._used -= 1
            self._free.notify()

    def served(self) -> None:
        """Note a range that came: after `limit` of them there is one slot more."""
        with self._lock:
            self._limit = min(float(self._most), self._limit + 1 / self._limit)
            self._free.notify()

    def refused(self) -> None:
        """Note that the server was busy or broke the connection: half the slots, once a round."""
        now = self._monotonic()
        with self._lock:
            if now - self._cut_at >= ROUND_SECONDS:
                self._cut_at = now
                self._limit = max(1.0, self._limit / 2)
