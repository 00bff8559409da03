"""What the hazard is fitted to: past features and whether a return followed. Bounded, deterministic. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.demand.arrays import Flags, Floats
from agent.demand.wall import DAY_SLOTS

CAPACITY = 120_000
_DAYS_WANTED = 28  # a large fleet is thinned so that the newest rows reach back so far
_QUIET_EVERY = 4  # rows without a return are many and alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Rows, whether a return happened, and for how many rows each stands."""

    columns: Floats
    returned: Floats
    counts: Floats


class Samples:
    """The newest rows, thinned by fixed shares: of those with a return fewer are left out than of those without."""

    def __init__(self, endpoints: int, columns: int) -> None:
        daily = endpoints * DAY_SLOTS
        self._quiet_every = max(_QUIET_EVERY, daily * _DAYS_WANTED // CAPACITY)
        self._return_every = max(1, self._quiet_every // 16)
        self._columns = np.zeros(
            (CAPACITY, columns), np.float32
        )  # takes memory as it fills: grown by copies, it would halt a step
        self._returned = np.zeros(CAPACITY, np.float32)
        self._counts = np.zeros(CAPACITY, np.float32)
        self._passed = [0, 0]  # rows without and with a return that came by
        self.added = 0
        self.returns = 0

    def add(self, columns: Floats, returned: Flags) -> None:
        """Take some of these rows; the oldest make room."""
        kept = np.zeros(len(returned), bool)
        for kind, every in ((False, self._quiet_every), (True, self._return_every)):
            rows = np.flatnonzero(returned == kind)
            kept[rows[(self._passed[kind] + np.arange(len(rows))) % every == 0]] = True
            self._passed[kind] += len(rows)
        count = int(kept.sum())
        at = (self.added + np.arange(count)) % CAPACITY
        self._columns[at] = columns[kept]
        self._returned[at] = returned[kept]
        self._counts[at] = np.where(returned[kept], self._return_every, self._quiet_every)
        self.added += count
        self.returns += int(returned[kept].sum())

    def training(self) -> Training:
        """Return all rows that are kept, as views: use them before the next `add`."""
        count = min(self.added, CAPACITY)
        return Training(columns=self._columns[:count], returned=self._returned[:count], counts=self._counts[:count])
