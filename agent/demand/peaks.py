"""How many pods the next window needs at its peak, so that 95 of 100 such windows are covered, told from past ones. Pure.

What a window is compared with is the greater of the last one at that time of day and the last one at that time of the week. How far
windows were above that, in units of its square root (counts scatter so), is ranked; the forecast adds the rank that covers 95 %, with
one added to the number of ranks (split conformal prediction: Vovk et al., 2005). Each window missed raises the share that the next ones
are to cover, each one covered lowers it (adaptive conformal inference: Gibbs and Candes, 2021), so the share holds while traffic drifts.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil, floor, sqrt

MISSED = 0.05  # share of windows that may need more than was forecast
_PACE = 0.02  # of that share, with every window that ends
_LEAST, _MOST = 0.001, 0.3  # what it may be moved to
_LEARNED = 5  # windows that are only learned from


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """A past window: its start on the endpoint's own wall clock, and the pods that it needed at its peak."""

    start: datetime
    pods: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Foretold:
    """Pods for the next window, from how many past ones; `covered` of those would have been by the forecast made before each."""

    pods: int
    windows: int
    covered: float


def foretold(past: Sequence[Peak], start: datetime) -> Foretold:
    """Return the forecast for a window at `start` (on the same wall clock) after those `past`, in order."""
    seen = _Seen()
    excess: list[float] = []  # sorted
    share, tried, met = MISSED, 0, 0
    for n, peak in enumerate(past):
        like = seen.like(peak.start)
        if n >= _LEARNED:
            missed = peak.pods > _pods(like, excess, share)
            tried, met = tried + 1, met + (not missed)
            share = min(max(share + _PACE * (MISSED - missed), _LEAST), _MOST)
        if n:
            insort(excess, (peak.pods - like) / sqrt(max(like, 1)))
        seen.enter(peak)
    pods = _pods(seen.like(start), excess, share)
    return Foretold(pods=pods, windows=len(past), covered=met / tried if tried else 1.0)


class _Seen:
    """The last window at each time of day, and of the week."""

    def __init__(self) -> None:
        self._last = 0
        self._of_day: dict[tuple[int, int], int] = {}
        self._of_week: dict[tuple[int, int, int], int] = {}

    def like(self, start: datetime) -> int:
        time = (start.hour, start.minute)
        day = self._of_day.get(time, self._last)
        return max(day, self._of_week.get((start.weekday(), *time), 0))

    def enter(self, peak: Peak) -> None:
        time = (peak.start.hour, peak.start.minute)
        self._of_day[time] = self._of_week[(peak.start.weekday(), *time)] = self._last = peak.pods


def _pods(like: int, excess: Sequence[float], share: float) -> int:
    """Return what covers all but `share` of windows like this one; where there are too few to say, all of them."""
    if not excess:
        return like
    rank = min(ceil((len(excess) + 1) * (1 - share)), len(excess))
    return max(0, floor(like + excess[rank - 1] * sqrt(max(like, 1)) + 1e-9))
