"""The forecast as a policy that is stepped through recorded traffic: the code that the planner runs, told the same way.

`policy(endpoints, slot_seconds, budget)` makes one; endpoints have a name, a time zone and a group, and several budgets share all but
their prices. `replicas(endpoint, slot_seconds)` is the forecast of one series' replicas.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from agent.core.errors import Invalid
from agent.demand.activity import REPORTED_LATE, Site
from agent.demand.forecast import Forecast
from agent.demand.replicas import replicas
from agent.demand.wall import SLOT, SLOT_SECONDS

__all__ = ["Policy", "Recorded", "policy", "replicas"]


class Recorded(Protocol):
    """An endpoint of a recording."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def timezone(self) -> str: ...  # noqa: D102
    @property
    def group(self) -> str: ...  # noqa: D102


class Policy:
    """Tells the forecast what was reported and asks it who should be warm."""

    def __init__(self, forecast: Forecast) -> None:
        self.forecast = forecast

    def step(self, slot_start: datetime, observed: Collection[str] | None) -> frozenset[str]:
        """Return who should be warm in the slot at `slot_start`; `observed` are those active two slots before (None: unknown)."""
        return self.step_all(slot_start, observed)[0]

    def step_all(
        self, slot_start: datetime, observed: Collection[str] | None, unknown: Collection[str] = ()
    ) -> tuple[frozenset[str], ...]:
        """Return the same for every budget; of those `unknown` nothing was reported."""
        self.forecast.observe(slot_start - REPORTED_LATE * SLOT, observed, unknown)
        if self.forecast.refit_is_due(slot_start):
            self.forecast.refit()
        return self.forecast.decide(slot_start)


def policy(endpoints: Sequence[Recorded], slot_seconds: int, *budgets: float, without: Collection[str] = ()) -> Policy:
    """Return a fresh policy for one budget or several; `without` leaves out ideas of features.

    Raises:
        Invalid: for slots of another length than the forecast's.
    """
    if slot_seconds != SLOT_SECONDS:
        raise Invalid(f"slots of {slot_seconds} s cannot be replayed: the forecast has slots of {SLOT_SECONDS} s")
    sites = [Site(name=each.name, timezone=each.timezone, groups=(each.group,)) for each in endpoints]
    return Policy(Forecast(sites, budgets, without=without))
