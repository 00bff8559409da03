"""What a slot of warmth must be worth to be bought: the price that spends a budget of idle time. Pure.

The best that a budget can buy is one price for all endpoints and all times: a quiet weekend should not be made as warm as a morning.
So the price is the score that the budget reached over the last weeks, and what was really spent over the last day corrects it.
"""

from __future__ import annotations

import numpy as np

from agent.demand.activity import RETURN_AFTER
from agent.demand.arrays import Flags, Floats, Ints, decay
from agent.demand.wall import DAY_SLOTS

LONG_IDLE = 24  # slots: 4 hours
LONG_IDLE_VALUE = 3.0  # a return after a long idle time is worth so many others: nothing else would have kept it warm
_LOWEST, _STEP, _BINS = -14.0, 0.02, 900  # of the logarithm of a score
_FORGET = decay(7 * DAY_SLOTS)
_ENOUGH = 300  # idle slots before a price is set
_AT_ONCE, _BY_AND_BY = 3.0, 0.08  # rise of the price for a day overspent by the whole: now, and more with every slot
_MOST = 3.0


def scores(hazard: Floats, idle: Ints) -> Floats:
    """Return the logarithm of chance times value; -inf where a request would not be a return."""
    value = np.where(idle >= LONG_IDLE, LONG_IDLE_VALUE, 1.0)
    return np.where(idle >= RETURN_AFTER, np.log(np.maximum(hazard, 1e-9) * value), -np.inf)


class Price:
    """The price of one tier, whose budget is the share of idle endpoint-time that may be warm in it."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self._spent = np.zeros((DAY_SLOTS, 2))  # warm idle and idle slots of the last day
        self._scores = np.zeros(_BINS)
        self._idle = 0.0
        self._overspent = 0.0
        self._correction = 0.0
        self._slots = 0
        self._asked = np.inf

    @property
    def value(self) -> float:
        """The lowest score that is bought."""
        return self._asked + self._correction + _AT_ONCE * self._overspent

    def pay(self, score: Floats, warm: Flags, age: Ints) -> None:
        """Enter a slot that is over: what was asked and bought in it, and for how long each endpoint had been idle at its end.

        An idle time counts from its first slot, but only once it is long enough for a return.
        """
        counted = (age >= RETURN_AFTER) & np.isfinite(score)
        idle = float((age >= RETURN_AFTER).sum() + (RETURN_AFTER - 1) * (age == RETURN_AFTER).sum())
        bins = np.clip((score[counted] - _LOWEST) / _STEP, 0, _BINS - 1).astype(np.int64)
        self._scores = self._scores * _FORGET + np.bincount(bins, minlength=_BINS)
        self._idle = self._idle * _FORGET + idle
        self._spent[self._slots % DAY_SLOTS] = (warm & counted).sum(), idle
        self._slots += 1
        self._renew()

    def _renew(self) -> None:
        if self._idle <= _ENOUGH:
            return
        reached = np.cumsum(self._scores[::-1])[::-1]  # idle slots at this score or above
        self._asked = _LOWEST + _STEP * int(np.searchsorted(-reached, -self.budget * self._idle))
        spent, idle = self._spent.sum(axis=0)
        if idle > _ENOUGH:
            self._overspent = float(spent / idle) - self.budget
            self._correction = float(np.clip(self._correction + _BY_AND_BY * self._overspent, -_MOST, _MOST))
