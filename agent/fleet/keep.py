"""Which nodes the windows of the coming hour count on, so that no autoscaler takes them away. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from agent.core.assignment import Assignment, EndpointWant
from agent.fleet.eligibility import closed
from agent.fleet.resolutions import AHEAD
from agent.kube.objects import NodeView

_Rank = tuple[int, datetime]  # the lesser is kept first: negative priority, then when it is due


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """`names` are to be kept, `left_out` as well if there were more to give; `wake_at` is when that changes by itself."""

    names: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()
    wake_at: datetime | None = None


def to_keep(assignments: Mapping[str, Assignment], nodes: Mapping[str, NodeView], now: datetime, most: int) -> Keeping:
    """Return the nodes to keep: those with an endpoint whose window is due within AHEAD or open, at most `most`.

    No node is kept for a window that is only foretold. Those of the greatest priority go first, then those due soonest. A node that nothing can be placed on is not counted on.
    """
    spans: dict[int, tuple[_Rank | None, datetime | None]] = {}
    ranks: dict[str, _Rank] = {}
    for name, assignment in assignments.items():
        for want in assignment.endpoints:
            if id(want) not in spans:  # the same want stands in the assignments of all its nodes
                spans[id(want)] = _span(want, now)
            rank = spans[id(want)][0]
            if rank and name in nodes and not closed(nodes[name]):
                ranks[name] = min(rank, ranks.get(name, rank))
    order = sorted(ranks, key=lambda name: (ranks[name], name))
    return Keeping(
        names=frozenset(order[:most]),
        left_out=frozenset(order[most:]),
        wake_at=_first(change for _, change in spans.values()),
    )


def _span(want: EndpointWant, now: datetime) -> tuple[_Rank | None, datetime | None]:
    """Return how much the next declared window counts if it does now, and when it begins or ceases to."""
    window = want.next_promise(now)
    if window is None:
        return None, None
    begins = window.ready_by - AHEAD
    return ((-want.priority, window.ready_by), window.until) if begins <= now else (None, begins)


def _first(times: Iterable[datetime | None]) -> datetime | None:
    return min((t for t in times if t), default=None)
