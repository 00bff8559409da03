"""Which endpoints each node keeps warm: eligibility as the scheduler sees it, then rendezvous hashing. Pure.

Rendezvous (highest random weight; Thaler and Ravishankar 1998): each endpoint ranks all nodes by a score of its own and takes the
first ones, so that a node joining or leaving moves only what it gains or loses. The score of a pair is a * h(node) + b modulo the
prime 2^61 - 1 with a and b from BLAKE2b of the endpoint's key and h from BLAKE2b of the node's name: pairwise independent, the same
on every machine and Python, and a third of the price of hashing each pair.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from agent.core.inventory import GpuVerdict
from agent.core.names import LABEL_GPU
from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint
from agent.fleet.eligibility import NAME, NOT_READY, Needs, closed, exclusion, gpus_of
from agent.kube.objects import NodeView

_PRIME = (1 << 61) - 1
_TOLD = 5  # kinds of exclusion one reason names


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where endpoints go. `assigned` has every node (an empty tuple for one without), keys sorted; `unplaced` says why none."""

    assigned: Mapping[str, tuple[EndpointKey, ...]] = field(default_factory=dict)
    unplaced: Mapping[EndpointKey, str] = field(default_factory=dict)


def place(
    endpoints: Iterable[Endpoint],
    nodes: Iterable[NodeView],
    previous: Mapping[str, tuple[EndpointKey, ...]] | None = None,
) -> Placement:
    """Choose `endpoint.nodes` eligible nodes (all, if None) for each endpoint.

    A node that is cordoned or being deleted gets nothing. One that is NotReady gets nothing new, and keeps what it has in
    `previous` besides the nodes chosen instead, so that a short outage does not cost its cache. For endpoints with GPUs, nodes
    whose GPUs proved unhealthy come last. Neither the order of endpoints nor that of nodes matters.
    """
    groups: defaultdict[Needs, list[Endpoint]] = defaultdict(list)
    for endpoint in endpoints:
        groups[Needs.of(endpoint.spec, endpoint.gpus)].append(endpoint)
    fleet = _Fleet.of(nodes, groups)
    chosen: dict[str, list[EndpointKey]] = {name: [] for name in fleet.names}
    unplaced: dict[EndpointKey, str] = {}
    for needs, members in groups.items():
        pools = fleet.pools(needs)
        if not any(pool.names for pool in pools):
            unplaced |= dict.fromkeys((e.key for e in members), fleet.reason(needs))
            continue
        for endpoint in members:
            for name in _choose(endpoint, pools):
                chosen[name].append(endpoint.key)
    _keep_on_away(chosen, fleet, previous or {}, {e.key for members in groups.values() for e in members})
    return Placement(assigned={name: tuple(sorted(keys)) for name, keys in chosen.items()}, unplaced=unplaced)


def _choose(endpoint: Endpoint, pools: Sequence[_Pool]) -> list[str]:
    names: list[str] = []
    for pool in pools:
        wanted = None if endpoint.nodes is None else endpoint.nodes - len(names)
        names += pool.first(endpoint.key, wanted)
    return names


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
    names: list[str]
    hashes: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fleet:
    """The nodes: names in order, the open ones by likeness, the closed ones with the reason."""

    names: Sequence[str]
    alike: Sequence[_Alike]
    closed: Mapping[str, str]

    @classmethod
    def of(cls, nodes: Iterable[NodeView], needs: Iterable[Needs]) -> _Fleet:
        """Sort the nodes once, so that each endpoint is compared with a few kinds of node, not with every node."""
        fleet = sorted(nodes, key=lambda node: node.name)
        why = {node.name: reason for node in fleet if (reason := closed(node))}
        keys = sorted({key for each in needs for key in each.label_keys()} | {LABEL_GPU})
        kinds: dict[object, _Alike] = {}
        for node in fleet:
            if node.name not in why:
                kind = (
                    tuple(map(node.labels.get, keys)),
                    node.taints,
                    gpus_of(node.allocatable),
                    NAME in keys and node.name,
                )
                alike = kinds.setdefault(kind, _Alike(one=node, names=[], hashes=[]))
                alike.names.append(node.name)
                alike.hashes.append(_hash(node.name))
        return cls(names=[node.name for node in fleet], alike=tuple(kinds.values()), closed=why)

    def pools(self, needs: Needs) -> tuple[_Pool, _Pool]:
        """Return the eligible nodes, and apart from them those whose GPUs are of no use to these needs."""
        well, sick = _Pool(names=[], hashes=[]), _Pool(names=[], hashes=[])
        for alike in self.alike:
            if not exclusion(alike.one, needs):
                pool = sick if needs.gpus and alike.one.labels.get(LABEL_GPU) == GpuVerdict.UNHEALTHY else well
                pool.names.extend(alike.names)
                pool.hashes.extend(alike.hashes)
        return well, sick

    def reason(self, needs: Needs) -> str:
        """Say what excludes how many nodes, the commonest first."""
        excluded = Counter(self.closed.values())
        for alike in self.alike:
            excluded[exclusion(alike.one, needs)] += len(alike.names)
        if not excluded:
            return "no eligible node: the cluster has none"
        most = sorted(excluded.items(), key=lambda item: (-item[1], item[0]))
        told = [f"{count} {why}" for why, count in most[:_TOLD]]
        rest = sum(count for _, count in most[_TOLD:])
        return "no eligible node: " + ", ".join(told) + (f", {rest} for other reasons" if rest else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    """Nodes that are equally good, by name, and their hashes in the same order."""

    names: list[str]
    hashes: list[int]

    def first(self, key: EndpointKey, wanted: int | None) -> list[str]:
        """Return the `wanted` names that rank first for `key` (all for None)."""
        if wanted is None or wanted >= len(self.names):
            return self.names
        if wanted < 1:
            return []
        a, b = _hash(f"a {key}") or 1, _hash(f"b {key}")
        scores = [(a * h + b) % _PRIME for h in self.hashes]
        if wanted == 1:
            return [self.names[scores.index(min(scores))]]
        return [name for _, name in heapq.nsmallest(wanted, zip(scores, self.names, strict=True))]


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") % _PRIME
