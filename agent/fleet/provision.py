"""Which endpoints ask for nodes that do not exist yet, how many, and from when on. Pure.

Whether there is room only the scheduler knows, so it is asked: a placeholder that is bound at once found room and no node is
needed; one that waits is what an autoscaler brings a node for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from statistics import median
from types import MappingProxyType

from agent.core.assignment import EndpointWant, Window
from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint, WorkloadRef
from agent.demand.windows import softened
from agent.fleet.eligibility import Needs
from agent.fleet.yields import ASSUMED_BYTES_PER_SECOND, NodeYield, items_of
from agent.kube.placeholders import WAITED_SECONDS, PlaceholderView, Shape

MEASURED = 3  # arrivals that make a lead
REMEMBERED = 50
_MOST_LEAD = timedelta(hours=2)
_MOST_WARMING = timedelta(hours=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision:
    """An endpoint with `provision: on`. `warming` is what its bytes take on a new node; `running` if it has any pod."""

    key: EndpointKey
    workload: WorkloadRef
    shape: Shape
    nodes: int
    priority: int
    warming: timedelta
    windows: tuple[Window, ...]
    running: bool = False

    def begins(self, window: Window, lead: timedelta) -> datetime:
        """Return when nodes are asked for, if one takes `lead` to come."""
        return window.ready_by - lead - self.warming

    def open_window(self, now: datetime, lead: timedelta, over: datetime | None = None) -> Window | None:
        """Return the window for which nodes are wanted now; `over` is until when its placeholders were made to stand.

        A window that has them stays open however much sooner nodes are reckoned to come by now: else the nodes would go, and come again.
        """
        for window in self.windows:
            begins = self.begins(window, lead)
            if over is not None and window.ready_by < over:
                begins = min(begins, window.ready_by - _MOST_LEAD - _MOST_WARMING)
            if begins <= now < window.until:
                return window
        return None

    def next_change(self, now: datetime, lead: timedelta) -> datetime | None:
        """Return when the next window begins to want nodes, is due, or ends."""
        times = (t for w in self.windows for t in (self.begins(w, lead), w.ready_by, w.until))
        return min((t for t in times if t > now), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What one endpoint wants now, and how much of it the cap leaves."""

    provision: Provision
    window: Window
    wanted: int
    count: int


class Answer(Enum):
    """What the placeholders of an endpoint have found out."""

    OPEN = auto()  # not known yet
    ROOM = auto()  # there was a place for all of them at once: no node is needed
    NONE = auto()  # some had to wait for a node, or still do


def provisions(
    endpoints: Iterable[Endpoint],
    wants: Mapping[EndpointKey, EndpointWant],
    windows: Mapping[EndpointKey, tuple[Window, ...]],
    used: Collection[EndpointKey],
    yields: Mapping[str, NodeYield],
) -> tuple[Provision, ...]:
    """Return the endpoints that ask for nodes; what no node at all could match asks for none."""
    asking = [e for e in endpoints if e.provision]
    pace = (
        median([y.bytes_per_second for y in yields.values() if y.measured] or [ASSUMED_BYTES_PER_SECOND])
        if asking
        else 0
    )
    found = []
    for endpoint in asking:
        needs, want = Needs.of(endpoint.spec, endpoint.gpus), wants.get(endpoint.key)
        if needs.terms == ():
            continue
        seconds = sum(items_of(want).values()) / pace if want else 0.0
        found.append(
            Provision(
                key=endpoint.key,
                workload=endpoint.workload,
                shape=Shape(
                    selector=needs.selector,
                    terms=needs.terms,
                    tolerations=needs.tolerations,
                    requests=endpoint.spec.requests,
                    runtime_class=endpoint.runtime_class,
                ),
                nodes=endpoint.nodes or 1,  # of `all` there may be none: one brings up the first
                priority=endpoint.priority,
                warming=min(_MOST_WARMING, timedelta(minutes=-(-seconds // 60))),
                windows=windows.get(endpoint.key, ()),
                running=endpoint.key in used,
            )
        )
    return tuple(found)


def asks(
    found: Iterable[Provision],
    now: datetime,
    lead: timedelta,
    most: int,
    *,
    over: Mapping[EndpointKey, datetime] = MappingProxyType({}),
    roomy: Collection[EndpointKey] = (),
    resting: Collection[EndpointKey] = (),
) -> list[Ask]:
    """Return what is wanted now, at most `most` in all: those of greater priority first, then those due sooner.

    An endpoint that has pods wants none: each of them asks for what it needs by itself. One of `roomy` had room when it last asked,
    and comes after all others, so that asking again takes nothing from them; one of `resting` does not ask just now.
    Of `over` see `Provision.open_window`.
    """
    opened = [(p, w) for p in found if not p.running and (w := p.open_window(now, lead, over.get(p.key)))]
    opened.sort(key=lambda pair: (pair[0].key in roomy, -pair[0].priority, pair[1].ready_by, pair[0].key))
    asked, left = [], most
    for provision, window in opened:
        wanted = -(-provision.nodes // 3) if softened(window) else provision.nodes
        count = 0 if provision.key in resting else min(wanted, left)
        asked.append(Ask(provision=provision, window=window, wanted=wanted, count=count))
        left -= count
    return asked


def answer(ask: Ask, mine: Sequence[PlaceholderView], now: datetime) -> Answer:
    """Return what the living placeholders of an endpoint say."""
    if any(p.waited or waits(p, now) for p in mine):
        return Answer.NONE
    return Answer.ROOM if len(mine) == ask.count and all(p.node for p in mine) else Answer.OPEN


def waits(placeholder: PlaceholderView, now: datetime) -> bool:
    """Say whether it has been without a node for so long that there is no room."""
    age = (now - placeholder.created).total_seconds() if placeholder.created else 0.0
    return not placeholder.node and age >= WAITED_SECONDS


def held(placeholders: Iterable[PlaceholderView]) -> Mapping[EndpointKey, frozenset[str]]:
    """Return the nodes that placeholders hold, by endpoint, where any node had to be waited for."""
    nodes: defaultdict[EndpointKey, set[str]] = defaultdict(set)
    waited = set()
    for each in placeholders:
        if each.alive and each.node:
            nodes[each.key].add(each.node)
            if each.waited:
                waited.add(each.key)
    return {key: frozenset(nodes[key]) for key in waited}


def preferring(
    previous: Mapping[str, tuple[EndpointKey, ...]], holding: Mapping[EndpointKey, frozenset[str]]
) -> Mapping[str, tuple[EndpointKey, ...]]:
    """Return a placement by which endpoints stay on the nodes that are held for them, and not where they had no room."""
    if not holding:
        return previous
    names = previous.keys() | {node for nodes in holding.values() for node in nodes}
    return {
        name: tuple(k for k in previous.get(name, ()) if k not in holding)
        + tuple(k for k, nodes in holding.items() if name in nodes)
        for name in names
    }


def lead_of(arrivals: Sequence[float], assumed: timedelta) -> timedelta:
    """Return how long nine in ten nodes took to come (seconds each); `assumed` until some have been measured."""
    if len(arrivals) < MEASURED:
        return assumed
    ninth = sorted(arrivals)[-(-9 * len(arrivals) // 10) - 1]
    return min(_MOST_LEAD, timedelta(seconds=ninth))
