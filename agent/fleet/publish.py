"""Writes one NodeWarmup a node, only where it differs from what is wanted.

A NodeWarmup is made when its node gets its first endpoint. When a node loses its last one the list is emptied, not the
object deleted: an empty list is the planner's word that nothing is wanted, an absent object may be an accident. With its
Node it goes by the garbage collector. One whose node does not exist is never touched.

A write names the generation it replaces, so the late word of a planner that leads no more never follows its successor's. The
version would name it too, but agents change that with every status.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from agent.core.assignment import Assignment
from agent.core.assignment_json import format_assignment, parse_assignment
from agent.core.clock import Clock
from agent.core.errors import Permanent, Transient
from agent.core.latest import Latest, Signal
from agent.core.names import GROUP, VERSION
from agent.core.retry import Backoff
from agent.fleet.sources import Sources
from agent.kube.api import KubeApi, PatchKind
from agent.kube.errors import NotFound
from agent.kube.objects import NodeView, NodeWarmupView
from agent.kube.resources import NODEWARMUP_SPECS

log = structlog.get_logger()

_AT_ONCE = 8
_SEEN_SECONDS = 5.0  # until the watch shows our own write
_REFUSED_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """For metrics: writes so far, and the nodes whose NodeWarmup could not be written, with the reason."""

    writes_total: int = 0
    failing: Mapping[str, str] = field(default_factory=dict)


_Try = tuple[Assignment, int]  # a plan, and the generation of the NodeWarmup that it was to replace; 0: there was none


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retry:
    """When a node's write is tried again (monotonic seconds); `refused` is what the API server would not take."""

    backoff: Backoff
    at: float
    refused: _Try | None = None

    def lets(self, other: _Try, now: float) -> bool:
        """Say whether this may be written now: another plan than was refused may withdraw, another generation may take it."""
        return self.at <= now or (self.refused is not None and self.refused != other)


