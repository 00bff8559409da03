"""Backoff with full jitter, as a pure sequence (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015)."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait after the n-th failure in a row: uniform in [floor, min(cap, base * 2**n)] seconds."""

    base_seconds: float = 0.5
    cap_seconds: float = 30.0
    floor_seconds: float = 0.1
    failures: int = 0

    def failed(self) -> Backoff:
        """Return the state after one more failure."""
        return replace(self, failures=min(self.failures + 1, 32))

    def delay_seconds(self, rng: random.Random) -> float:
        """Return the seconds to wait now."""
        top = min(self.cap_seconds, self.base_seconds * 2.0 ** max(self.failures - 1, 0))
        return max(self.floor_seconds, rng.uniform(0, top))
