"""The GPU service: asks NVML through a killable child, hears the kernel log, and publishes the node's verdict.

A hung driver costs a deadline, never the loop: the service completes its cycle, says "hung" and goes on. Fatal events are
published inside the callback that hears them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from agent.config import Settings
from agent.core.clock import Clock
from agent.core.heartbeat import GPU, Heartbeat
from agent.core.inventory import GpuReport, GpuVerdict
from agent.core.latest import Latest, Signal
from agent.gpu.events import XidClass, meaning, xid_class, xid_of
from agent.gpu.findings import Around
from agent.gpu.health import Health, after_event, after_sample, after_test, recovered, unproved
from agent.gpu.kept import KeptFaults
from agent.gpu.kernel_log import KernelLog
from agent.gpu.observation import Deaf, Event, Gpu, LogEvent, Outcome, Sample, TestResult
from agent.gpu.pci import PciBus
from agent.gpu.probe import Child, OnEvent, start_prober
from agent.gpu.proofs import Proofs
from agent.gpu.questions import FULL, QUICK, SLOW
from agent.gpu.report import Policy
from agent.gpu.standing import StandingProbe, StartChild
from agent.gpu.tester import CudaTest, RunTest, Tester

NAME = GPU
NO_GPU_POLL_SECONDS = 20.0  # a node without GPUs looks at its bus this seldom, yet beats within the 30 s of /readyz
LEAST_SPACING_SECONDS = 1.0  # events cannot make cycles faster than this
DOUBT_SECONDS = 0.5  # what is doubted is looked at again this soon
FULL_EVERY, SLOW_EVERY = 2, 12  # polls: 10 s and a minute
TELL_AGAIN_SECONDS = 60.0
TAINT_SECONDS = (
    8.0  # an API server that is away may not cost the claims that stand: they are proved within 10 s of a start
)

log = structlog.get_logger(__name__)


class GpuObserver(Protocol):
    """Whoever counts."""

    def xid(self, kind: XidClass) -> None:
        """Count one Xid of that class."""
        ...

    def gpu_test(self, outcome: Outcome) -> None:
        """Count one active test."""
        ...


class NobodyCounts:
    """An observer for those who do not count."""

    def xid(self, kind: XidClass) -> None:
        """See `GpuObserver`."""

    def gpu_test(self, outcome: Outcome) -> None:
        """See `GpuObserver`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What tests put in the place of the real thing. `start` and `run_test`: None for real children."""

    start: StartChild | None = None
    run_test: RunTest | None = None
    uptime_seconds: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
    rng: random.Random = field(default_factory=random.Random)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRoom:
    """What the service is given of this node, and the cell `gpu` that it sets.

    `tainted` tells whether the start-up taint stands on the node, None as long as that is not known.
    """

    settings: Settings
    boot_id: str
    tainted: Latest[bool | None]
    gpu: Latest[GpuReport]


class GpuService:
    """Polls every `settings.gpu_poll_seconds`, listens for events in between, and keeps the newest verdict in its cell."""

    name = NAME

    def __init__(
        self,
        room: GpuRoom,
        *,
        clock: Clock,
        heartbeat: Heartbeat,
        observer: GpuObserver | None = None,
        seams: Seams | None = None,
    ) -> None:
        settings = room.settings
        self._gpu = room.gpu
        self._settings = settings
        self._clock = clock
        self._heartbeat = heartbeat
        self._tainted = room.tainted
        self._observer = observer or NobodyCounts()
        self._seams = seams or Seams()
        self._policy = policy_of(settings)
        self._pci = PciBus(settings.pci_devices)
        self._log = KernelLog(settings.kernel_log, self._heard, clock=clock)
        self._proofs = Proofs(settings.root / "gpu-proofs.json", room.boot_id)
        self._kept = KeptFaults(settings.root / "gpu-faults.json", room.boot_id)
        run_test = self._seams.run_test or CudaTest(libraries=self._libraries)
        self._tester = Tester(run_test, self._tested, clock=clock)
        self._wake = Signal()
        self._health = Health()
        self._probe = StandingProbe(
            self._seams.start or self._start,
            self._heard,
            timeout_seconds=settings.gpu_timeout_seconds,
            clock=clock,
            rng=self._seams.rng,
        )
        self._unsaved = False
        self._polls = 0
        self._began = clock.monotonic()
        self._told: dict[tuple[str, int], float] = {}
        heartbeat.expect(NAME)

    async def run(self) -> None:
        """Poll until cancelled; the children are killed on the way out."""
        self._tainted.attach(self._wake)
        try:
            await asyncio.to_thread(self._proofs.load)
            self._health = Health(faults=await asyncio.to_thread(self._kept.load))
            await self._log.open()  # before the first sample: an Xid of this boot counts from the start
            async with asyncio.TaskGroup() as beside:
                beside.create_task(self._log.run(), name=self._log.name)
                beside.create_task(self._tester.run(), name=self._tester.name)
                await self._poll()
        finally:
            self._tainted.detach(self._wake)
            self._log.close()
            await self._save()
            await self._probe.drop()

    async def _poll(self) -> None:
        while True:
            began = self._clock.monotonic()
            pause = await self._cycle()
            self._heartbeat.beat(NAME, self._clock.monotonic())
            if await self._wake.wait(pause):
                await self._clock.sleep(max(0.0, began + LEAST_SPACING_SECONDS - self._clock.monotonic()))

    async def _cycle(self) -> float:
        """Look once; return how long to wait for the next look."""
        await self._save()  # what events and tests have told, before a driver may hang
        around = Around(
            pci=await asyncio.to_thread(self._pci.gpus),
            wanted=self._policy.wanted,
            uptime_seconds=self._seams.uptime_seconds(),
            most=self._health.most,
            log=self._log.readable,
            tainted=self._tainted.get(),
            presumed=self._clock.monotonic() - self._began > TAINT_SECONDS,
        )
        if self._health.report.verdict is GpuVerdict.NONE and not around.expects_gpus:
            await self._probe.drop()
            return NO_GPU_POLL_SECONDS
        due = self._health.due(self._policy)
        wanted = self._tester.wants(due)
        seen = await self._probe.observe(self._depth(close=self._health.close_look or wanted), around.pci.driver)
        if seen is not None:
            self._become(after_sample(self._health, seen, around, self._clock.monotonic(), self._policy))
        await self._save()
        if isinstance(seen, Sample) and seen.depth >= SLOW:
            self._tester.offer(self._health.due(self._policy))
        poll = self._settings.gpu_poll_seconds
        again = min(poll, DOUBT_SECONDS) if self._health.doubts or self._probe.stale else poll
        wait = self._probe.retry_at - self._clock.monotonic()
        return min(again, wait) if wait > 0 else again

    async def _save(self) -> None:
        """Write what the next agent has to know, if that has changed."""
        if self._unsaved:
            self._unsaved = False
            await asyncio.to_thread(self._proofs.save)
            if not await asyncio.to_thread(self._kept.save, unproved(self._health)):
                self._unsaved = True

    def _depth(self, *, close: bool) -> int:
        """Return what to ask now: everything of a fresh child and in a close look, else the costly questions seldom."""
        self._polls += 1
        if close or self._polls % SLOW_EVERY == 0:
            return SLOW
        return FULL if self._polls % FULL_EVERY == 0 else QUICK

    def _heard(self, event: Event | Deaf | LogEvent) -> None:
        """Take an event in the moment it arrives; the cycle that follows reads the recovery action."""
        if isinstance(event, LogEvent) and self._proofs.covers(event):
            return
        self._wake.fire()
        if isinstance(event, Deaf):
            log.warning("waiting for NVML events failed", code=event.code)
            return
        self._tell(event)
        xid = xid_of(event)
        if xid is not None and (isinstance(event, Event) or not self._probe.watching):  # both tell of the same one
            self._observer.xid(xid_class(xid))
        self._become(after_event(self._health, event, self._policy))
        if meaning(event):
            self._probe.stale = True  # recovery is proved by a fresh process

    def _tell(self, event: Event | LogEvent) -> None:
        """Log an event, but not a storm of the same."""
        where = event.pci if isinstance(event, LogEvent) else event.uuid
        what, now = (where, xid_of(event) or 0), self._clock.monotonic()
        if now - self._told.get(what, float("-inf")) >= TELL_AGAIN_SECONDS:
            self._told = {known: at for known, at in self._told.items() if now - at < TELL_AGAIN_SECONDS} | {what: now}
            source = "kernel log" if isinstance(event, LogEvent) else "NVML"
            log.info("GPU event", gpu=where, xid=xid_of(event), source=source)

    def _tested(self, gpu: Gpu, result: TestResult) -> None:
        self._observer.gpu_test(result.outcome)
        self._become(after_test(self._health, gpu.uuid, result, self._policy))
        self._wake.fire()

    def _become(self, health: Health) -> None:
        if health.report != self._health.report:
            log.info("GPU verdict", verdict=health.report.verdict.value, reason=health.report.reason)
        if proved := recovered(self._health, health):
            for gpu in health.gpus:
                if gpu.uuid in proved:
                    self._proofs.add(gpu.pci, self._log.seq)
            self._unsaved = True
        if unproved(health) != unproved(self._health):
            self._unsaved = True
        self._health = health
        self._gpu.set(health.report)

    async def _start(self, on_event: OnEvent) -> Child:
        return await start_prober(on_event, libraries=self._settings.nvidia_libraries)

    def _libraries(self) -> str:
        """Return where the active test looks for libcuda.so.1 first: beside the library that NVML came from."""
        return ":".join(place for place in (self._probe.library, self._settings.nvidia_libraries) if place)


def policy_of(settings: Settings) -> Policy:
    """Return the verdict's policy that the settings ask for."""
    return Policy(
        wanted=None if settings.gpus == "auto" else int(settings.gpus),
        quorum=None if settings.gpu_quorum == "all" else int(settings.gpu_quorum),
        test=settings.gpu_test,
    )
