"""The planner's memory of when endpoints had requests: watched, read from Prometheus, kept in ConfigMaps.

What was seen since the last write is lost with a leader that crashes: those slots are unknown to the next one, never idle.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog

from agent.config import Settings
from agent.core.clock import Clock
from agent.core.errors import Permanent, Transient
from agent.core.latest import Latest, Signal
from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint
from agent.demand.history import SLOT_SECONDS, History, Track, known_share, slot_of
from agent.demand.history_observer import Observed, Observer, Sight
from agent.fleet.history_reader import SCRAPED, HistoryReader, refusals
from agent.fleet.history_store import HistoryStore
from agent.fleet.prometheus import Prometheus
from agent.fleet.resolutions import Resolutions
from agent.fleet.sources import Sources
from agent.kube.api import KubeApi
from agent.kube.events import Announcement

log = structlog.get_logger()

_LOOK_SECONDS = 1.0  # at least, between two looks: a restless fleet changes more often than this matters
_RETRY_SECONDS = 30.0
_GOODBYE_SECONDS = 3.0
_NOT_STORED = (Transient, Permanent)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryReport:
    """The tracks of all endpoints, for a forecast; when they were last written, and failures so far, for metrics.

    `complete` once what was kept is loaded, and Prometheus, where there is one, was asked about the past.
    """

    tracks: Mapping[EndpointKey, Track] = field(default_factory=dict)
    complete: bool = False
    written_at: datetime | None = None
    failures: Mapping[str, int] = field(default_factory=dict)

    def known_share(self, now: datetime) -> float:
        """Return how much of the last seven days is known, over all endpoints."""
        return known_share(tuple(self.tracks.values()), slot_of(now))


class HistoryKeeper:
    """A service of the leader. Its failures cost knowledge, nothing else."""

    name = "history"

    def __init__(
        self,
        api: KubeApi,
        settings: Settings,
        sources: Sources,
        endpoints: Latest[tuple[Endpoint, ...] | None],
        report: Latest[HistoryReport],
        *,
        clock: Clock,
    ) -> None:
        """Failures in `report` are counted on; `refused` holds what is to be told of queries."""
        self.refused: Latest[Collection[Announcement]] = Latest(())
        self._settings, self._sources, self._endpoints, self._report = settings, sources, endpoints, report
        self._clock = clock
        self._history, self._observer = History(), Observer()
        self._store = HistoryStore(api, settings.namespace)
        self._loaded = asyncio.Event()
        self._asked = not settings.prometheus_url
        self._failed = ""
        self._failures = dict(report.get().failures)

    async def run(self) -> None:
        """Run until cancelled; then what was seen is written once more, if that is quick."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._observe(), name="history: observe")
                tasks.create_task(self._keep(), name="history: keep")
                if self._settings.prometheus_url:
                    tasks.create_task(self._read(), name="history: read")
        finally:
            with contextlib.suppress(TimeoutError, *_NOT_STORED):
                async with asyncio.timeout(_GOODBYE_SECONDS):
                    await self._write()

    async def _observe(self) -> None:
        signal = Signal()
        self._endpoints.attach(signal)
        self._sources.attach(signal)
        try:
            while True:
                now = self._clock.now()
                for observed in self._observer.look(now, self._sight()):
                    self._enter(observed)
                self._tell()
                await self._clock.sleep(_LOOK_SECONDS)
                await signal.wait(SLOT_SECONDS - self._clock.now().timestamp() % SLOT_SECONDS + 0.01)
        finally:
            self._endpoints.detach(signal)
            self._sources.detach(signal)

    def _sight(self) -> Sight:
        endpoints = {
            e.key: (e.workload.kind, e.workload.namespace, e.workload.name) for e in self._endpoints.get() or ()
        }
        running = {(w.kind, w.namespace, w.name): w.running for w in self._sources.state(Resolutions()).workloads}
        return Sight(
            declared=frozenset(key for key, ref in endpoints.items() if ref in running),
            running=frozenset(key for key, ref in endpoints.items() if running.get(ref)),
            current=self._sources.current,
        )

    def _enter(self, observed: Observed) -> None:
        for keys, active in ((observed.active, 1), (observed.idle, 0)):
            for key in keys:
                if not (active and self._history.track(key).state(observed.slot)):
                    self._history.tell(key, Track(first=observed.slot, active=active, known=1))

    async def _keep(self) -> None:
        while True:
            try:
                if not self._store.loaded:
                    await self._load()
                else:
                    await self._write()
                self._failed = ""
            except _NOT_STORED as error:
                self._count("write")
                if str(error) != self._failed:
                    log.warning("histories cannot be kept", error=str(error))
                self._failed = str(error)
            self._tell()
            longest = self._settings.history_seconds
            await self._clock.sleep(min(longest, _RETRY_SECONDS) if self._failed else longest)

    async def _load(self) -> None:
        for key, track in (await self._store.load()).items():
            self._history.fill(key, track)
        for _ in range(self._store.unreadable):
            self._count("shard")
        self._loaded.set()
        log.info("histories loaded", endpoints=len(self._history.tracks))

    async def _write(self) -> None:
        """Write what has changed; what another leader wrote meanwhile is filled in and written with it."""
        if not self._store.loaded:
            return
        for _ in range(2):
            now = self._clock.now()
            self._history.tidy(slot_of(now), self._declared())
            foreign = await self._store.write(self._history.tracks, now)
            if foreign is None:
                break
            for key, track in foreign.items():
                self._history.fill(key, track)
        self._report.set(replace(self._report.get(), tracks=self._history.tracks, written_at=now))

    def _declared(self) -> Collection[EndpointKey]:
        """Return who is not to be forgotten: everybody, while it is not known who there is."""
        endpoints = self._endpoints.get()
        if endpoints is None or not self._sources.current:
            return self._history.tracks.keys()
        return frozenset(endpoint.key for endpoint in endpoints)

    async def _read(self) -> None:
        await self._loaded.wait()  # what was kept counts more than what is guessed of the past
        settings = self._settings
        prometheus = Prometheus(settings.prometheus_url, settings.prometheus_token_file)
        reader = HistoryReader(prometheus, settings.history_queries)
        failures = self._failures.get("read", 0)
        signal = Signal()
        self._endpoints.attach(signal)
        try:
            while True:
                endpoints = self._endpoints.get() or ()
                await reader.read(endpoints, self._history, self._clock.now())
                self._asked = self._asked or bool(endpoints)
                self._failures["read"] = failures + reader.failures_total
                self.refused.set(refusals(endpoints, reader.problems))
                self._tell()
                await self._pause(signal, endpoints)
        finally:
            self._endpoints.detach(signal)
            await prometheus.close()

    async def _pause(self, signal: Signal, endpoints: tuple[Endpoint, ...]) -> None:
        """Wait until the next slot has been scraped, or other endpoints are declared."""
        late = (self._clock.now() - SCRAPED).timestamp() % SLOT_SECONDS
        until = self._clock.monotonic() + SLOT_SECONDS - late
        while (left := until - self._clock.monotonic()) > 0:
            await signal.wait(left)
            if self._endpoints.get() not in (None, endpoints):
                return

    def _count(self, what: str) -> None:
        self._failures[what] = self._failures.get(what, 0) + 1

    def _tell(self) -> None:
        complete = self._store.loaded and self._asked
        told = replace(
            self._report.get(), tracks=self._history.tracks, complete=complete, failures=dict(self._failures)
        )
        self._report.set(told)
