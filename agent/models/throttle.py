"""A bandwidth cap shared by threads: each asks before it reads, and waits its turn."""

from __future__ import annotations

import threading
import time


class Throttle:
    """Lets `rate` bytes a second through (0: no cap), in the order of asking, without bursts."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._next = 0.0

    def set_rate(self, bytes_per_second: int) -> None:
        """Change the cap, also while threads wait: they finish their wait at the old one."""
        with self._lock:
            self._rate, self._next = bytes_per_second, 0.0

    def wait(self, size_bytes: int, stop: threading.Event) -> None:
        """Return when `size_bytes` may be read, or at once when `stop` is set."""
        with self._lock:
            if self._rate <= 0:
                return
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + size_bytes / self._rate
        stop.wait(start - now)
