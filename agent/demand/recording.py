"""Recorded traffic, and what a policy would have done with it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from agent.demand.activity import REPORTED_LATE, RETURN_AFTER
from agent.demand.arrays import Flags, Ints
from agent.demand.history import Track
from agent.demand.price import LONG_IDLE
from agent.demand.replay import Policy
from agent.demand.wall import DAY_SLOTS, SLOT_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An endpoint of a recording."""

    name: str
    timezone: str
    group: str
    schedule: tuple[str, ...] = ()  # declared starts of windows, as cron expressions


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Who was active in each slot of ten minutes from `start` on."""

    start: int  # seconds since 1970
    endpoints: tuple[Recorded, ...]
    active: Flags  # [endpoint, slot]
    known: Flags  # [slot], or [endpoint, slot] where they differ; False where nothing was recorded
    counted: Flags  # [slot]; False for those that are only learned from

    def at(self, slot: int) -> datetime:
        """Return when a slot begins."""
        return datetime.fromtimestamp(self.start + slot * SLOT_SECONDS, UTC)

    def known_slots(self, row: int) -> Flags:
        """Return of which slots something is known of one endpoint."""
        known: Flags = np.broadcast_to(self.known, self.active.shape)[row]
        return known


def recorded(endpoints: Sequence[Recorded], tracks: Sequence[Track], learn_days: int) -> Recording:
    """Return what is known of endpoints as a recording, from the first known slot on; the first `learn_days` are not counted.

    Raises:
        ValueError: nothing is known of any.
    """
    told = [track for track in tracks if track.known]
    first = min(track.first + _lowest(track.known) for track in told)
    count = max(track.end for track in told) - first
    bits = [track.bits(first, count) for track in tracks]
    return Recording(
        start=first * SLOT_SECONDS,
        endpoints=tuple(endpoints),
        active=np.array([_flags(active, count) for active, _ in bits]),
        known=np.array([_flags(known, count) for _, known in bits]),
        counted=np.arange(count) >= learn_days * DAY_SLOTS,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What being warm was good for, and what it cost, in the slots that count."""

    returns: int
    met: int
    long_returns: int  # after at least four hours
    long_met: int
    idle_hours: float
    wasted_hours: float


def idle_before(recording: Recording) -> Ints:
    """Return for each endpoint and slot how many idle slots came before it; -1 before the first use and after a gap until the next."""
    before = np.full(recording.active.shape, -1, np.int64)
    current = np.full(len(recording.active), -1, np.int64)
    for slot in range(recording.active.shape[1]):
        before[:, slot] = current
        idle = np.where(current >= 0, current + 1, -1)
        current = np.where(recording.active[:, slot], 0, idle)
        current = np.where(recording.known[..., slot], current, -1)
    return before


def step_through(recording: Recording, policy: Policy) -> list[Flags]:
    """Return for each budget who was warm [endpoint, slot] had a fresh policy decided, told of each slot two slots late."""
    names = np.array([endpoint.name for endpoint in recording.endpoints])
    known = np.broadcast_to(recording.known, recording.active.shape)
    warm = [np.zeros(recording.active.shape, bool) for _ in policy.forecast.prices]
    for slot in range(REPORTED_LATE, recording.active.shape[1]):
        told = slot - REPORTED_LATE
        observed = set(names[recording.active[:, told]].tolist()) if known[:, told].any() else None
        decided = policy.step_all(recording.at(slot), observed, names[~known[:, told]].tolist())
        for each, who in zip(warm, decided, strict=True):
            each[:, slot] = [name in who for name in names]
    return warm


def count(recording: Recording, warm: Flags, rows: Sequence[int] | None = None) -> Outcome:
    """Count returns met warm and idle time paid for, of all endpoints or of some."""
    chosen = np.arange(len(recording.endpoints)) if rows is None else np.array(rows)
    before, active, held = idle_before(recording)[chosen], recording.active[chosen], warm[chosen]
    known = np.broadcast_to(recording.known, recording.active.shape)[chosen]
    counted = recording.counted & known
    returns = active & (before >= RETURN_AFTER) & counted
    late = returns & (before >= LONG_IDLE)
    idle = ~active & (before >= 0) & _long_enough(active, known, before) & counted
    hours = SLOT_SECONDS / 3600
    return Outcome(
        returns=int(returns.sum()),
        met=int((returns & held).sum()),
        long_returns=int(late.sum()),
        long_met=int((late & held).sum()),
        idle_hours=float(idle.sum()) * hours,
        wasted_hours=float((idle & held).sum()) * hours,
    )


def _long_enough(active: Flags, known: Flags, before: Ints) -> Flags:
    """Return where the run of idle slots around a slot is long enough to end in a return; one that nothing ends always is."""
    slots = active.shape[1]
    ends = np.full(len(active), -1, np.int64)  # slot of the use that ends the run; -1 for none
    found = np.zeros(active.shape, bool)
    for slot in reversed(range(slots)):
        ends = np.where(known[:, slot], np.where(active[:, slot], slot, ends), -1)
        length = ends - slot + before[:, slot]
        found[:, slot] = (ends < 0) | (length >= RETURN_AFTER)
    return found


def _flags(bits: int, count: int) -> Flags:
    """Return a bitmap's bits, the lowest first."""
    content = np.frombuffer(bits.to_bytes(-(-count // 8), "little"), np.uint8)
    return np.unpackbits(content, count=count, bitorder="little").astype(bool)


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
