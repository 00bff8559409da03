"""Predicted windows: made of the steps of a forecast, and steady from one forecast to the next. Pure, and free of numpy.

They begin and end on half hours, and reach as far as the end of a six-hour step, so that a forecast that wavers or moves on does not
change every node's plan every ten minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from agent.core.assignment import Window, WindowSource
from agent.core.refs import EndpointKey

MAX_PREDICTED = 20  # windows of one endpoint
_EDGE = timedelta(minutes=30)
_REACH, _STEP = timedelta(hours=24), timedelta(hours=6)
_LONGEST = timedelta(hours=24)  # of one that is held open: how it ended is to be seen, and another begins
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Windows = Mapping[EndpointKey, tuple[Window, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fared:
    """Of one endpoint, a slot counting half after a week: returns, those met warm, those expected, and idle slots kept warm."""

    returns: float
    met: float
    expected: float
    idle_slots: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Foretold:
    """What is foretold of endpoints, and how the decisions of the last weeks fared.

    `idle_share` is the share of idle time that was warm for nothing; None before there was any.
    """

    windows: Windows = field(default_factory=dict)
    fared: Mapping[EndpointKey, Fared] = field(default_factory=dict)
    idle_share: float | None = None
    failures: int = 0

    @property
    def calibration(self) -> float | None:
        """Returns expected over returns seen, 1 where chances are right; None before any was seen."""
        expected, returns = (sum(getattr(f, name) for f in self.fared.values()) for name in ("expected", "returns"))
        return expected / returns if returns else None


def horizon(now: datetime) -> datetime:
    """Return how far is foretold at `now`: 24 to 30 hours."""
    return now - (now - _EPOCH) % _STEP + _STEP + _REACH


def runs(steps: Sequence[int], chance: Sequence[float], edges: Sequence[datetime]) -> tuple[Window, ...]:
    """Return a window for each run of `steps` that are worth it; those that touch after rounding are one.

    Step n is from edge n to edge n + 1, and the endpoint is used in it, if at all, with this chance.
    """
    found: list[tuple[datetime, datetime, float]] = []
    for step in steps:
        begin, end, quiet = _floor(edges[step]), _ceil(edges[step + 1]), 1 - chance[step]
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]), found[-1][2] * quiet)
        else:
            found.append((begin, end, quiet))
    return tuple(
        Window(ready_by=begin, until=end, source=WindowSource.PREDICTED, confidence=_tens(1 - quiet))
        for begin, end, quiet in found[:MAX_PREDICTED]
    )


def lasting(standing: Sequence[Window], found: tuple[Window, ...], awake: bool, now: datetime) -> tuple[Window, ...]:
    """Return the windows found now, but a standing one that is open is not taken back: it can be lengthened, or end at the next edge.

    So it is seen how it ended. While the endpoint is `awake`, it lasts: that it is used is what it was for. One that is lengthened is
    as likely as what it is lengthened by; after 24 hours another one begins where it ends.
    """
    begun = next((w for w in standing if w.ready_by <= now < w.until), None)
    if begun is None:
        return found
    until, later = begun.until if awake else min(begun.until, _floor(now) + _EDGE), []
    last, confidence = begun.ready_by + _LONGEST, begun.confidence
    for window in found:
        if window.ready_by > until:
            later.append(window)
        elif window.until > until:
            until, confidence = window.until, window.confidence
    if until > last:
        later.insert(0, replace(begun, ready_by=last, until=until, confidence=confidence))
    return replace(begun, until=min(until, last), confidence=confidence), *later


def _tens(chance: float) -> int:
    return min(90, max(10, round(10 * chance) * 10))


def _floor(at: datetime) -> datetime:
    return at - (at - _EPOCH) % _EDGE


def _ceil(at: datetime) -> datetime:
    return at + (_EPOCH - at) % _EDGE
