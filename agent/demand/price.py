"""What a slot of warmth must be worth to be bought: the price that spends a budget of idle time. Pure.

The best that a budget can buy is one price for all endpoints and all times: a quiet weekend should not be made as warm as a morning.
So the price is the score that the budget reached over the last weeks, and what was really spent over these weeks corrects it: a correction
by the last day would take from Monday what Sunday left.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from agent.demand.activity import RETURN_AFTER
from agent.demand.arrays import Flags, Floats, Ints, decay
from agent.demand.wall import DAY_SLOTS

LONG_IDLE = 24  # slots: 4 hours
LONG_IDLE_VALUE = 3.0  # a return after a long idle time is worth so many others: nothing else would have kept it warm
_LOWEST, _STEP, _BINS = -14.0, 0.02, 900  # of the logarithm of a score
_LONGEST_HALF_LIFE = 21 * DAY_SLOTS
_OF_HISTORY = 1 / 6  # the half-life is this share of what history there is: a young price is quick, an old one steady
_ENOUGH = (
    100  # idle slots before a price is set: two days of a single endpoint, which a fading memory never sums up to 300
)
_AT_ONCE, _BY_AND_BY = (
    3.0,
    0.02,
)  # rise of the price for a budget overspent by all there is: now, and more with every slot
_MOST = 3.0


def scores(hazard: Floats, idle: Ints) -> Floats:
    """Return the logarithm of chance times value; -inf where a request would not be a return."""
    value = np.where(idle >= LONG_IDLE, LONG_IDLE_VALUE, 1.0)
    return np.where(idle >= RETURN_AFTER, np.log(np.maximum(hazard, 1e-9) * value), -np.inf)


class Price:
    """The price of one tier, whose budget is the share of idle endpoint-time that may be warm in it."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self._scores = np.zeros(_BINS)
        self._idle = 0.0
        self._spent = 0.0  # idle slots that were warm
        self._asked = np.inf
        self._overspent = 0.0
        self._correction = 0.0
        self._slots = 0
        self._unsettled: deque[tuple[Floats, Flags]] = deque(maxlen=RETURN_AFTER - 1)

    @property
    def value(self) -> float:
        """The lowest score that is bought."""
        return self._asked + self._correction + _AT_ONCE * self._overspent

    @property
    def spent_share(self) -> float | None:
        """Share of idle time that was warm of late; None before there was any."""
        return self._spent / self._idle if self._idle else None

    def forget_unsettled(self) -> None:
        """Do not count the last slots of idle times that are not long enough yet: their endpoints have changed places."""
        self._unsettled.clear()

    def pay(self, score: Floats, warm: Flags, age: Ints) -> None:
        """Enter a slot that is over: what was asked and bought in it, and for how long each endpoint had been idle at its end.

        An idle time counts from its first slot, but only once it is long enough for a return.
        """
        entries = [(score, warm, age >= RETURN_AFTER), *((*each, age == RETURN_AFTER) for each in self._unsettled)]
        self._unsettled.append((score, warm))
        idle = sum(int(settled.sum()) for _, _, settled in entries)
        spent = sum(int((settled & bought & np.isfinite(asked)).sum()) for asked, bought, settled in entries)
        counted = np.concatenate([asked[settled & np.isfinite(asked)] for asked, _, settled in entries])
        bins = np.clip((counted - _LOWEST) / _STEP, 0, _BINS - 1).astype(np.int64)
        self._slots += 1
        forget = decay(min(max(_OF_HISTORY * self._slots, DAY_SLOTS), _LONGEST_HALF_LIFE))
        self._scores = self._scores * forget + np.bincount(bins, minlength=_BINS)
        self._idle = self._idle * forget + idle
        self._spent = self._spent * forget + spent
        if self._idle > _ENOUGH:
            self._renew()

    def _renew(self) -> None:
        reached = np.cumsum(self._scores[::-1])[::-1]  # idle slots at this score or above
        self._asked = _LOWEST + _STEP * int(np.searchsorted(-reached, -self.budget * self._idle))
        self._overspent = self._spent / self._idle - self.budget
        self._correction = float(np.clip(self._correction + _BY_AND_BY * self._overspent, -_MOST, _MOST))
