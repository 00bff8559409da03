"""The GPU service: asks NVML through a killable child and publishes the node's verdict.

A hung driver costs a deadline, never the loop: the service completes its cycle, says "hung" and goes on. Fatal events are
published inside the callback that hears them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from agent.config import Settings
from agent.core.clock import Clock
from agent.core.errors import PrewarmError
from agent.core.heartbeat import GPU, Heartbeat
from agent.core.inventory import GpuReport, GpuVerdict
from agent.core.latest import Latest, Signal
from agent.core.retry import Backoff
from agent.gpu.events import XID, XidClass, fatal, xid_class
from agent.gpu.health import CLEAN_SAMPLES, Health, after_event, after_sample
from agent.gpu.observation import Deaf, Died, Event, Hung, Observation, Refused
from agent.gpu.pci import PciBus
from agent.gpu.process import Child, Gone, NoAnswer, OnEvent, start_prober
from agent.gpu.rules import expects_gpus, wanted_gpus

NAME = GPU
NO_GPU_POLL_SECONDS = 20.0  # a node without GPUs looks at its bus this seldom, yet beats within the 30 s of /readyz
RESTARTS = Backoff(base_seconds=1.0, cap_seconds=30.0, floor_seconds=0.5)
LEAST_SPACING_SECONDS = 1.0  # events cannot make cycles faster than this

log = structlog.get_logger(__name__)

StartChild = Callable[[OnEvent], Awaitable[Child]]


class XidObserver(Protocol):
    """Whoever counts Xids."""

    def xid(self, kind: XidClass) -> None:
        """Count one Xid of that class."""
        ...


class NobodyCounts:
    """An observer for those who do not count."""

    def xid(self, kind: XidClass) -> None:
        """See `XidObserver`."""


class GpuService:
    """Polls every `settings.gpu_poll_seconds`, listens for events in between, and keeps `gpu` at the newest verdict."""

    name = NAME

    def __init__(
        self,
        *,
        gpu: Latest[GpuReport],
        settings: Settings,
        clock: Clock,
        heartbeat: Heartbeat,
        observer: XidObserver | None = None,
        start: StartChild = start_prober,
        rng: random.Random | None = None,
    ) -> None:
        self._gpu = gpu
        self._settings = settings
        self._clock = clock
        self._heartbeat = heartbeat
        self._observer = observer or NobodyCounts()
        self._start = start
        self._rng = rng or random.Random()  # noqa: S311 (jitter, no secret)
        self._wanted = wanted_gpus(settings.gpus)
        self._pci = PciBus(settings.pci_devices)
        self._wake = Signal()
        self._health = Health()
        self._child: Child | None = None
        self._stuck: Child | None = None
        self._driver: tuple[str, int] | None = None  # version and count that the child's event set was made for
        self._stale = False
        self._answers = 0
        self._backoff = RESTARTS
        self._retry_at = float("-inf")
        heartbeat.expect(NAME)

    async def run(self) -> None:
        """Poll until cancelled; the child is killed on the way out."""
        try:
            while True:
                began = self._clock.monotonic()
                pause = await self._cycle()
                self._heartbeat.beat(NAME, self._clock.monotonic())
                if await self._wake.wait(pause):
                    await self._clock.sleep(max(0.0, began + LEAST_SPACING_SECONDS - self._clock.monotonic()))
        finally:
            if self._child:
                await self._child.close()

    async def _cycle(self) -> float:
        """Look once; return how long to wait for the next look."""
        pci = await asyncio.to_thread(self._pci.gpus)
        if self._health.report.verdict is GpuVerdict.NONE and not expects_gpus(pci, self._wanted):
            await self._drop_child()
            return NO_GPU_POLL_SECONDS
        seen = await self._observe()
        if seen is not None:
            self._become(after_sample(self._health, seen, pci, self._wanted))
        wait = self._retry_at - self._clock.monotonic()
        return min(self._settings.gpu_poll_seconds, wait) if wait > 0 else self._settings.gpu_poll_seconds

    async def _observe(self) -> Observation | None:
        """Return what there is to see now; None while a new child has to wait for its backoff."""
        if self._stuck:
            if not self._stuck.exited:
                return Hung(pid=self._stuck.pid, seconds=self._settings.gpu_timeout_seconds, unkillable=True)
            self._stuck = None
        if self._child is None and self._clock.monotonic() < self._retry_at:
            return None
        if self._stale:
            await self._drop_child()
        try:
            return await self._ask()
        except NoAnswer:
            return await self._give_up()
        except Gone as error:
            await self._failed()
            return Died(status=error.status, times=self._backoff.failures)
        except PrewarmError as error:
            log.warning("NVML prober unusable", error=str(error))
            await self._failed()
            return Died(status=1, times=self._backoff.failures)

    async def _ask(self) -> Observation:
        deadline = self._settings.gpu_timeout_seconds
        if self._child is None:
            self._child = await self._start(self._heard)
            started = await self._child.started(deadline)
            if started.init:  # pynvml never closes its library: only a fresh process sees a repaired driver
                await self._failed()
                return Refused(code=started.init)
        sample = await self._child.ask(deadline)
        self._answers += 1
        if self._answers >= CLEAN_SAMPLES:  # one that dies after each answer must not start afresh for ever
            self._backoff = RESTARTS
        seen = (sample.driver, sample.count)
        if self._driver not in (None, seen):
            self._stale = True
            self._wake.fire()
        self._driver = seen
        return sample

    async def _give_up(self) -> Hung:
        pid = self._child.pid if self._child else 0
        await self._failed()
        return Hung(pid=pid, seconds=self._settings.gpu_timeout_seconds, unkillable=self._stuck is not None)

    async def _failed(self) -> None:
        await self._drop_child()
        self._backoff = self._backoff.failed()
        self._retry_at = self._clock.monotonic() + self._backoff.delay_seconds(self._rng)

    async def _drop_child(self) -> None:
        child, self._child = self._child, None
        self._driver, self._stale, self._answers = None, False, 0
        if child and not await child.close():
            log.error("NVML prober cannot be killed", pid=child.pid)
            self._stuck = child

    def _heard(self, event: Event | Deaf) -> None:
        """Take an event in the moment it arrives; the cycle that follows reads the recovery action."""
        self._wake.fire()
        if isinstance(event, Deaf):
            log.warning("waiting for NVML events failed", code=event.code)
            return
        log.info("GPU event", uuid=event.uuid, type=event.type, data=event.data)
        if event.type == XID:
            self._observer.xid(xid_class(event.data))
        self._become(after_event(self._health, event))
        if fatal(event):
            self._stale = True  # recovery is proved by a fresh process

    def _become(self, health: Health) -> None:
        if health.report != self._health.report:
            log.info("GPU verdict", verdict=health.report.verdict.value, reason=health.report.reason)
        self._health = health
        self._gpu.set(health.report)
