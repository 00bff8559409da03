"""How often something happened at each time of the day, the recent past counting most. Pure.

Sums are kept multiplied by a weight that grows with time, so that forgetting costs one multiplication a slot instead of one a cell.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.demand.arrays import Floats, Ints, decay
from agent.demand.wall import DAY_SLOTS

_RESCALE_AT = 1e6


class SlotTable:
    """Counts of a few kinds (`channels`) for each row, kind of day and slot of the day; they halve in weight after the half-life."""

    def __init__(self, rows: int, kinds: int, half_life_days: float, channels: int) -> None:
        self.counts = np.zeros((rows, kinds * DAY_SLOTS, channels), np.float32)
        self._growth = 1 / decay(half_life_days * DAY_SLOTS)
        self._weight = 1.0

    def add(self, rows: Ints, kind: Ints, slot: Ints, counts: Floats) -> None:
        """Add one slot's counts [row, channel], each row (all different) at its own time of the day; then a slot has passed."""
        self.counts[rows, kind * DAY_SLOTS + slot] += np.float32(self._weight) * counts
        self._pass()

    def add_up(self, rows: Ints, kind: Ints, slot: Ints, counts: Floats) -> None:
        """Do the same for rows of which some are named more than once: these add up."""
        np.add.at(self.counts, (rows, kind * DAY_SLOTS + slot), np.float32(self._weight) * counts)
        self._pass()

    def around(self, rows: Ints, kind: Ints, slot: Ints, kernels: Floats) -> Floats:
        """Return the counts [row, kernel, channel] around a time of the day, weighted by kernels of odd length centred on it."""
        reach = kernels.shape[1] // 2
        cells = (slot[:, None] + np.arange(-reach, reach + 1)) % DAY_SLOTS + (kind * DAY_SLOTS)[:, None]
        flat = cells + (rows * self.counts.shape[1])[:, None]
        near = self.counts.reshape(-1, self.counts.shape[2]).take(flat, axis=0)
        return (kernels * np.float32(1 / self._weight)) @ near

    def take(self, rows: Ints) -> None:
        """Keep these rows, in this order; -1 is a new row that has seen nothing."""
        self.counts = taken(self.counts, rows)

    def _pass(self) -> None:
        self._weight *= self._growth
        if self._weight > _RESCALE_AT:
            self.counts /= np.float32(self._weight)
            self._weight = 1.0


def taken(array: NDArray[Any], rows: Ints) -> NDArray[Any]:
    """Return these rows of an array, in this order; zeros for -1."""
    kept = array[rows]
    kept[rows < 0] = 0
    return kept
