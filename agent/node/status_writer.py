"""Writes the NodeWarmup's status: on changes of level or reason, at most once in 30 s; what takes readiness back at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Protocol

import structlog

from agent.core.assignment import Assignment
from agent.core.clock import Clock
from agent.core.errors import PrewarmError, cut
from agent.core.inventory import Inventory
from agent.core.latest import Latest, Signal
from agent.core.retry import Backoff
from agent.node.readiness import Readiness
from agent.node.status import Status, loses_readiness, render_status, signature
from agent.plan.decision import NodePlan

_INTERVAL_SECONDS = 30.0
_WRITE_TIMEOUT_SECONDS = 5.0

log = structlog.get_logger()


class StatusWriter(Protocol):
    """The one write on the agent's own NodeWarmup."""

    async def write_status(self, node: str, status: Mapping[str, object]) -> None:
        """Merge-patch `status` of the NodeWarmup called `node` (null removes a field, lists are replaced).

        Raises:
            Transient: a retry may help.
            Permanent: it is refused, or the NodeWarmup is gone.
        """
        ...


class StatusPublisher:
    """Keeps `NodeWarmup.status` telling what the node's last decision rested on."""

    name = "status"

    def __init__(
        self,
        *,
        assignment: Latest[Assignment | None],
        inventory: Latest[Inventory],
        plan: Latest[NodePlan],
        readiness: Latest[Readiness | None],
        writer: StatusWriter,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._assignment = assignment
        self._inventory = inventory
        self._plan = plan
        self._readiness = readiness
        self._writer = writer
        self._clock = clock
        self._rng = rng
        self._written: Status | None = None
        self._uid = ""
        self._next_at = float("-inf")
        self._backoff: Backoff | None = None
        self._retry_at = float("-inf")
        self._told = ""

    async def run(self) -> None:
        """Write until cancelled."""
        signal = Signal()
        self._readiness.attach(signal)  # the decide loop sets it last: the other cells belong to the same decision then
        self._plan.attach(signal)
        self._inventory.attach(signal)
        try:
            while True:
                await signal.wait(await self._step())
        finally:
            for cell in (self._readiness, self._plan, self._inventory):
                cell.detach(signal)

    async def _step(self) -> float | None:
        """Write if it is due; return the seconds after which to look again, None for a change."""
        assignment, readiness = self._assignment.get(), self._readiness.get()
        if assignment is None or readiness is None or not assignment.uid:
            return None
        if assignment.uid != self._uid:  # another object of the same name: it knows nothing yet
            self._uid, self._written, self._next_at = assignment.uid, None, float("-inf")
        status = render_status(assignment, self._inventory.get(), self._plan.get(), readiness, self._clock.now())
        if self._written is not None and signature(status) == signature(self._written):
            return None
        now = self._clock.monotonic()
        due = self._retry_at if loses_readiness(self._written, status) else max(self._next_at, self._retry_at)
        if due > now:
            return due - now
        await self._write(assignment.node, status)
        return 0.0

    async def _write(self, node: str, status: Status) -> None:
        error = await self._try(node, status)
        now = self._clock.monotonic()
        self._next_at = now + _INTERVAL_SECONDS
        if error is None:
            self._written, self._backoff, self._retry_at, self._told = status, None, float("-inf"), ""
            return
        self._backoff = (self._backoff or Backoff(base_seconds=1.0, cap_seconds=60.0)).failed()
        self._retry_at = now + self._backoff.delay_seconds(self._rng)
        if error != self._told:
            log.warning("cannot write the status of the NodeWarmup", error=error)
            self._told = error

    async def _try(self, node: str, status: Status) -> str | None:
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_SECONDS):
                await self._writer.write_status(node, status)
        except TimeoutError:
            return f"the API server did not answer within {_WRITE_TIMEOUT_SECONDS:.0f} s"
        except PrewarmError as error:
            return cut(error)
        return None