class Publisher:
    """A service that makes the NodeWarmups say what `desired` says (None until there is a plan)."""

    name = "publish node warmups"

    def __init__(
        self,
        api: KubeApi,
        sources: Sources,
        desired: Latest[Mapping[str, Assignment] | None],
        report: Latest[PublishReport],
        *,
        clock: Clock,
    ) -> None:
        self._api, self._sources, self._desired, self._report, self._clock = api, sources, desired, report, clock
        self._written: dict[str, tuple[NodeWarmupView, float]] = {}
        self._retry: dict[str, _Retry] = {}
        self._same: dict[str, tuple[NodeView, Assignment, NodeWarmupView | None]] = {}
        self._rng = random.Random()  # noqa: S311 (jitter)

    async def run(self) -> None:
        """Run until cancelled."""
        signal = Signal()
        cells = (self._desired, self._sources.warmups, self._sources.nodes)
        for cell in cells:
            cell.attach(signal)
        try:
            while True:
                wait = await self.publish()
                await signal.wait(wait)
        finally:
            for cell in cells:
                cell.detach(signal)

    async def publish(self) -> float | None:
        """Write what differs. Returns the seconds until a failed write is tried again, None if there is none."""
        desired, nodes = self._desired.get(), self._sources.nodes.get().items
        if desired is None or not self._sources.warmups.get().synced:
            return None
        self._retry = {n: r for n, r in self._retry.items() if n in desired}
        self._same = {n: s for n, s in self._same.items() if n in desired}
        self._written = {n: w for n, w in self._written.items() if n in desired}
        differing = [n for n, a in desired.items() if n in nodes and self._differs(nodes[n], a, self._stored(n))]
        errors, writes = await self._write_all(differing)
        self._tell(set(differing), errors, writes)
        waits = [self._retry[n].at - self._clock.monotonic() for n in differing if n in self._retry]
        return max(0.05, min(waits)) if waits else None

    def _differs(self, node: NodeView, wanted: Assignment, stored: NodeWarmupView | None) -> bool:
        """Say as `differs`, remembering the pairs found equal: a fleet's worth of comparing takes a second."""
        same = self._same.get(node.name)
        if same and same[0] is node and same[1] is wanted and same[2] is stored:
            return False
        if differs(node, wanted, stored):
            return True
        self._same[node.name] = (node, wanted, stored)
        return False

    def _stored(self, name: str) -> NodeWarmupView | None:
        """Return what is stored: what the watch shows, or our own write that it does not show yet."""
        seen, (view, until) = self._sources.warmups.get().items.get(name), self._written.get(name, (None, 0.0))
        if view is None:
            return seen
        later = seen is not None and seen.uid == view.uid and seen.generation > view.generation
        if seen == view or later or until <= self._clock.monotonic():
            del self._written[name]
            return seen
        return view

    async def _write_all(self, names: list[str]) -> tuple[dict[str, str], int]:
        """Write what these nodes lack when their turn comes: on a slow API server that is a newer plan than at the start.

        Returns:
            The errors by node, and how many writes went through.
        """
        gate, errors, written = asyncio.Semaphore(_AT_ONCE), dict[str, str](), set[str]()

        async def one(name: str) -> None:
            async with gate:
                if not (todo := self._todo(name)):
                    return
                if error := await self._write(*todo):
                    errors[name] = error
                else:
                    written.add(name)

        async with asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(one(name), name=f"publish {name}")
        return errors, len(written)

    def _todo(self, name: str) -> tuple[NodeView, Assignment, NodeWarmupView | None] | None:
        """Return what is to be written to a node now, None for nothing."""
        node, assignment = self._sources.nodes.get().items.get(name), (self._desired.get() or {}).get(name)
        if node is None or assignment is None:
            return None
        stored, retry = self._stored(name), self._retry.get(name)
        if retry and not retry.lets((assignment, stored.generation if stored else 0), self._clock.monotonic()):
            return None
        return (node, assignment, stored) if self._differs(node, assignment, stored) else None

    async def _write(self, node: NodeView, assignment: Assignment, stored: NodeWarmupView | None) -> str:
        try:
            if stored:
                body = replacement(node, assignment, stored)
                view = await self._api.patch(NODEWARMUP_SPECS, node.name, body, kind=PatchKind.JSON)
            else:
                view = await self._api.create(NODEWARMUP_SPECS, warmup(node, assignment))
        except (Transient, Permanent) as error:
            before = self._retry.get(node.name)
            backoff = (before.backoff if before else Backoff()).failed()
            lasting = isinstance(error, Permanent) and not isinstance(
                error, NotFound
            )  # not found: it is made next time
            seconds = _REFUSED_SECONDS if lasting else backoff.delay_seconds(self._rng)
            refused = (assignment, stored.generation if stored else 0) if lasting else None
            self._retry[node.name] = _Retry(backoff=backoff, at=self._clock.monotonic() + seconds, refused=refused)
            self._written.pop(node.name, None)  # whatever was written before, the next try goes by what the watch shows
            return str(error)
        self._retry.pop(node.name, None)
        self._written[node.name] = (view, self._clock.monotonic() + _SEEN_SECONDS)
        log.info("node warmup written", node=node.name, endpoints=len(assignment.endpoints))
        return ""

    def _tell(self, differing: set[str], errors: Mapping[str, str], writes: int) -> None:
        before = self._report.get()
        for name, error in errors.items():
            if before.failing.get(name) != error:
                log.warning("cannot write node warmup", node=name, error=error)
        still = {n: e for n, e in before.failing.items() if n in differing and n in self._retry}
        self._report.set(PublishReport(writes_total=before.writes_total + writes, failing={**still, **errors}))


def differs(node: NodeView, wanted: Assignment, stored: NodeWarmupView | None) -> bool:
    """Say whether a node's NodeWarmup must be written."""
    if stored is None:
        return bool(wanted.endpoints)
    if stored.assignment is None or (node.uid and stored.owner_uid != node.uid):
        return True
    if stored.assignment.endpoints == wanted.endpoints:
        return False
    return stored.assignment.endpoints != parse_assignment(format_assignment(wanted)).endpoints  # as it would be stored


def warmup(node: NodeView, assignment: Assignment) -> dict[str, object]:
    """Return a new NodeWarmup as JSON."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "NodeWarmup",
        "metadata": {"name": node.name, "ownerReferences": [_owner(node)]},
        "spec": format_assignment(assignment),
    }


def replacement(node: NodeView, assignment: Assignment, stored: NodeWarmupView) -> list[dict[str, object]]:
    """Return the JSON patch that replaces the whole spec, if nobody has replaced it since `stored` was read."""
    return [
        {"op": "test", "path": "/metadata/uid", "value": stored.uid},
        {"op": "test", "path": "/metadata/generation", "value": stored.generation},
        {"op": "add", "path": "/metadata/ownerReferences", "value": [_owner(node)]},
        {"op": "add", "path": "/spec", "value": format_assignment(assignment)},
    ]


def _owner(node: NodeView) -> dict[str, str]:
    return {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}
