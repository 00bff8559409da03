"""Writes one NodeWarmup a node, only where it differs from what is wanted.

A NodeWarmup is made when its node gets its first endpoint. When a node loses its last one the list is emptied, not the
object deleted: an empty list is the planner's word that nothing is wanted, an absent object may be an accident. With its
Node it goes by the garbage collector. One whose node does not exist is never touched.
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
from agent.kube.api import KubeApi
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retry:
    """When a node's write is tried again (monotonic seconds); `refused` is the plan the API server would not take."""

    backoff: Backoff
    at: float
    refused: Assignment | None = None

    def lets(self, assignment: Assignment, now: float) -> bool:
        """Say whether this plan may be written now: another one than was refused need not wait, for it may withdraw."""
        return self.at <= now or (self.refused is not None and self.refused != assignment)


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
        now, stored = self._clock.monotonic(), self._stored()
        self._retry = {n: r for n, r in self._retry.items() if n in desired}
        self._same = {n: s for n, s in self._same.items() if n in desired}
        todo = [
            (nodes[name], assignment)
            for name, assignment in desired.items()
            if name in nodes and self._differs(nodes[name], assignment, stored.get(name))
        ]
        open_now = [(n, a) for n, a in todo if n.name not in self._retry or self._retry[n.name].lets(a, now)]
        errors = await self._write_all(open_now, stored)
        self._tell({n.name for n, _ in todo}, errors, len(open_now) - len(errors))
        waits = [self._retry[n.name].at - self._clock.monotonic() for n, _ in todo if n.name in self._retry]
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

    def _stored(self) -> dict[str, NodeWarmupView]:
        """Return what is stored: what the watch shows, and our own writes that it does not show yet."""
        seen, now = self._sources.warmups.get().items, self._clock.monotonic()
        self._written = {
            name: (view, until)
            for name, (view, until) in self._written.items()
            if seen.get(name) != view and now < until
        }
        return {**seen, **{name: view for name, (view, _) in self._written.items()}}

    async def _write_all(
        self, todo: list[tuple[NodeView, Assignment]], stored: Mapping[str, NodeWarmupView]
    ) -> dict[str, str]:
        gate, errors = asyncio.Semaphore(_AT_ONCE), dict[str, str]()

        async def one(node: NodeView, assignment: Assignment) -> None:
            async with gate:
                if error := await self._write(node, assignment, exists=node.name in stored):
                    errors[node.name] = error

        async with asyncio.TaskGroup() as tasks:
            for node, assignment in todo:
                tasks.create_task(one(node, assignment), name=f"publish {node.name}")
        return errors

    async def _write(self, node: NodeView, assignment: Assignment, *, exists: bool) -> str:
        body = warmup(node, assignment)
        try:
            if exists:
                view = await self._api.patch(NODEWARMUP_SPECS, node.name, body)
            else:
                view = await self._api.create(NODEWARMUP_SPECS, body)
        except (Transient, Permanent) as error:
            before = self._retry.get(node.name)
            backoff = (before.backoff if before else Backoff()).failed()
            lasting = isinstance(error, Permanent) and not isinstance(
                error, NotFound
            )  # not found: it is made next time
            seconds = _REFUSED_SECONDS if lasting else backoff.delay_seconds(self._rng)
            at = self._clock.monotonic() + seconds
            self._retry[node.name] = _Retry(backoff=backoff, at=at, refused=assignment if lasting else None)
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
    """Return the NodeWarmup as JSON: to create, or as a merge patch (which replaces the whole list)."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "NodeWarmup",
        "metadata": {"name": node.name, "ownerReferences": [owner]},
        "spec": format_assignment(assignment),
    }
