"""What nodes have room and time for, while endpoints are placed on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from agent.core.assignment import EndpointWant
from agent.core.refs import EndpointKey
from agent.fleet.yields import NOTHING_KNOWN, NodeYield, items_of
from agent.plan.physics import Job, late_jobs

USABLE_SHARE = 0.75  # of a store: below the kubelet's thresholds, with room for the next version of something


class Loads:
    """Bytes and work that each node has taken on. Without wants every node has room and time for everything."""

    def __init__(
        self,
        wants: Mapping[EndpointKey, EndpointWant] | None = None,
        yields: Mapping[str, NodeYield] | None = None,
        now: datetime | None = None,
    ) -> None:
        self._wants, self._yields, self._now = wants or {}, yields or {}, now
        self._items = {k: items_of(want) for k, want in self._wants.items()}
        self._models = {k: {str(m.uri): m.size_bytes for m in want.models} for k, want in self._wants.items()}
        self._having = self._index()
        self._stored: defaultdict[str, set[str]] = defaultdict(set)
        self._used: defaultdict[str, int] = defaultdict(int)
        self._jobs: defaultdict[str, list[Job[EndpointKey]]] = defaultdict(list)
        self._due = {k: w.ready_by for k, want in self._wants.items() if now and (w := want.next_promise(now))}

    def zone(self, node: str) -> str:
        """Return a node's zone, "" for none."""
        return self._yields.get(node, NOTHING_KNOWN).zone

    def is_slow(self, node: str) -> bool:
        """Say whether a node is much slower than its pool."""
        return self._yields.get(node, NOTHING_KNOWN).slow > 0

    def size_bytes(self, key: EndpointKey) -> int:
        """Return the bytes of an endpoint's models."""
        return sum(self._models.get(key, {}).values())

    def lacks_bytes(self, key: EndpointKey, node: str) -> int:
        """Return the bytes of an endpoint's models that a node lacks."""
        return sum(self._yields.get(node, NOTHING_KNOWN).lacks(self._models.get(key, {})).values())

    def having(self, key: EndpointKey) -> Sequence[str]:
        """Return nodes that already hold every model of an endpoint."""
        nodes = [self._having.get(uri, frozenset()) for uri in self._models.get(key, ())]
        return sorted(frozenset.intersection(*nodes)) if nodes else ()

    def fits(self, key: EndpointKey, node: str) -> bool:
        """Say whether a node has room for an endpoint, and makes it and what it has taken on in time."""
        found = self._yields.get(node)
        if key not in self._wants or found is None:
            return True
        if found.capacity_bytes and self._used[node] + self._more(key, node) > found.capacity_bytes * USABLE_SHARE:
            return False
        job = self._job(key, node, found)
        if job is None or not job.seconds or self._now is None:
            return True
        before = {late.job.key for late in late_jobs(self._jobs[node], self._now, timedelta(0))}
        after = {late.job.key for late in late_jobs([*self._jobs[node], job], self._now, timedelta(0))}
        return after <= before

    def take(self, key: EndpointKey, node: str) -> None:
        """Have a node take an endpoint on."""
        if key not in self._wants:
            return
        self._used[node] += self._more(key, node)
        job = self._job(key, node, self._yields.get(node, NOTHING_KNOWN))
        self._stored[node] |= self._items[key].keys()
        if job is not None and job.seconds:
            self._jobs[node].append(job)

    def _more(self, key: EndpointKey, node: str) -> int:
        return sum(size for uri, size in self._models[key].items() if uri not in self._stored[node])

    def _job(self, key: EndpointKey, node: str, found: NodeYield) -> Job[EndpointKey] | None:
        """Return the work an endpoint is, less what another one brings in; None if no window is declared, or one is open."""
        due = self._due.get(key)
        if due is None or self._now is None or due <= self._now:
            return None
        size = sum(n for item, n in found.lacks(self._items[key]).items() if item not in self._stored[node])
        return Job(key=key, due=due, seconds=size / found.bytes_per_second)

    def _index(self) -> Mapping[str, frozenset[str]]:
        """Return, by model URI, the nodes that hold all of it."""
        uris = {uri for models in self._models.values() for uri in models}
        found: defaultdict[str, set[str]] = defaultdict(set)
        for node, known in self._yields.items():
            for item, left in known.missing.items():
                if not left and item in uris:
                    found[item].add(node)
        return {uri: frozenset(nodes) for uri, nodes in found.items()}
