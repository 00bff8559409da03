"""Withdraws the claims of nodes whose agent can no longer do it: the sweeper that no label expires without.

It acts on what the API server says now. With the API server away, or its answers incomplete, nothing is withdrawn: that this
process is blind proves nothing about a node.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from agent.core.assignment_json import format_time
from agent.core.clock import Clock
from agent.core.errors import Permanent, Transient
from agent.core.latest import Latest, Signal
from agent.core.retry import Backoff
from agent.fleet.sources import Sources
from agent.fleet.stale import (
    BRAKE_WINDOW,
    WITHDRAWN,
    AgentState,
    Stale,
    Verdict,
    allowance,
    claimed_conditions,
    claimed_labels,
    judge,
    lately_withdrawn,
    observe_agents,
)
from agent.kube.api import KubeApi, PatchKind
from agent.kube.errors import NotFound
from agent.kube.events import Announcement
from agent.kube.objects import NodeView, ObjectRef
from agent.kube.resources import NODES

log = structlog.get_logger()

_AT_ONCE = 8
_SEEN_SECONDS = 5.0  # until the watch shows our own write
_NAMES_TOLD = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawReport:
    """For metrics and alerts: nodes withdrawn so far, and those stale whose claims still stand, with the reason.

    Of these, `braked` are held back by the brake; the others by a write that failed.
    """

    withdrawn_total: int = 0
    held: Mapping[str, str] | None = None
    braked: frozenset[str] = frozenset()
    claiming: int = 0


class Withdrawer:
    """A service. `swept` is set once everything stale at its start has been dealt with."""

    name = "withdraw stale claims"

    def __init__(
        self,
        api: KubeApi,
        sources: Sources,
        report: Latest[WithdrawReport],
        *,
        clock: Clock,
        grace: timedelta,
        brake: float,
    ) -> None:
        self.swept = asyncio.Event()
        self._api, self._sources, self._report, self._clock = api, sources, report, clock
        self._grace, self._brake = grace, brake
        self._agents: Mapping[str, AgentState] = {}
        self._recent: dict[str, datetime] = {}  # by node: one that is withdrawn again is not one more
        self._written: dict[str, tuple[NodeView, float]] = {}
        self._calm = Backoff(base_seconds=0.5, cap_seconds=5)
        self._backoff = self._calm
        self._rng = random.Random()  # noqa: S311 (jitter)

    async def run(self) -> None:
        """Run until cancelled."""
        signal = Signal()
        cells = (self._sources.nodes, self._sources.agents)
        for cell in cells:
            cell.attach(signal)
        try:
            while True:
                wait = await self.sweep()
                await signal.wait(wait)
        finally:
            for cell in cells:
                cell.detach(signal)

    async def sweep(self) -> float | None:
        """Withdraw what is stale now, as far as the brake allows.

        Returns:
            Seconds until there may be more to do with nothing changed; None if only a change can bring more.
        """
        nodes, agents = self._sources.nodes.get(), self._sources.agents.get()
        if not (nodes.current and agents.current):
            return None
        now = self._clock.now()
        if not self.swept.is_set():
            self._recent = lately_withdrawn(nodes.items.values(), now)
        self._agents = observe_agents(nodes.items, agents.items.values(), self._agents, now)
        verdict = judge(self._unwritten(nodes.items), self._agents, now, self._grace)
        self._recent = {name: at for name, at in self._recent.items() if now - BRAKE_WINDOW < at <= now}
        fresh = [s for s in verdict.stale if s.node not in self._recent]
        allowed = allowance(verdict.claiming, self._recent.values(), self._brake, now)
        let = fresh[:allowed] + [s for s in verdict.stale if s.node in self._recent]
        done = await self._withdraw([(nodes.items[s.node], s) for s in let])
        held = {s.node: s.reason for s in verdict.stale if s.node not in done}
        self._tell(held, frozenset(s.node for s in fresh[allowed:]), len(done), verdict.claiming)
        self.swept.set()
        return self._wait(verdict, failed=len(done) < len(let), braked=bool(held))

    def _wait(self, verdict: Verdict, *, failed: bool, braked: bool) -> float | None:
        now = self._clock.now()
        waits = [(verdict.wake_at - now).total_seconds()] if verdict.wake_at else []
        if failed:
            self._backoff = self._backoff.failed()
            waits.append(self._backoff.delay_seconds(self._rng))
        else:
            self._backoff = self._calm
        if braked and self._recent:
            waits.append((min(self._recent.values()) + BRAKE_WINDOW - now).total_seconds())
        return max(0.05, min(waits)) if waits else None

    def _unwritten(self, nodes: Mapping[str, NodeView]) -> list[NodeView]:
        """Return the nodes without those whose withdrawal is written but not seen in the watch yet."""
        now = self._clock.monotonic()
        self._written = {
            name: (view, until)
            for name, (view, until) in self._written.items()
            if nodes.get(name) is view and now < until
        }
        return [node for node in nodes.values() if node.name not in self._written]

    async def _withdraw(self, condemned: list[tuple[NodeView, Stale]]) -> set[str]:
        gate, done = asyncio.Semaphore(_AT_ONCE), set[str]()

        async def one(node: NodeView, stale: Stale) -> None:
            async with gate:
                if await self._strip(node, stale):
                    done.add(node.name)

        async with asyncio.TaskGroup() as tasks:
            for node, stale in condemned:
                tasks.create_task(one(node, stale), name=f"withdraw {node.name}")
        return done

    async def _strip(self, node: NodeView, stale: Stale) -> bool:
        now = self._clock.now()
        body = withdrawal(node, stale, now)
        try:
            await self._api.patch(NODES, node.name, body, kind=PatchKind.STRATEGIC, subresource="status")
        except NotFound:
            return True
        except (Transient, Permanent) as error:
            log.warning("cannot withdraw claims", node=node.name, error=str(error))
            return False
        self._recent[node.name] = now
        self._written[node.name] = (node, self._clock.monotonic() + _SEEN_SECONDS)
        log.warning("claims withdrawn", node=node.name, why=stale.reason, reason=stale.message)
        return True

    def _tell(self, held: Mapping[str, str], braked: frozenset[str], done: int, claiming: int) -> None:
        before = self._report.get()
        failed = held.keys() - braked
        if braked - before.braked:
            log.error("the brake holds back the withdrawal of stale claims", nodes=sorted(braked), brake=self._brake)
        if failed - (before.held or {}).keys():
            log.error("stale claims stand: the write failed", nodes=sorted(failed))
        total = before.withdrawn_total + done
        self._report.set(
            WithdrawReport(withdrawn_total=total, held=held or None, braked=braked, claiming=claiming - done)
        )


def withdrawal(node: NodeView, stale: Stale, now: datetime) -> dict[str, object]:
    """Return the one strategic patch of `nodes/status` that takes back everything a node claims, and says why."""
    time = format_time(now)
    conditions = [
        {
            "type": kind,
            "status": "Unknown",
            "reason": stale.reason,
            "message": f"{WITHDRAWN}{stale.message}",
            "lastTransitionTime": time,
            "lastHeartbeatTime": time,
        }
        for kind in claimed_conditions(node)
    ]
    body: dict[str, object] = {"metadata": {"labels": dict.fromkeys(claimed_labels(node))}}
    return body | ({"status": {"conditions": conditions}} if conditions else {})


def brake_alarm(report: WithdrawReport, brake: float, namespace: str) -> tuple[Announcement, ...]:
    """Return what is to be said, as an Event on the planner's Deployment, while the brake holds back withdrawals."""
    if not report.braked or not report.held:
        return ()
    names = sorted(report.braked)
    shown = ", ".join(names[:_NAMES_TOLD]) + (
        f" and {len(names) - _NAMES_TOLD} more" if len(names) > _NAMES_TOLD else ""
    )
    reasons = ", ".join(sorted({report.held[name] for name in names}))
    message = (
        f"more than {brake:.0%} of the nodes that claim to be warm went stale within a minute ({reasons}): the claims of {shown}"
        " stand until the brake allows their withdrawal or the nodes are back"
    )
    about = ObjectRef(api_version="apps/v1", kind="Deployment", name="prewarm-planner", namespace=namespace)
    return (Announcement(about=about, reason="BrakeTripped", message=message),)
