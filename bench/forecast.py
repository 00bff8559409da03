"""What the forecast costs the planner: a step for each ten minutes, the fit of each day, and memory.

    python -m bench.forecast [ENDPOINTS [DAYS]]

Endpoints work by day in ten time zones, some busy, some rarely used, some by the clock of a machine. A step is what the planner does
for a slot: `observe` and `decide`. Times are of the CPU, all threads together; what else the machine does makes them longer all the same.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from agent.demand.activity import REPORTED_LATE, Site
from agent.demand.arrays import Flags
from agent.demand.forecast import Forecast
from agent.demand.wall import DAY_SLOTS, SLOT

START = datetime(2026, 3, 2, tzinfo=UTC)  # a Monday; the clocks change within the month
ZONES = (
    "America/Los_Angeles",
    "America/New_York",
    "America/Sao_Paulo",
    "UTC",
    "Europe/London",
    "Europe/Berlin",
    "Asia/Kolkata",
    "Asia/Shanghai",
    "Asia/Tokyo",
    "Australia/Sydney",
)
MEMBERS = 20  # of a group


@dataclass(slots=True, kw_only=True)
class Cost:
    """CPU time of every step and of every fit."""

    steps_ms: list[float] = field(default_factory=list)
    fits_s: list[float] = field(default_factory=list)


def traffic(endpoints: int, slots: int) -> Iterator[Flags]:
    """Yield who is active in each slot."""
    random = np.random.default_rng(7)
    rows = np.arange(endpoints)
    rate = np.exp(random.uniform(np.log(0.01), np.log(0.9), endpoints))
    opens, every = random.integers(0, DAY_SLOTS, endpoints), random.choice([6, 12, 36, 72], endpoints)
    for slot in range(slots):
        at_work = ((slot - opens) % DAY_SLOTS < 60) & (slot // DAY_SLOTS % 7 < 5)
        people = at_work & (random.random(endpoints) < rate)
        yield np.where(rows % 10 == 0, (slot + opens) % every == 0, people)


def run(endpoints: int, days: int) -> Cost:
    """Step a fresh forecast through the days."""
    sites = [
        Site(name=f"e{row}", timezone=ZONES[row % len(ZONES)], groups=(f"g{row // MEMBERS}", f"m{row % MEMBERS}"))
        for row in range(endpoints)
    ]
    names = np.array([site.name for site in sites])
    forecast, cost = Forecast(sites, [0.2]), Cost()
    for slot, active in enumerate(traffic(endpoints, days * DAY_SLOTS)):
        who, at = names[active].tolist(), START + slot * SLOT
        began = time.process_time()
        forecast.observe(at, who)
        forecast.decide(at + REPORTED_LATE * SLOT)
        cost.steps_ms.append(1000 * (time.process_time() - began))
        if forecast.refit_is_due(at + REPORTED_LATE * SLOT):
            began = time.process_time()
            if forecast.refit():
                cost.fits_s.append(time.process_time() - began)
    return cost


def main() -> None:
    """Print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("endpoints", nargs="?", type=int, default=1000)
    parser.add_argument("days", nargs="?", type=int, default=30)
    asked = parser.parse_args()
    cost = run(asked.endpoints, asked.days)
    slowest = sorted(enumerate(cost.steps_ms), key=lambda each: -each[1])[:5]
    print(f"{asked.endpoints} endpoints, {asked.days} days of {DAY_SLOTS} steps, CPU time")
    print(f"step: mean {np.mean(cost.steps_ms):.2f} ms, p99 {np.percentile(cost.steps_ms, 99):.2f} ms")
    print("slowest steps:", ", ".join(f"{ms:.1f} ms (no. {step})" for step, ms in slowest))
    print(
        f"fit: {len(cost.fits_s)} times, mean {np.mean(cost.fits_s):.2f} s, longest {max(cost.fits_s, default=0):.2f} s"
    )
    print(f"memory of the process at its highest: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
