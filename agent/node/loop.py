"""The decide loop: on any change, or when time alone changes the answer, compute the plan and the readiness anew.

It acts on nothing: the rooms follow the plan, the publisher follows the readiness.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from agent.core.assignment import Assignment
from agent.core.clock import Clock
from agent.core.heartbeat import GPU, Heartbeat
from agent.core.inventory import (
    GpuReport,
    GpuVerdict,
    ImageState,
    Inventory,
    MemoryView,
    ModelsView,
    with_residency,
)
from agent.core.latest import Latest, Signal
from agent.core.names import READY
from agent.core.refs import EndpointKey, ImageRef
from agent.node.readiness import Readiness, readiness
from agent.plan.decision import NodePlan
from agent.plan.pace import Pace

PROOF_AGE_SECONDS = 30.0  # the design's: what was proved longer ago is proved no more
_STALE_LOOK_SECONDS = 1.0
_NUMBER = re.compile(r"\d+[\d.a-zA-Z]*")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The cells that the decision reads."""

    assignment: Latest[Assignment | None]
    images: Latest[Mapping[ImageRef, ImageState]]
    models: Latest[ModelsView]
    memory: Latest[MemoryView]
    gpu: Latest[GpuReport]
    waiting: Latest[frozenset[EndpointKey]]
    elsewhere: Latest[Mapping[str, str]] = field(default_factory=lambda: Latest({}))
    pace: Latest[Pace] = field(default_factory=lambda: Latest(Pace()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """The cells that the decision sets, all of one cycle; `readiness` last."""

    inventory: Latest[Inventory]
    plan: Latest[NodePlan]
    readiness: Latest[Readiness | None]


class DecideLoop:
    """Sets plan and readiness from the whole current state."""

    name = "decide"

    def __init__(
        self,
        *,
        facts: Facts,
        decisions: Decisions,
        plan: Callable[[Assignment | None, Inventory, datetime], NodePlan],
        heartbeat: Heartbeat,
        clock: Clock,
        boot_id: str,
        lift_taint: str,
    ) -> None:
        self._facts = facts
        self._decisions = decisions
        self._plan = plan
        self._heartbeat = heartbeat
        self._clock = clock
        self._boot_id = boot_id
        self._lift_taint = lift_taint
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Decide until cancelled."""
        signal = Signal()
        f = self._facts
        cells = (f.assignment, f.images, f.models, f.memory, f.gpu, f.waiting, f.elsewhere, self._heartbeat.begun)
        for cell in cells:
            cell.attach(signal)
        try:
            while True:
                await signal.wait(self.decide())
        finally:
            for cell in cells:
                cell.detach(signal)

    def decide(self) -> float | None:
        """Run one cycle; return the seconds until time alone can change its outcome, None for never."""
        now = self._clock.now()
        inventory = self._inventory()
        plan = self._plan(self._facts.assignment.get(), inventory, now)
        ready = readiness(self._facts.assignment.get(), inventory, now, lift_taint=self._lift_taint)
        self._log(plan, ready)
        self._decisions.inventory.set(inventory)
        self._decisions.plan.set(plan)
        self._decisions.readiness.set(ready)
        waits = [(at - now).total_seconds() for at in (plan.wake_at, ready.wake_at) if at is not None]
        waits += [_until_other(age) for age in (self._proof_age(), self._gpu_age()) if age < float("inf")]
        return max(0.05, min(waits)) if waits else None

    def _inventory(self) -> Inventory:
        models, memory = self._facts.models.get(), self._facts.memory.get()
        return Inventory(
            boot_id=self._boot_id,
            images=self._facts.images.get(),
            models=with_residency(models.states, memory),
            resolved=models.resolved,
            unresolved=models.unresolved,
            gpu=self._gpu(),
            cache=models.cache,
            memory=memory,
            waiting=self._facts.waiting.get(),
            pace_bytes_per_second=self._facts.pace.get().bytes_per_second,
            present_bytes_per_second=self._facts.pace.get().present_bytes_per_second,
            elsewhere=self._facts.elsewhere.get(),
            proved=self._proof_age() <= PROOF_AGE_SECONDS,
        )

    def _proof_age(self) -> float:
        return max(self._heartbeat.ages_seconds(self._clock.monotonic()).values(), default=0.0)

    def _gpu(self) -> GpuReport:
        """Return the verdict, unless nobody has looked for so long that a good one proves nothing."""
        report = self._facts.gpu.get()
        if not PROOF_AGE_SECONDS < self._gpu_age() < float("inf") or report.verdict is GpuVerdict.UNHEALTHY:
            return report
        reason = f"nobody has looked at the GPUs for {PROOF_AGE_SECONDS:.0f} s"
        return GpuReport(verdict=GpuVerdict.UNKNOWN, reason=reason, count=report.count)

    def _gpu_age(self) -> float:
        return self._heartbeat.ages_seconds(self._clock.monotonic()).get(GPU, float("inf"))

    def _log(self, plan: NodePlan, ready: Readiness) -> None:
        """Log each endpoint's stage and each label with its reason, when they change (numbers in reasons aside)."""
        for told in plan.endpoints:
            self._say(f"plan {told.want.key}", str(told.stage), told.reason, "endpoint decided")
        for label, reason in ready.reasons.items():
            self._say(label, ready.labels.get(label, f"not {READY}"), reason, "label decided")
        known = {f"plan {e.want.key}" for e in plan.endpoints} | ready.reasons.keys()
        for gone in self._told.keys() - known:
            del self._told[gone]
            log.info("no longer asked for", what=gone)

    def _say(self, what: str, value: str, reason: str, event: str) -> None:
        now = f"{value} {_NUMBER.sub('#', reason)}"
        if self._told.get(what) != now:
            self._told[what] = now
            log.info(event, what=what.removeprefix("plan "), value=value, reason=reason)


def _until_other(age_seconds: float) -> float:
    """Return when to look at a proof's age again: when it is too old, and then often, for a late beat wakes nobody."""
    left = PROOF_AGE_SECONDS - age_seconds
    return left + 0.1 if left >= 0 else _STALE_LOOK_SECONDS
