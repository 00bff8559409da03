"""The forecast of a fleet: told each slot who was active, it says who is worth being warm. Pure.

The seam to whoever knows the traffic: `observe` takes the slots in order, once each, as the names of those active in it and of
those of which nothing is known; a bitmap of activity and one of knowledge for each endpoint are such slots, seen the other way. What comes
out is `decide`, who should be warm two slots on, and `agent.demand.survival`, when each is used next. `resettle` follows endpoints that
come and go. Nothing is kept but in memory: after a restart the recorded slots are told again, some 4 ms each for a thousand endpoints.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from agent.core.errors import Invalid
from agent.demand import hazard
from agent.demand.activity import NEVER, REPORTED_LATE, RETURN_AFTER, Activity, Site
from agent.demand.arrays import Flags, Floats
from agent.demand.features import FEATURES, NAMES, View, look
from agent.demand.hazard import Hazard
from agent.demand.price import Price, scores
from agent.demand.samples import Samples
from agent.demand.tally import Tally
from agent.demand.wall import DAY_SLOTS, SLOT, DayOff, weekend

_LEARN_AFTER = 2 * DAY_SLOTS  # the tables say little before
_NEW_ROWS = 0.01  # a day that adds a smaller share of rows is no reason to fit again


@dataclass(slots=True)
class _Decision:
    view: View
    chance: Floats
    score: Floats
    warm: list[Flags]  # for each price


class Forecast:
    """Hazards, prices and decisions for a set of endpoints; deterministic, and all of its state is memory."""

    def __init__(
        self, sites: Sequence[Site], budgets: Sequence[float], day_off: DayOff = weekend, without: Collection[str] = ()
    ) -> None:
        """Begin without any knowledge. Each tier has a budget; `without` names ideas of FEATURES to leave out."""
        self.memory = Activity(sites, day_off)
        self.model: Hazard | None = None
        self.prices = tuple(Price(budget) for budget in budgets)
        left_out = {name for idea in without for name in FEATURES[idea]}
        self._used = np.array([name not in left_out for name in NAMES])
        self._samples = Samples(len(sites), len(NAMES))
        self._pending: deque[_Decision] = deque(maxlen=REPORTED_LATE + 1)
        self._next: datetime | None = None
        self._fitted_rows = 0
        self.tally = Tally(len(sites))  # of the first budget

    def resettle(self, sites: Sequence[Site]) -> None:
        """Go on with these endpoints; those known already keep their memory. What was decided for the next slots is forgotten."""
        row_of = {site.name: row for row, site in enumerate(self.memory.sites)}
        self.tally.resettle(np.array([row_of.get(site.name, -1) for site in sites], np.int64))
        self.memory.resettle(sites)
        self._pending.clear()
        for price in self.prices:
            price.forget_unsettled()

    def observe(self, at: datetime, active: Collection[str] | None, unknown: Collection[str] = ()) -> None:
        """Learn who was active in the slot that began at `at`, or that nothing is known of it (None), or not of those `unknown`.

        Slots come in order; those left out in between are unknown.

        Raises:
            Invalid: if the slot is older than the newest one that was told.
        """
        if self._next is not None and at < self._next:
            raise Invalid(f"the slot at {at} was told already: tell slots in order, the next is {self._next}")
        while self._next is not None and self._next < at:
            self._observe(self._next, None, None)
        known = ~self.memory.flags(unknown) if unknown else None
        self._observe(at, None if active is None else self.memory.flags(active), known)

    def _observe(self, at: datetime, active: Flags | None, known: Flags | None) -> None:
        self._next = at + SLOT
        decision = next((each for each in self._pending if each.view.at == at), None)
        outcome = self.memory.observe(at, active, known)
        if decision is None or outcome is None:
            return
        if self.memory.slots > _LEARN_AFTER:
            rows = outcome.at_risk & (decision.view.idle >= RETURN_AFTER)
            self._samples.add(decision.view.columns[rows], outcome.returned[rows])
        self.tally.enter(outcome, decision.warm[0], decision.chance)
        age = np.where(self.memory.certain, self.memory.age, 0)
        for price, warm in zip(self.prices, decision.warm, strict=True):
            price.pay(decision.score, warm, age)

    def decide(self, at: datetime) -> tuple[frozenset[str], ...]:
        """Return for each budget who is worth being warm in the slot that begins at `at`, two slots after the newest that was told."""
        view = look(self.memory, at)
        chance = self.hazard(view)
        score = scores(chance, view.idle)
        score = np.where(self.memory.age < NEVER, score, -np.inf)
        warm = [score >= price.value for price in self.prices]
        self._pending.append(_Decision(view, chance, score, warm))
        return tuple(self.memory.names(each) for each in warm)

    def carried_out(self, at: datetime, warm: Flags) -> None:
        """Count the slot at `at`, once it is over, by who really was to be warm in it, whatever was decided for the first budget."""
        for decision in self._pending:
            if decision.view.at == at:
                decision.warm[0] = warm

    def hazard(self, view: View) -> Floats:
        """Return the chance that each endpoint returns in the slot of the view."""
        return self.model.probability(view.columns) if self.model else hazard.closed_form(view.columns)

    def refit(self) -> bool:
        """Fit the model to all that is known; return whether there is a new one. Below 5 s, so better in a thread."""
        self._fitted_rows = self._samples.added
        found = hazard.fit(self._samples.training(), self._used, self.model)
        self.model = found or self.model
        return found is not None

    def refit_is_due(self, at: datetime) -> bool:
        """Return whether a day has begun (UTC) and enough was learned since the last fit."""
        due = at.hour == 0 and at.minute == 0
        return due and self._samples.added - self._fitted_rows > _NEW_ROWS * self._fitted_rows
