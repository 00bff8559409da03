"""Which idle models are worth a place on a full disk: those used soon, for each byte they take. Pure."""

from __future__ import annotations

from datetime import datetime

import numpy as np

from agent.demand.activity import NEVER, REPORTED_LATE, RETURN_AFTER, Activity
from agent.demand.arrays import Flags, Floats
from agent.demand.features import look
from agent.demand.forecast import Forecast
from agent.demand.wall import SLOT, WEEK_SLOTS

_SLOTS = 6  # looked ahead: what comes later counts for less than a sixtieth
_SWAP = 2  # a newcomer must be worth so many times what it replaces: a download has its price
_DAY, _WEEK = 2, 3  # of SHARE_HALF_LIVES


def soon(forecast: Forecast, at: datetime) -> Floats:
    """Return what a place for each endpoint is worth in the slot at `at`: the chance of its next use, half as much with every slot it is away.

    0 for one never seen. What is used sooner is worth more, though both be certain within the hour: its place is free again sooner.

    What fell silent together has a common cause, and returns when that ends, whoever is active most first; it ends in the next slot with
    a chance of one in the slots it has lasted (Laplace's rule of succession). The hazard of single endpoints knows nothing of it; it counts
    as far as no such cause holds an endpoint back.
    """
    memory = forecast.memory
    usual = memory.shares[:, _DAY] / np.maximum(memory.share_chances[:, _DAY], 1)
    common = together(memory)
    alone = (1 - common) * (1 - idle_too(memory, common))
    worth, quiet = np.zeros(len(memory.sites)), np.ones(len(memory.sites))
    for slot in range(_SLOTS):
        view = look(memory, at + slot * SLOT, silent=slot)
        hazard = alone * forecast.hazard(view) + common * usual / (view.idle + 1)
        worth += quiet * hazard * 0.5**slot
        quiet *= 1 - hazard
    found: Floats = np.where(memory.age < NEVER, worth, 0)
    return found


def together(memory: Activity) -> Floats:
    """Return for each endpoint the chance that its silence has a common cause: more fell silent in the same slot than would by themselves.

    By themselves: this one, as many as usual, and two standard deviations more.
    """
    quiet = memory.certain & (memory.age >= RETURN_AFTER - 1)  # at risk in the slot that is decided
    _, which, count = np.unique(np.where(quiet, memory.age, 0), return_inverse=True, return_counts=True)
    at_risk = (memory.base[:, 1] / np.maximum(memory.share_chances[:, _WEEK], 1)).sum()
    spent = memory.by_age.sum(axis=0)[:, 1]  # in the first bin: one slot of each idle time
    usual = at_risk * spent[0] / max(spent.sum(), 1)
    chance: Floats = np.where(quiet, np.maximum(0, 1 - (1 + usual + 2 * np.sqrt(usual)) / count[which]), 0)
    return chance


def idle_too(memory: Activity, common: Floats) -> float:
    """Return the chance that a common cause holds back those who were idle already when it came.

    It took of them, for all one can see, the share that it took of those active in the slot before. Of several causes the strongest counts.
    """
    rows = np.flatnonzero((common > 0) & (memory.age < WEEK_SLOTS))  # what was before is not remembered
    ages, first, taken = np.unique(memory.age[rows], return_index=True, return_counts=True)
    active_before = memory.ago(ages + REPORTED_LATE)[0].sum(axis=1)
    return float((common[rows[first]] * taken / np.maximum(active_before, taken)).max(initial=0))


def keep(worth: Floats, size_bytes: Floats, held: Flags, room_bytes: float) -> Flags:
    """Return which idle models should be on disk: `worth` as `soon` says, `held` are there already.

    What is held goes only for something worth more; what is worth nothing is not fetched.
    """
    per_byte = worth / size_bytes * np.where(held, _SWAP, 1)
    kept = np.zeros(len(worth), bool)
    for row in np.lexsort((~held, -per_byte)):
        if size_bytes[row] <= room_bytes and (held[row] or per_byte[row] > 0):
            kept[row] = True
            room_bytes -= size_bytes[row]
    return kept
