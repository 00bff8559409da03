"""The planner's loop: whenever the cluster, a version or a window changes, draft the whole plan again and hand it on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from agent.core.assignment import Assignment, Window
from agent.core.clock import Clock
from agent.core.latest import Latest, Signal
from agent.core.refs import EndpointKey, ImageRef, ModelUri
from agent.demand.endpoint import Endpoint
from agent.demand.foretold import Windows
from agent.fleet.draft import Draft, Drafter
from agent.fleet.ledger import Ledger, ready_windows, settled
from agent.fleet.provision import Provision
from agent.fleet.resolutions import Resolution, Resolutions, ResolvedModel
from agent.fleet.scale import Scaling
from agent.fleet.sources import Sources
from agent.kube.events import Announcement
from agent.kube.pull_secrets import PullFor

log = structlog.get_logger()

_DEBOUNCE_SECONDS = 0.2
_LEAST_WAIT_SECONDS = 60.0  # windows that end close together are one write


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """For metrics: by how much the next windows of endpoints will be late at best, and how many nodes are slow."""

    late: Mapping[EndpointKey, timedelta] = field(default_factory=dict)
    slow_nodes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """The planner's cells: what is to be resolved and what was, and the plan's two outcomes."""

    model_wants: Latest[Mapping[ModelUri, tuple[Window, ...]]] = field(default_factory=lambda: Latest({}))
    image_wants: Latest[Mapping[ImageRef, tuple[Window, ...]]] = field(default_factory=lambda: Latest({}))
    pulls: Latest[Mapping[ImageRef, tuple[PullFor, ...]]] = field(default_factory=lambda: Latest({}))
    models: Latest[Mapping[ModelUri, Resolution[ResolvedModel]]] = field(default_factory=lambda: Latest({}))
    images: Latest[Mapping[ImageRef, Resolution[str]]] = field(default_factory=lambda: Latest({}))
    desired: Latest[Mapping[str, Assignment] | None] = field(default_factory=lambda: Latest(None))
    standing: Latest[Collection[Announcement]] = field(default_factory=lambda: Latest(frozenset()))
    scalings: Latest[tuple[Scaling, ...] | None] = field(default_factory=lambda: Latest(None))
    provisions: Latest[tuple[Provision, ...] | None] = field(default_factory=lambda: Latest(None))
    forecast: Latest[Forecast] = field(default_factory=lambda: Latest(Forecast()))
    ledger: Latest[Ledger] = field(default_factory=lambda: Latest(Ledger()))
    endpoints: Latest[tuple[Endpoint, ...] | None] = field(default_factory=lambda: Latest(None))
    predicted: Latest[Windows] = field(default_factory=lambda: Latest({}))


class Planner:
    """A service that turns `sources` and resolved versions into `plans`."""

    name = "planner"

    def __init__(
        self,
        sources: Sources,
        plans: Plans,
        drafter: Drafter,
        *,
        clock: Clock,
        ready: Callable[[], Awaitable[object]],
    ) -> None:
        """`ready` returns when planning may begin: after the first sweep of stale claims."""
        self._sources, self._plans, self._drafter = sources, plans, drafter
        self._clock, self._ready = clock, ready

    async def run(self) -> None:
        """Run until cancelled."""
        signal = Signal()
        self._sources.attach(signal)
        self._plans.models.attach(signal)
        self._plans.images.attach(signal)
        self._plans.predicted.attach(signal)
        try:
            await self._ready()
            while True:
                began = self._clock.monotonic()
                wait = await self._cycle()
                took = self._clock.monotonic() - began
                await signal.wait(wait)
                await self._clock.sleep(
                    max(_DEBOUNCE_SECONDS, took)
                )  # a restless large fleet costs half a core at most
        finally:
            self._sources.detach(signal)
            self._plans.models.detach(signal)
            self._plans.images.detach(signal)
            self._plans.predicted.detach(signal)

    async def _cycle(self) -> float | None:
        if not self._sources.synced:
            return None
        now, began = self._clock.now(), self._clock.monotonic()
        resolutions = Resolutions(models=self._plans.models.get(), images=self._plans.images.get())
        state = replace(self._sources.state(resolutions), predicted=self._plans.predicted.get())
        # In a thread: a large fleet takes seconds, and the Lease must be renewed meanwhile.
        draft = await asyncio.to_thread(self._drafter.draft, state, now)
        log.debug("planned", endpoints=draft.endpoints, seconds=self._clock.monotonic() - began)
        self._hand_on(draft)
        self._settle(draft)
        return seconds_until(draft.wake_at, self._clock.now())

    def _settle(self, draft: Draft) -> None:
        """Bring the ledger up to date by what nodes claim and workloads run at this moment."""
        ready = ready_windows(draft.assignments.values(), self._sources.nodes.get().items)
        before = self._plans.ledger.get()
        self._plans.ledger.set(settled(before, draft.windows, ready, draft.used, self._clock.now()))

    def _hand_on(self, draft: Draft) -> None:
        self._plans.model_wants.set(draft.models)
        self._plans.pulls.set(draft.pulls)
        self._plans.image_wants.set(draft.images)
        self._plans.standing.set(draft.announcements)
        self._plans.scalings.set(draft.scalings)
        self._plans.provisions.set(draft.provisions)
        self._plans.forecast.set(Forecast(late=draft.misses, slow_nodes=len(draft.slow_nodes)))
        self._plans.endpoints.set(draft.declared)
        self._plans.desired.set(draft.assignments)


def seconds_until(wake_at: datetime | None, now: datetime) -> float | None:
    """Return how long to wait for the next boundary of a window, at least a minute; None if there is none."""
    return max(_LEAST_WAIT_SECONDS, (wake_at - now).total_seconds()) if wake_at else None
