"""How often something happened at each time of the day, the recent past counting most. Pure.

Sums are kept multiplied by a weight that grows with time, so that forgetting costs one multiplication a slot instead of one a cell.
"""

from __future__ import annotations

import numpy as np

from agent.demand.arrays import Floats, Ints, decay
from agent.demand.wall import DAY_SLOTS

_RESCALE_AT = 1e6


class SlotTable:
    """Events and chances for each row, kind of day and slot of the day; both halve in weight after the half-life."""

    def __init__(self, rows: int, kinds: int, half_life_days: float) -> None:
        self.events = np.zeros((rows, kinds * DAY_SLOTS), np.float32)
        self.chances = np.zeros((rows, kinds * DAY_SLOTS), np.float32)
        self._growth = 1 / decay(half_life_days * DAY_SLOTS)
        self._weight = 1.0

    def add(self, rows: Ints, kind: Ints, slot: Ints, events: Floats, chances: Floats) -> None:
        """Add one slot's events and chances, each row at its own time of the day; then a slot has passed."""
        at = (rows, kind * DAY_SLOTS + slot)
        np.add.at(self.events, at, self._weight * events)
        np.add.at(self.chances, at, self._weight * chances)
        self._weight *= self._growth
        if self._weight > _RESCALE_AT:
            self.events /= self._weight
            self.chances /= self._weight
            self._weight = 1.0

    def around(self, rows: Ints, kind: Ints, slot: Ints, kernel: Floats) -> tuple[Floats, Floats]:
        """Return events and chances around a time of the day, weighted by a kernel of odd length centred on it."""
        reach = len(kernel) // 2
        cells = (slot[:, None] + np.arange(-reach, reach + 1)) % DAY_SLOTS + (kind * DAY_SLOTS)[:, None]
        flat = cells + (rows * self.events.shape[1])[:, None]
        scale = np.float32(1 / self._weight)
        return self.events.take(flat) @ kernel * scale, self.chances.take(flat) @ kernel * scale

    def take(self, rows: Ints) -> None:
        """Keep these rows, in this order; -1 is a new row that has seen nothing."""
        self.events, self.chances = taken(self.events, rows), taken(self.chances, rows)


def taken(array: np.ndarray, rows: Ints) -> np.ndarray:  # type: ignore[type-arg]
    """Return these rows of an array, in this order; zeros for -1."""
    kept = array[rows]
    kept[rows < 0] = 0
    return kept
