"""The forecast's quality on recorded traffic: every second endpoint of a public trace.

The trace is ServeGen's (github.com/alibaba/ServeGen, Apache-2.0): clients of an LLM service, each as an endpoint. A line of recorded.csv
has one bit for each slot, the first in the lowest bit of the first byte. docs/forecast.md has the numbers of the whole.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from agent.demand import replay
from agent.demand.recording import Recorded, Recording, count, step_through
from agent.demand.wall import DAY_SLOTS, SLOT_SECONDS

START = 1728921600  # a Monday, 16:00 UTC
DAYS, LEARN_DAYS = 14, 7


def recording() -> Recording:
    """Read the cut of the trace that is kept here."""
    with Path(__file__).with_name("recorded.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    bits = np.array([np.frombuffer(bytes.fromhex(row["active"]), np.uint8) for row in rows])
    return Recording(
        start=START,
        endpoints=tuple(Recorded(name=r["endpoint"], timezone=r["timezone"], group=r["group"]) for r in rows),
        active=np.unpackbits(bits, axis=1, count=DAYS * DAY_SLOTS, bitorder="little").astype(bool),
        known=np.ones(DAYS * DAY_SLOTS, bool),
        counted=np.arange(DAYS * DAY_SLOTS) >= LEARN_DAYS * DAY_SLOTS,
    )


def test_most_returns_of_recorded_traffic_are_met_within_the_budget() -> None:
    found = recording()
    policy = replay.policy(found.endpoints, SLOT_SECONDS, 0.2)
    outcome = count(found, step_through(found, policy)[0])
    assert policy.forecast.model is not None
    assert outcome.returns > 700, "enough to tell"
    assert outcome.wasted_hours / outcome.idle_hours < 0.24
    assert outcome.met / outcome.returns > 0.78, "80 %; 75 % by the closed form, without any fit"
    assert outcome.long_met / outcome.long_returns > 0.6, "64 %; 55 % by the closed form"
