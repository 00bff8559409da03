"""What became of a forecast's decisions, for each endpoint: what shadow has to show for itself. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.demand.activity import Outcome
from agent.demand.arrays import Flags, Floats, Ints, decay
from agent.demand.foretold import Fared
from agent.demand.slot_table import taken
from agent.demand.wall import WEEK_SLOTS

_DECAY = decay(WEEK_SLOTS)


class Tally:
    """Counts; rows are endpoints."""

    def __init__(self, endpoints: int) -> None:
        self._counts = np.zeros((endpoints, 4))

    def enter(self, outcome: Outcome, warm: Flags, chance: Floats) -> None:
        """Count a slot that is over: who was to be warm in it, and with which chance a return was expected."""
        returned, at_risk = outcome.returned, outcome.at_risk
        counts = [returned, returned & warm, np.where(at_risk, chance, 0), at_risk & ~returned & warm]
        self._counts = self._counts * _DECAY + np.stack(counts, axis=1)

    def resettle(self, rows: Ints) -> None:
        """Keep these rows, in this order; -1 is a new one."""
        self._counts = taken(self._counts, rows)

    def fared(self) -> Sequence[Fared]:
        """Return the counts of each row."""
        return [
            Fared(returns=returns, met=met, expected=expected, idle_slots=idle)
            for returns, met, expected, idle in self._counts.tolist()
        ]
