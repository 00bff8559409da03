"""Which endpoints each node keeps warm: eligible as the scheduler sees it, with room, in time, and moving as little as can be. Pure.

An endpoint stays where it was, goes next to where its bytes are already, and else to the nodes that rank first for it by rendezvous
(highest random weight; Thaler and Ravishankar 1998), spread over zones. Each endpoint ranks all nodes by a score of its own, so
that a node that joins or leaves moves only what it gains or loses. The score of a pair is a * h(node) + b modulo the prime 2^61 - 1
with a and b from BLAKE2b of the endpoint's key and h from BLAKE2b of the node's name: pairwise independent, the same on every machine
and Python, and a third of the price of hashing each pair.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from agent.core.inventory import GpuVerdict
from agent.core.names import LABEL_GPU, READY, endpoint_label
from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint
from agent.fleet.eligibility import NAME, NOT_READY, Needs, closed, exclusion, gpus_of
from agent.fleet.loads import Loads
from agent.kube.objects import NodeView

_PRIME = (1 << 61) - 1
_TOLD = 5  # kinds of exclusion one reason names
_SHORT = 24  # nodes looked at for room and time beyond those asked for, before all are


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where endpoints go. `assigned` has every node (an empty tuple for one without), keys sorted; `unplaced` says why none."""

    assigned: Mapping[str, tuple[EndpointKey, ...]] = field(default_factory=dict)
    unplaced: Mapping[EndpointKey, str] = field(default_factory=dict)


def place(
    endpoints: Iterable[Endpoint],
    nodes: Iterable[NodeView],
    previous: Mapping[str, tuple[EndpointKey, ...]] | None = None,
    loads: Loads | None = None,
) -> Placement:
    """Choose `endpoint.nodes` eligible nodes (all, if None) for each endpoint.

    A node that is cordoned, drained, disrupted or being deleted gets nothing. One that is NotReady gets nothing new, and keeps
    what it has in `previous` besides the nodes chosen instead, so that a short outage does not cost its cache. When it is back, nodes
    that say they are ready keep the endpoint, and others leave it. For endpoints with GPUs, nodes whose GPUs proved unhealthy come
    last, and slow nodes come before those. `loads` knows which nodes have room and time; where none has, an endpoint is placed all
    the same. Neither the order of endpoints nor that of nodes matters.
    """
    endpoints, nodes, loads = list(endpoints), list(nodes), loads or Loads()
    labels = {node.name: node.labels for node in nodes}
    fleet = _Fleet.of(nodes, {Needs.of(e.spec, e.gpus) for e in endpoints}, loads)
    holders = _holders(previous or {}, set(fleet.names) - fleet.closed.keys())
    chosen: dict[str, list[EndpointKey]] = {name: [] for name in fleet.names}
    unplaced: dict[EndpointKey, str] = {}
    todo: list[tuple[Endpoint, _Pools, list[str], list[str]]] = []
    for endpoint in sorted(endpoints, key=lambda e: (-e.priority, -loads.size_bytes(e.key), e.key)):
        pools = fleet.pools(Needs.of(endpoint.spec, endpoint.gpus))
        if not pools.count:
            unplaced[endpoint.key] = fleet.reason(Needs.of(endpoint.spec, endpoint.gpus))
            continue
        had = _ready_first(endpoint.key, _holding(endpoint.key, pools, holders.get(endpoint.key, ()), loads), labels)
        todo.append((endpoint, pools, had, _staying(endpoint, pools, had, loads)))
    for endpoint, pools, had, stay in todo:  # all that stay have their room before anything new is placed
        for name in _filled(endpoint, pools, had, stay, loads):
            chosen[name].append(endpoint.key)
    _keep_on_away(chosen, fleet, previous or {}, {e.key for e in endpoints})
    return Placement(assigned={name: tuple(sorted(keys)) for name, keys in chosen.items()}, unplaced=unplaced)


def _holders(previous: Mapping[str, tuple[EndpointKey, ...]], opened: set[str]) -> Mapping[EndpointKey, list[str]]:
    found: defaultdict[EndpointKey, list[str]] = defaultdict(list)
    for name in sorted(previous.keys() & opened):
        for key in previous[name]:
            found[key].append(name)
    return found


def _holding(key: EndpointKey, pools: _Pools, holders: Sequence[str], loads: Loads) -> list[str]:
    """Return the holders that it may stay on, the first in rank first: a slow one only with all its bytes."""
    return _ranked(key, [n for n in holders if n in pools.well or (n in pools.slow and not loads.lacks_bytes(key, n))])


