"""How fast this node fetches: the rate that nine in ten of its measurements reached (p10). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LEAST_SAMPLES = 6
MOST_SAMPLES = 2160  # six hours of downloading, one in ten seconds: rates differ more between hours than within


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The last measurements, in bytes per second, oldest first; how many of them are of what runs now."""

    samples: tuple[int, ...] = ()
    running: int = 0

    @property
    def bytes_per_second(self) -> float:
        """Return the p10 rate; 0 while there are too few measurements to tell."""
        if len(self.samples) < LEAST_SAMPLES:
            return 0.0
        return float(sorted(self.samples)[len(self.samples) // 10])

    @property
    def present_bytes_per_second(self) -> float:
        """Return the better of the last two rates of what runs now; 0 before there are two."""
        return float(max(self.samples[-2:])) if self.running > 1 else 0.0

    def with_sample(self, bytes_per_second: float) -> Pace:
        """Return the pace with one measurement more."""
        samples = (*self.samples, max(1, round(bytes_per_second)))[-MOST_SAMPLES:]
        return Pace(samples=samples, running=self.running + 1)

    def paused(self) -> Pace:
        """Return the pace while nothing runs."""
        return Pace(samples=self.samples) if self.running else self


def parse_pace(value: object) -> Pace:
    """Read what `format_pace` wrote; anything else is no pace."""
    samples = value.get("samples") if isinstance(value, Mapping) else None
    if not isinstance(samples, list) or not all(type(s) is int and 0 < s < 2**50 for s in samples):
        return Pace()
    return Pace(samples=tuple(samples[-MOST_SAMPLES:]))


def format_pace(pace: Pace) -> dict[str, object]:
    """Return the pace as JSON."""
    return {"samples": list(pace.samples)}
