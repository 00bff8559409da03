"""How many replicas the coming hour needs at its peak, such that a set share of hours is covered at the least cost. Pure.

1. A linear model, kept by recursive least squares, foretells the logarithm of the peak from what this hour brought a day and a week ago,
   and from how the present compares with those days; a second one foretells how far off it will be.
2. Its own errors of late, in those units, give the chance that a number of replicas suffices.
3. A replica more is worth it while it raises that chance by its price. The price moves with every hour covered or missed (adaptive
   conformal inference: Gibbs and Candes, 2021), which holds the share whatever is wrong with 1 and 2.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent.demand.activity import REPORTED_LATE
from agent.demand.arrays import Floats, decay

MISSED = 0.05  # share of hours that may need more than was forecast
_PACE = 0.03  # of the price, for each hour that ends
_CONCAVE = 1.0  # cost of a replica relative to the need foretold, to this power
_OFFSET = 0.3  # replicas added before the logarithm
_ERRORS_DAYS = 21
_COLUMNS = 12
_LEAST_SPREAD = 0.02


class Series(Protocol):
    """One endpoint whose demand is known as a number for each slot."""

    @property
    def demand_per_replica(self) -> float | None: ...  # noqa: D102


class LeastSquares:
    """Linear regression that forgets; solved when asked."""

    def __init__(self, columns: int, forget: float) -> None:
        self._square, self._product, self._forget = np.eye(columns) * 0.1, np.zeros(columns), forget
        self.weights: Floats = np.zeros(columns)

    def learn(self, row: Floats, value: float) -> None:
        """Enter one observation."""
        self._square = self._square * self._forget + np.outer(row, row)
        self._product = self._product * self._forget + value * row

    def solve(self) -> None:
        """Renew the weights."""
        self.weights = np.linalg.solve(self._square + 1e-6 * np.eye(len(self.weights)), self._product)


class Replicas:
    """The forecast of one series, told slot by slot what its demand was."""

    def __init__(self, demand_per_replica: float, slot_seconds: int) -> None:
        self._unit = demand_per_replica
        self._hour, self._day = 3600 // slot_seconds, 86_400 // slot_seconds
        self._need: list[float] = []  # demand in replicas, the newest slot last
        self._peak: list[float] = []  # of the hour beginning with each slot
        self._pending: deque[tuple[int, Floats, float, float, int]] = deque()
        self._mean = LeastSquares(_COLUMNS, decay(28 * self._day))
        self._spread = LeastSquares(_COLUMNS, decay(28 * self._day))
        self._errors: deque[float] = deque(maxlen=_ERRORS_DAYS * self._day)
        self._sorted: NDArray[np.float64] = np.zeros(0)
        self._price = np.log(0.02)
        self._highest = 1.0

    def forecast(self, slot_start: datetime, observed: float | None) -> float:
        """Return the replicas for the hour that begins at `slot_start`; `observed` is the demand two slots before (None: unknown)."""
        del slot_start
        self._hear(observed)
        slot = len(self._need) - 1 + REPORTED_LATE
        row = self._row(slot)
        expected = float(row @ self._mean.weights)
        spread = max(float(row @ self._spread.weights), _LEAST_SPREAD)
        held = self._held(expected, spread)
        self._pending.append((slot, row, expected, spread, held))
        return float(held)

    def _hear(self, observed: float | None) -> None:
        last = self._need[-1] if self._need else 0.0
        self._need.append(last if observed is None else observed / self._unit)
        if len(self._need) >= self._hour:
            self._peak.append(max(self._need[-self._hour :]))
            self._highest = max(self._highest, self._peak[-1])
        while self._pending and self._pending[0][0] < len(self._peak):
            self._learn(*self._pending.popleft())
        if len(self._need) % self._hour == 0:
            self._mean.solve()
            self._spread.solve()
            self._sorted = np.sort(np.array(self._errors))

    def _learn(self, slot: int, row: Floats, expected: float, spread: float, held: int) -> None:
        """Compare with what was forecast for the hour that began with `slot`."""
        peak = self._peak[slot]
        value = float(np.log(peak + _OFFSET))
        self._mean.learn(row, value)
        self._spread.learn(row, abs(value - expected))
        if len(self._peak) > 2 * self._day:
            self._errors.append((value - expected) / spread)
            self._price -= _PACE * ((peak > held) - MISSED)

    def _row(self, slot: int) -> Floats:
        """Return what the peak of the hour beginning with `slot` is told from."""
        now = len(self._need) - 1
        values = [
            self._need[now],
            max(self._need[-self._hour :]),
            _mean(self._need[-3 * self._hour :]),
            _mean(self._need[-self._day :]),
        ]
        for back in (self._day, 7 * self._day):
            values += [self._peak_at(slot - back), self._need_at(now - back)]
        week = [self._peak_at(slot - day * self._day) for day in range(1, 8) if slot - day * self._day >= 0]
        values += [
            _mean(week) if week else values[1],
            max(week) if week else values[1],
            min(week) if week else values[1],
        ]
        return np.append(np.log(np.array(values) + _OFFSET), 1.0)

    def _peak_at(self, slot: int) -> float:
        """Return the peak of that hour; where it is not known, of the last one a day or more before."""
        if slot < 0:
            slot += 6 * self._day
        return self._peak[min(slot, len(self._peak) - 1)] if self._peak and slot >= 0 else self._need[-1]

    def _need_at(self, slot: int) -> float:
        if slot < 0:
            slot += 6 * self._day
        return self._need[slot] if 0 <= slot < len(self._need) else self._need[-1]

    def _held(self, expected: float, spread: float) -> int:
        """Return the number of replicas worth their price."""
        count = np.arange(1, int(1.5 * self._highest) + 2)
        if not len(self._sorted):
            return int(np.ceil(self._highest))
        margin = (np.log(count + _OFFSET) - expected) / spread
        enough = np.searchsorted(self._sorted, margin, side="right") / len(self._sorted)
        cost = np.exp(self._price) * count / np.exp(_CONCAVE * max(expected, 0))
        return int(count[np.argmax(enough - cost)])


def replicas(endpoint: Series, slot_seconds: int) -> Replicas:
    """Return the forecast of one series."""
    return Replicas(endpoint.demand_per_replica or 1.0, slot_seconds)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
