"""What nodes have room and time for, while endpoints are placed on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from agent.core.assignment import EndpointWant
from agent.core.refs import EndpointKey
from agent.fleet.yields import NOTHING_KNOWN, NodeYield
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
        self._having = self._index()
        self._stored: defaultdict[str, set[str]] = defaultdict(set)
        self._used: defaultdict[str, int] = defaultdict(int)
        self._jobs: defaultdict[str, list[Job[EndpointKey]]] = defaultdict(list)
        self._due = {k: w.ready_by for k, want in self._wants.items() if now and (w := want.next_window(now))}
        self._size = {k: sum(m.size_bytes for m in want.models) for k, want in self._wants.items()}

    def zone(self, node: str) -> str:
        """Return a node's zone, "" for none."""
        return self._yields.get(node, NOTHING_KNOWN).zone

    def is_slow(self, node: str) -> bool:
        """Say whether a node is much slower than its pool."""
        return self._yields.get(node, NOTHING_KNOWN).slow > 0

    def size_bytes(self, key: EndpointKey) -> int:
        """Return the bytes of an endpoint's models."""
        return self._size.get(key, 0)

    def lacks_bytes(self, key: EndpointKey, node: str) -> int:
        """Return the bytes of an endpoint's models that a node lacks."""
        want, found = self._wants.get(key), self._yields.get(node, NOTHING_KNOWN)
        return sum(found.missing.get(str(m.uri), m.size_bytes) for m in want.models) if want else 0

    def having(self, key: EndpointKey) -> Sequence[str]:
        """Return nodes that already hold every model of an endpoint."""
        want = self._wants.get(key)
        if want is None or not want.models:
            return ()
        nodes = [self._having.get(str(m.uri), frozenset()) for m in want.models]
        return sorted(frozenset.intersection(*nodes))

    def fits(self, key: EndpointKey, node: str) -> bool:
        """Say whether a node has room for an endpoint, and makes it and what it has taken on in time."""
        want, found = self._wants.get(key), self._yields.get(node)
        if want is None or found is None:
            return True
        if found.capacity_bytes and self._used[node] + self._more(want, node) > found.capacity_bytes * USABLE_SHARE:
            return False
        job = self._job(want, node, found)
        if job is None or not job.seconds or self._now is None:
            return True
        before = {late.job.key for late in late_jobs(self._jobs[node], self._now, timedelta(0))}
        after = {late.job.key for late in late_jobs([*self._jobs[node], job], self._now, timedelta(0))}
        return after <= before

    def take(self, key: EndpointKey, node: str) -> None:
        """Have a node take an endpoint on."""
        want = self._wants.get(key)
        if want is None:
            return
        self._used[node] += self._more(want, node)
        job = self._job(want, node, self._yields.get(node, NOTHING_KNOWN))
        self._stored[node].update(str(m.uri) for m in want.models)
        self._stored[node].update(str(i.ref) for i in want.images)
        if job is not None and job.seconds:
            self._jobs[node].append(job)

    def _more(self, want: EndpointWant, node: str) -> int:
        return sum(m.size_bytes for m in want.models if str(m.uri) not in self._stored[node])

    def _job(self, want: EndpointWant, node: str, found: NodeYield) -> Job[EndpointKey] | None:
        """Return the work an endpoint is, less what another one brings in; None without a window, or with one that is open."""
        due = self._due.get(want.key)
        if due is None or self._now is None or due <= self._now:
            return None
        size = sum(n for item, n in found.lacks(want).items() if item not in self._stored[node])
        return Job(key=want.key, due=due, seconds=size / found.bytes_per_second)

    def _index(self) -> Mapping[str, frozenset[str]]:
        """Return, by model URI, the nodes that hold all of it."""
        uris = {str(m.uri) for want in self._wants.values() for m in want.models}
        found: defaultdict[str, set[str]] = defaultdict(set)
        for node, known in self._yields.items():
            for item, left in known.missing.items():
                if not left and item in uris:
                    found[item].add(node)
        return {uri: frozenset(nodes) for uri, nodes in found.items()}
