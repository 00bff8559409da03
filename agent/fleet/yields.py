"""What each node can do, from what agents report: how fast it fetches, how much it holds, what it has. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median

from agent.core.assignment import EndpointWant
from agent.core.names import node_pool
from agent.core.units import format_size
from agent.kube.events import Announcement
from agent.kube.objects import NodeReport, NodeView, NodeWarmupView, ObjectRef
from agent.plan.physics import SLOW_SHARE

ASSUMED_BYTES_PER_SECOND = 100e6  # of a node in a pool that nobody has measured: a slow cloud disk
ASSUMED_IMAGE_BYTES = 2_000_000_000  # of an image whose size no node reports
LEAST_POOL = 3  # measured nodes that make a median worth comparing with
ZONE = "topology.kubernetes.io/zone"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeYield:
    """One node. `slow` is the pool's median rate where this node reaches less than a third of it, else 0.

    `ready_at` is its agent's own word on its next windows, by endpoint: None for one that can be met.
    """

    bytes_per_second: float = ASSUMED_BYTES_PER_SECOND
    measured: bool = False
    slow: float = 0.0
    capacity_bytes: int = 0  # of the model store; 0: not known
    zone: str = ""
    missing: Mapping[str, int] = field(default_factory=dict)
    ready_at: Mapping[str, datetime | None] = field(default_factory=dict)

    def lacks(self, items: Mapping[str, int]) -> dict[str, int]:
        """Return the bytes still to come of these items."""
        return {item: self.missing.get(item, size) for item, size in items.items()}


def items_of(want: EndpointWant) -> dict[str, int]:
    """Return the bytes of what an endpoint needs, by image reference or model URI."""
    return {str(i.ref): ASSUMED_IMAGE_BYTES for i in want.images} | {str(m.uri): m.size_bytes for m in want.models}


NOTHING_KNOWN = NodeYield()


def node_yields(
    nodes: Iterable[NodeView], warmups: Mapping[str, NodeWarmupView], heard: Collection[str] = ()
) -> Mapping[str, NodeYield]:
    """Return what is known of each node; one that has measured nothing is taken for an average one of its pool.

    `heard` are the nodes whose agents live: what the others said of their windows is out of date.
    """
    nodes, empty = list(nodes), NodeReport()
    reports = {n.name: warmups[n.name].report if n.name in warmups else empty for n in nodes}
    pools: defaultdict[str, list[int]] = defaultdict(list)
    for node in nodes:
        if reports[node.name].pace_bytes_per_second:
            pools[node_pool(node.labels)].append(reports[node.name].pace_bytes_per_second)
    medians = {pool: float(median(paces)) for pool, paces in pools.items()}
    found = {}
    for node in nodes:
        report, pool = reports[node.name], node_pool(node.labels)
        middle = medians.get(pool, ASSUMED_BYTES_PER_SECOND)
        pace = float(report.pace_bytes_per_second)
        slow = 0 < pace < middle * SLOW_SHARE and len(pools[pool]) >= LEAST_POOL
        found[node.name] = NodeYield(
            bytes_per_second=pace or middle,
            measured=pace > 0,
            slow=middle if slow else 0.0,
            capacity_bytes=report.capacity_bytes,
            zone=node.labels.get(ZONE, ""),
            missing=report.missing_bytes,
            ready_at=report.ready_at if node.name in heard else {},
        )
    return found


def slow_notes(nodes: Iterable[NodeView], yields: Mapping[str, NodeYield]) -> Iterable[Announcement]:
    """Name the slow nodes, on their Nodes."""
    for node in nodes:
        found = yields[node.name]
        if found.slow:
            message = (
                f"fetches {format_size(found.bytes_per_second)}/s where the median of its pool is {format_size(found.slow)}/s: "
                "it is planned with its own rate and gets endpoints last; look at its disk and network"
            )
            about = ObjectRef(api_version="v1", kind="Node", name=node.name, uid=node.uid)
            yield Announcement(about=about, reason="SlowNode", message=message)