def _ready_first(key: EndpointKey, had: list[str], labels: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the holders with those that say they are ready first: what another has to prove anew is not taken from them."""
    label = endpoint_label(key.namespace, key.name)
    return sorted(had, key=lambda n: labels[n].get(label) != READY) if len(had) > 1 else had


def _staying(endpoint: Endpoint, pools: _Pools, had: Sequence[str], loads: Loads) -> list[str]:
    """Return the holders that keep it in any case, and take their room."""
    if endpoint.nodes is None or endpoint.nodes >= pools.count:
        return []  # it gets all there are
    stay = [n for n in had if loads.fits(endpoint.key, n)][: endpoint.nodes]
    for name in stay:
        loads.take(endpoint.key, name)
    return stay


def _filled(endpoint: Endpoint, pools: _Pools, had: Sequence[str], stay: list[str], loads: Loads) -> list[str]:
    """Return the nodes of an endpoint: those it stays on, then new ones, those with room and time first."""
    wanted = pools.count if endpoint.nodes is None else min(endpoint.nodes, pools.count)
    if wanted == pools.count:
        names = [name for pool in pools.in_order() for name in pool.names]
    else:
        names = _chosen(endpoint.key, pools, stay, wanted, loads)
        names += [n for n in had if n not in names][: wanted - len(names)]
    for tier in pools.in_order() if len(names) < wanted else ():  # no room or no time anywhere: the best that can be
        names += [n for n in tier.first(endpoint.key, wanted + len(names)) if n not in names][: wanted - len(names)]
    for name in names:
        if name not in stay:
            loads.take(endpoint.key, name)
    return names


def _chosen(key: EndpointKey, pools: _Pools, stay: list[str], wanted: int, loads: Loads) -> list[str]:
    """Return the nodes it stays on and others with room and time, at most as many as wanted."""
    names = list(stay)
    if len(names) < wanted:
        names += _spread(key, [n for n in loads.having(key) if n in pools.well], names, wanted, loads)
    for tier in (pools.well, pools.slow):
        names += _new(key, tier, names, wanted, loads)
    return names


def _new(key: EndpointKey, tier: _Pool, names: Sequence[str], wanted: int, loads: Loads) -> list[str]:
    if wanted <= len(names) or not tier.names:
        return []
    few = tier.first(key, wanted + len(names) + _SHORT)
    found = _spread(key, few, names, wanted, loads)
    short = len(names) + len(found) < wanted or (wanted > 1 and len({loads.zone(n) for n in few}) < tier.zones)
    return _spread(key, tier.first(key, len(tier.names)), names, wanted, loads) if short else found


def _spread(key: EndpointKey, ranked: Iterable[str], names: Sequence[str], wanted: int, loads: Loads) -> list[str]:
    """Return up to as many as are wanted more, of those with room and time: the zone with the fewest first, then by rank."""
    left = [n for n in ranked if n not in names]
    zones, found = Counter(map(loads.zone, names)), list[str]()
    while left and len(names) + len(found) < wanted:
        best = min(left, key=lambda n: zones[loads.zone(n)])  # the first of equals: the order is the rank
        left.remove(best)
        if loads.fits(key, best):
            zones[loads.zone(best)] += 1
            found.append(best)
    return found


def _ranked(key: EndpointKey, names: Sequence[str]) -> list[str]:
    return _Pool(names=list(names), hashes=[_hash(n) for n in names]).first(key, len(names))


def _keep_on_away(
    chosen: dict[str, list[EndpointKey]],
    fleet: _Fleet,
    previous: Mapping[str, tuple[EndpointKey, ...]],
    known: set[EndpointKey],
) -> None:
    for name, why in fleet.closed.items():
        if why == NOT_READY:
            chosen[name] += [key for key in previous.get(name, ()) if key in known]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alike:
    """Open nodes that no endpoint of this fleet can tell apart: what holds for `one` holds for all `names`."""

    one: NodeView
    slow: bool
    names: list[str]
    hashes: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fleet:
    """The nodes: names in order, the open ones by likeness, the closed ones with the reason."""

    names: Sequence[str]
    alike: Sequence[_Alike]
    closed: Mapping[str, str]
    loads: Loads
    known: dict[tuple[tuple[int, ...], ...], _Pools] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: Iterable[NodeView], needs: Iterable[Needs], loads: Loads) -> _Fleet:
        """Sort the nodes once, so that each endpoint is compared with a few kinds of node, not with every node."""
        fleet = sorted(nodes, key=lambda node: node.name)
        why = {node.name: reason for node in fleet if (reason := closed(node))}
        keys = sorted({key for each in needs for key in each.label_keys()} | {LABEL_GPU})
        kinds: dict[object, _Alike] = {}
        for node in fleet:
            if node.name not in why:
                slow = loads.is_slow(node.name)
                labels = tuple(map(node.labels.get, keys))
                kind = (labels, node.taints, gpus_of(node.allocatable), NAME in keys and node.name, slow)
                alike = kinds.setdefault(kind, _Alike(one=node, slow=slow, names=[], hashes=[]))
                alike.names.append(node.name)
                alike.hashes.append(_hash(node.name))
        return cls(names=[node.name for node in fleet], alike=tuple(kinds.values()), closed=why, loads=loads)

    def pools(self, needs: Needs) -> _Pools:
        """Return the eligible nodes; apart from them slow ones, and those whose GPUs are of no use to these needs."""
        found: tuple[list[int], list[int], list[int]] = ([], [], [])
        for n, alike in enumerate(self.alike):
            if not exclusion(alike.one, needs):
                sick = needs.gpus and alike.one.labels.get(LABEL_GPU) == GpuVerdict.UNHEALTHY
                found[2 if sick else 1 if alike.slow else 0].append(n)
        kinds = tuple(map(tuple, found))
        if kinds not in self.known:  # needs differ in much that selects the same nodes
            self.known[kinds] = _Pools.of(*([self.alike[n] for n in some] for some in kinds), loads=self.loads)
        return self.known[kinds]

    def reason(self, needs: Needs) -> str:
        """Say what excludes how many nodes, the commonest first."""
        excluded = Counter(self.closed.values())
        for alike in self.alike:
            excluded[exclusion(alike.one, needs)] += len(alike.names)
        if not excluded:
            return "no eligible node: the cluster has none"
        most = sorted(excluded.items(), key=lambda item: (-item[1], item[0]))
        told = [f"{_about(count)} {why}" for why, count in most[:_TOLD]]
        rest = sum(count for _, count in most[_TOLD:])
        return "no eligible node: " + ", ".join(told) + (f", {_about(rest)} for other reasons" if rest else "")


def _about(count: int) -> str:
    """Say a number of nodes, a large one to one digit: else each node that comes or goes would make every sentence a new one."""
    scale = 10 ** (len(str(count)) - 1)
    return str(count) if count < 10 else f"some {count // scale * scale}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    """Nodes that are equally good, by name, and their hashes in the same order."""

    names: list[str]
    hashes: list[int]
    zones: int = 1
    known: frozenset[str] = frozenset()

    @classmethod
    def of(cls, kinds: Iterable[_Alike], loads: Loads) -> _Pool:
        names = [n for k in kinds for n in k.names]
        hashes = [h for k in kinds for h in k.hashes]
        return cls(names=names, hashes=hashes, zones=len(set(map(loads.zone, names))), known=frozenset(names))

    def __contains__(self, name: str) -> bool:
        return name in self.known

    def first(self, key: EndpointKey, wanted: int) -> list[str]:
        """Return the `wanted` names that rank first for `key`, in that order."""
        if wanted < 1 or not self.names:
            return []
        a, b = _hash(f"a {key}") or 1, _hash(f"b {key}")
        scores = [(a * h + b) % _PRIME for h in self.hashes]
        if wanted >= len(self.names):
            return [name for _, name in sorted(zip(scores, self.names, strict=True))]
        # Scores are spread evenly: those below this bound are some three times as many as wanted, and sorted in no time.
        bound = _PRIME * (3 * wanted + 10) // len(self.names)
        low = sorted((score, n) for n, score in enumerate(scores) if score < bound)
        if len(low) < wanted:
            low = heapq.nsmallest(wanted, zip(scores, range(len(scores)), strict=True))
        return [self.names[n] for _, n in low[:wanted]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pools:
    """Pools in the order they are used."""

    well: _Pool
    slow: _Pool
    sick: _Pool
    count: int

    @classmethod
    def of(cls, well: Sequence[_Alike], slow: Sequence[_Alike], sick: Sequence[_Alike], *, loads: Loads) -> _Pools:
        pools = [_Pool.of(kinds, loads) for kinds in (well, slow, sick)]
        return cls(well=pools[0], slow=pools[1], sick=pools[2], count=sum(len(pool.names) for pool in pools))

    def in_order(self) -> tuple[_Pool, _Pool, _Pool]:
        return self.well, self.slow, self.sick


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") % _PRIME
