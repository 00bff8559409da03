"""Annotations that past traffic suggests: an endpoint that begins its working days at much the same time can declare it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from zoneinfo import ZoneInfo

import numpy as np

from agent.core.names import PREFIX
from agent.demand.price import LONG_IDLE
from agent.demand.recording import Recording, idle_before

_LEAST_DAYS = 5
_REGULAR = 60  # minutes between the earliest and the latest tenth of the mornings
_MOST = 0.6  # share of the working days that must begin so


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What to write on an endpoint, and the mornings it comes from."""

    endpoint: str
    annotations: dict[str, str]
    p10: str  # wall-clock time by which one morning in ten had begun
    p90: str
    days: int


def proposals(recording: Recording) -> Iterator[Proposal]:
    """Yield a schedule for every endpoint whose first use of the working day, after four idle hours, is regular."""
    before = idle_before(recording)
    for row, endpoint in enumerate(recording.endpoints):
        starts = np.flatnonzero(recording.active[row] & (before[row] >= LONG_IDLE) & recording.counted)
        mornings: dict[date, int] = {}
        for slot in starts:
            local = recording.at(int(slot)).astimezone(ZoneInfo(endpoint.timezone))
            if local.weekday() < 5:
                mornings.setdefault(local.date(), local.hour * 60 + local.minute)
        working_days = recording.counted.sum() / 144 * 5 / 7
        if len(mornings) < max(_LEAST_DAYS, _MOST * working_days):
            continue
        p10, p90 = (int(np.quantile(list(mornings.values()), share)) for share in (0.1, 0.9))
        if p90 - p10 <= _REGULAR:
            annotations = {
                PREFIX + "schedule": f"{p10 % 60} {p10 // 60} * * MON-FRI",
                PREFIX + "timezone": endpoint.timezone,
            }
            yield Proposal(
                endpoint=endpoint.name, annotations=annotations, p10=_clock(p10), p90=_clock(p90), days=len(mornings)
            )


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"
