"""How each window ended, by endpoint: hit, late, unused or missed. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from agent.core.assignment import Assignment, Window
from agent.core.names import READY, endpoint_label
from agent.core.refs import EndpointKey
from agent.fleet.eligibility import closed
from agent.kube.objects import NodeView

Due = tuple[EndpointKey, datetime]


class Outcome(StrEnum):
    """How a window ended."""

    HIT = "hit"  # ready in time on every node it was planned for, and pods ran
    LATE = "late"  # ready, but after it was due
    UNUSED = "unused"  # ready in time, and no pod ran in it
    MISSED = "missed"  # never ready, or on no node at all


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWindow:
    """A window that was known before it was due: since when it is ready on all its nodes, and whether pods ran in it."""

    until: datetime
    ready_at: datetime | None = None
    used: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A window that has ended."""

    ready_by: datetime
    outcome: Outcome
    late: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Windows not ended yet, the last one that has, by endpoint, and how many ended how since this process began."""

    open: Mapping[Due, OpenWindow] = field(default_factory=dict)
    last: Mapping[EndpointKey, Entry] = field(default_factory=dict)
    totals: Mapping[tuple[EndpointKey, Outcome], int] = field(default_factory=dict)


def settled(
    ledger: Ledger,
    windows: Mapping[EndpointKey, Collection[Window]],
    ready: Collection[Due],
    used: Collection[EndpointKey],
    now: datetime,
) -> Ledger:
    """Return the ledger as of now.

    A window first seen after it was due, or taken back before it ended, is nobody's fault and is not counted. One counts as ready
    from when it was, without a break until it was due; what happens after that is not held against it.
    """
    asked = {(key, w.ready_by): w.until for key, some in windows.items() for w in some}
    still = {
        due: replace(o, until=asked.get(due, o.until))
        for due, o in ledger.open.items()
        if due in asked or o.until <= now
    }
    still |= {due: OpenWindow(until=until) for due, until in asked.items() if due[1] > now and due not in still}
    still = {due: _seen(due, o, due in ready, due[0] in used, now) for due, o in still.items()}
    ended = {due: _entry(due, o) for due, o in still.items() if o.until <= now}
    last, totals = dict(ledger.last), dict(ledger.totals)
    for (key, _), entry in sorted(ended.items(), key=lambda item: item[0]):
        last[key] = entry
        totals[key, entry.outcome] = totals.get((key, entry.outcome), 0) + 1
    return Ledger(
        open={due: o for due, o in still.items() if due not in ended},
        last={key: e for key, e in last.items() if key in windows},
        totals=totals,
    )


def ready_windows(assignments: Iterable[Assignment], nodes: Mapping[str, NodeView]) -> frozenset[Due]:
    """Return the windows for which every node that they are planned for claims to be ready; one that is away is not counted."""
    found: dict[Due, bool] = {}
    for assignment in assignments:
        node = nodes.get(assignment.node)
        if node is not None and closed(node):
            continue
        labels = node.labels if node else {}
        for want in assignment.endpoints:
            here = labels.get(endpoint_label(want.key.namespace, want.key.name)) == READY
            for window in want.windows:
                due = want.key, window.ready_by
                found[due] = here and found.get(due, True)
    return frozenset(due for due, everywhere in found.items() if everywhere)


def _seen(due: Due, window: OpenWindow, ready: bool, used: bool, now: datetime) -> OpenWindow:
    if window.until <= now:
        return replace(window, used=window.used or used)
    ready_at = window.ready_at
    if ready and ready_at is None:
        ready_at = now
    elif not ready and now < due[1]:
        ready_at = None
    return replace(window, ready_at=ready_at, used=window.used or (used and now >= due[1]))


def _entry(due: Due, window: OpenWindow) -> Entry:
    if window.ready_at is None:
        return Entry(ready_by=due[1], outcome=Outcome.MISSED)
    late = window.ready_at - due[1]
    if late >= timedelta(seconds=1):
        return Entry(ready_by=due[1], outcome=Outcome.LATE, late=late)
    return Entry(ready_by=due[1], outcome=Outcome.HIT if window.used else Outcome.UNUSED)
