"""How often something happened at each time of the day, the recent past counting most. Pure.

Sums are kept multiplied by a weight that grows with time, so that forgetting costs one multiplication a slot instead of one a cell.
Cells lie by time first: a slot then touches few pages where rows of one clock have neighbouring numbers. With a page for each row, waiting
for memory took longer than the sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.demand.arrays import Floats, Ints, decay
from agent.demand.wall import DAY_SLOTS

_RESCALE_AT = 1e6
_OF_DAY = np.tile(np.arange(DAY_SLOTS), 2)  # slot by a number of -144 to 287: faster than %


class SlotTable:
    """Counts of a few kinds (`channels`) for each row, kind of day and slot of the day; they halve in weight after the half-life."""

    def __init__(self, rows: int, kinds: int, half_life_days: float, channels: int) -> None:
        self.counts = np.zeros((kinds * DAY_SLOTS, rows, channels), np.float32)
        self._growth = 1 / decay(half_life_days * DAY_SLOTS)
        self._weight = 1.0

    def add(self, rows: Ints, kind: Ints, slot: Ints, counts: Floats) -> None:
        """Add one slot's counts [row, channel], each row at its own time of the day; then a slot has passed.

        Rows may be named more than once: these add up.
        """
        at = (kind * DAY_SLOTS + slot) * self.counts.shape[1] + rows
        add_at(self.counts, at, np.float32(self._weight) * counts)
        self._weight *= self._growth
        if self._weight > _RESCALE_AT:
            self.counts /= np.float32(self._weight)
            self._weight = 1.0

    def around(self, rows: Ints, kind: Ints, slot: Ints, kernels: Floats) -> Floats:
        """Return the counts [kernel, row, channel] around a time of the day, weighted by kernels of odd length centred on it."""
        _, height, channels = self.counts.shape
        reach = kernels.shape[1] // 2
        at = _OF_DAY.take(slot + np.arange(-reach, reach + 1)[:, None])
        at *= height
        at += kind * (DAY_SLOTS * height) + rows
        cells, weights = self.counts.reshape(-1, channels), kernels * np.float32(1 / self._weight)
        if len(kernels) == 1:
            # Row by row: one product for all would add up in an order that depends on how many there are.
            return (weights @ cells.take(at.T, axis=0)).transpose(1, 0, 2)
        near = cells.take(at, axis=0).reshape(len(at), -1)
        return (near.T @ weights.T).T.reshape(len(kernels), len(rows), channels)

    def take(self, rows: Ints) -> None:
        """Keep these rows, in this order; -1 is a new row that has seen nothing."""
        self.counts = taken(self.counts, rows, axis=1)


def add_at(table: Floats, at: Ints, counts: Floats) -> None:
    """Add counts [i, channel] to the cells `at` of a table [..., channel], numbered as they lie; one may be named more than once."""
    cells = table.reshape(-1, table.shape[-1])  # no copy, for `taken` leaves tables contiguous
    for channel, count in enumerate(counts.T):
        np.add.at(cells[:, channel], at, count)  # fast for one dimension only


def taken(array: NDArray[Any], rows: Ints, axis: int = 0) -> NDArray[Any]:
    """Return these rows of an array, which lie along the axis, in this order; zeros for -1. It is contiguous."""
    kept = array.take(rows, axis)
    np.moveaxis(kept, axis, 0)[rows < 0] = 0
    return kept
