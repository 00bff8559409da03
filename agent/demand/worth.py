"""Which idle models are worth a place on a full disk: those most likely used soon, for each byte they take. Pure."""

from __future__ import annotations

from datetime import timedelta

import numpy as np

from agent.demand.arrays import Flags, Floats

SOON = timedelta(hours=1)
_SWAP = 1.5  # a newcomer must be so many times as likely used as what it replaces: a download has its price


def keep(chance: Floats, size_bytes: Floats, held: Flags, room_bytes: float) -> Flags:
    """Return which idle models should be on disk: `chance` is that of a use within SOON, `held` are there already.

    What is held goes only for something more likely used; what has no chance is not fetched.
    """
    worth = chance / size_bytes * np.where(held, _SWAP, 1)
    kept = np.zeros(len(chance), bool)
    for row in np.lexsort((~held, -worth)):
        if size_bytes[row] <= room_bytes and (held[row] or worth[row] > 0):
            kept[row] = True
            room_bytes -= size_bytes[row]
    return kept
