"""Asks Karpenter and Cluster Autoscaler to leave the nodes of due windows alone, and takes that back afterwards.

Server-side apply with a manager of its own: what somebody else has set differently is a conflict and stays, what somebody else has
set alike stays when this one lets go, and a planner that starts anew sees in `managedFields` which nodes it keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from agent.core.assignment import Assignment
from agent.core.clock import Clock
from agent.core.errors import Permanent, Transient
from agent.core.latest import Latest, Signal
from agent.core.names import KEEP_ANNOTATIONS, KEEP_MANAGER
from agent.fleet.keep import Keeping, to_keep
from agent.fleet.sources import Sources
from agent.kube.api import KubeApi
from agent.kube.errors import Conflict, NotFound
from agent.kube.objects import NodeView
from agent.kube.resources import NODES

log = structlog.get_logger()

_AT_ONCE = 8
_SEEN_SECONDS = 5.0  # until the watch shows our own write; a failed one is tried again then
_REFUSED_SECONDS = 600.0
_CLOCK_SECONDS = 600.0  # a wall clock that is set is noticed within this


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepReport:
    """For metrics: nodes kept now, and those counted on that are not: too many, another's word, or a write that failed."""

    kept: int = 0
    unkept: int = 0


class Keeper:
    """A service; at most `most` nodes are kept at a time."""

    name = "keep nodes of due windows"

    def __init__(
        self,
        api: KubeApi,
        sources: Sources,
        desired: Latest[Mapping[str, Assignment] | None],
        report: Latest[KeepReport],
        *,
        clock: Clock,
        most: int,
    ) -> None:
        self._api, self._sources, self._desired, self._report = api, sources, desired, report
        self._clock, self._most = clock, most
        self._again: dict[str, tuple[bool, float]] = {}  # node: what was written, and when the next try may be

    async def run(self) -> None:
        """Run until cancelled."""
        signal = Signal()
        cells = (self._desired, self._sources.nodes)
        for cell in cells:
            cell.attach(signal)
        try:
            while True:
                wait = await self.keep()
                await signal.wait(wait)
        finally:
            for cell in cells:
                cell.detach(signal)

    async def keep(self) -> float | None:
        """Write what differs now; return the seconds until there may be more to do with nothing changed."""
        desired, nodes = self._desired.get(), self._sources.nodes.get().items
        if desired is None:
            return None
        now = self._clock.now()
        keeping = to_keep(desired, nodes, now, self._most)
        differing = [n for n in nodes.values() if n.kept != (n.name in keeping.names)]
        self._again = {n.name: self._again[n.name] for n in differing if n.name in self._again}
        await self._write_all([n for n in differing if self._may(n.name, keeping)], keeping)
        self._tell(keeping, nodes)
        waits = [at - self._clock.monotonic() for _, at in self._again.values()]
        waits += [min(_CLOCK_SECONDS, (keeping.wake_at - now).total_seconds())] if keeping.wake_at else []
        return max(0.05, min(waits)) if waits else None

    def _may(self, name: str, keeping: Keeping) -> bool:
        written, at = self._again.get(name, (None, 0.0))
        return written != (name in keeping.names) or at <= self._clock.monotonic()

    async def _write_all(self, todo: list[NodeView], keeping: Keeping) -> None:
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(node: NodeView) -> None:
            async with gate:
                wanted = node.name in keeping.names
                again = await self._write(node, wanted=wanted)
                self._again[node.name] = (wanted, self._clock.monotonic() + again)

        async with asyncio.TaskGroup() as tasks:
            for node in todo:
                tasks.create_task(one(node), name=f"keep {node.name}")

    async def _write(self, node: NodeView, *, wanted: bool) -> float:
        """Keep a node or let it go; return the seconds until this may be done again."""
        annotations = dict.fromkeys(KEEP_ANNOTATIONS, "true") if wanted else {}
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name, "annotations": annotations}}
        try:
            await self._api.apply(NODES, node.name, body, manager=KEEP_MANAGER, subresource="status")
        except NotFound:
            return _SEEN_SECONDS
        except Conflict as error:
            log.info("node not kept: its annotations are somebody else's", node=node.name, reason=str(error))
            return _REFUSED_SECONDS
        except (Transient, Permanent) as error:
            log.warning("cannot say whether to keep a node", node=node.name, error=str(error))
            return _SEEN_SECONDS if isinstance(error, Transient) else _REFUSED_SECONDS
        log.info("node is kept for a window" if wanted else "node is let go", node=node.name)
        return _SEEN_SECONDS

    def _tell(self, keeping: Keeping, nodes: Mapping[str, NodeView]) -> None:
        kept = sum(nodes[name].kept for name in keeping.names)
        self._report.set(KeepReport(kept=kept, unkept=len(keeping.names) + len(keeping.left_out) - kept))
