from __future__ import annotations

import numpy as np
import pytest

from agent.demand.arrays import Floats
from agent.demand.slot_table import SlotTable
from agent.demand.wall import DAY_SLOTS

KERNELS = np.array([[0.5, 1, 0.25], [0, 1, 0], [1, 1, 1]], np.float32)
ROWS, KINDS = 4, 2


def told() -> tuple[SlotTable, Floats]:
    """A table and what it was told [row, kind, slot, channel], which has hardly faded."""
    random = np.random.default_rng(5)
    table, counts = SlotTable(ROWS, KINDS, 1e9, 2), np.zeros((ROWS, KINDS, DAY_SLOTS, 2), np.float32)
    for _ in range(400):
        rows, kind, slot = np.arange(ROWS), random.integers(0, KINDS, ROWS), random.integers(0, DAY_SLOTS, ROWS)
        seen = random.integers(0, 3, (ROWS, 2)).astype(np.float32)
        table.add(rows, kind, slot, seen)
        counts[rows, kind, slot] += seen
    return table, counts


@pytest.mark.parametrize("kernels", [KERNELS, KERNELS[:1]])
def test_the_slots_around_are_of_the_same_kind_of_day_also_across_midnight(kernels: Floats) -> None:
    table, counts = told()
    rows, kind, slot = np.array([2, 0, 1, 3, 0]), np.array([1, 0, 1, 0, 1]), np.array([0, 143, 72, 1, 142])
    found = table.around(rows, kind, slot, kernels)
    for i, (row, off, at) in enumerate(zip(rows, kind, slot, strict=True)):
        near = counts[row, off, [(at - 1) % DAY_SLOTS, at, (at + 1) % DAY_SLOTS]]
        assert found[:, i] == pytest.approx(kernels @ near, rel=1e-5)


def test_rows_named_more_than_once_add_up() -> None:
    table = SlotTable(2, 1, 7, 1)
    table.add(np.array([1, 1, 0]), np.zeros(3, int), np.array([5, 5, 5]), np.array([[1], [2], [4]], np.float32))
    assert table.counts[5].tolist() == [[4], [3]]


def test_rows_move_and_go_on_counting() -> None:
    table, _ = told()
    before = table.counts.copy()
    table.take(np.array([3, -1, 0]))
    assert np.array_equal(table.counts[:, [0, 2]], before[:, [3, 0]])
    assert not table.counts[:, 1].any()
    table.add(np.array([1]), np.array([1]), np.array([7]), np.ones((1, 2), np.float32))
    assert table.counts[DAY_SLOTS + 7, 1] == pytest.approx([1, 1])
