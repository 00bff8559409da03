"""A bandwidth cap shared by threads: each asks before it reads, and waits its turn."""

from __future__ import annotations

import threading
import time

_LOOK_SECONDS = 0.1  # how often one who waits looks whether it should stop


class Throttle:
    """Lets `rate` bytes a second through (0: no cap), in the order of asking, without bursts."""

    def __init__(self, bytes_per_second: int) -> None:
        self._usual = self._rate = bytes_per_second
        self._changed = threading.Condition()
        self._next = 0.0

    @property
    def is_capped(self) -> bool:
        """Whether anybody may have to wait now."""
        return self._rate > 0

    def yield_to_others(self, bytes_per_second: int) -> None:
        """Hold to this rate at most until told otherwise; 0: only to the usual one. Those who wait hear of it at once."""
        rates = [r for r in (self._usual, bytes_per_second) if r > 0]
        with self._changed:
            rate = min(rates, default=0)
            if rate != self._rate:
                self._rate, self._next = rate, 0.0
                self._changed.notify_all()

    def wait(self, size_bytes: int, stop: threading.Event) -> None:
        """Return when `size_bytes` may be read, or soon when `stop` is set."""
        if not self.is_capped:
            return
        with self._changed:
            rate, start = 0, 0.0
            while not stop.is_set():
                now = time.monotonic()
                if rate != self._rate:  # now, and whenever the cap changes
                    rate = self._rate
                    if rate <= 0:
                        return
                    start = max(now, self._next)
                    self._next = start + size_bytes / rate
                if start <= now:
                    return
                self._changed.wait(min(start - now, _LOOK_SECONDS))
