"""The one standing prober of a node: started when needed, replaced when what it knows is old, never while one cannot be reaped."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

import structlog

from agent.core.clock import Clock
from agent.core.errors import PrewarmError
from agent.core.retry import Backoff
from agent.gpu.children import Gone, NoAnswer
from agent.gpu.health import CLEAN_SAMPLES
from agent.gpu.observation import Died, Hung, Observation, Refused, Sample
from agent.gpu.probe import Child, OnEvent
from agent.gpu.questions import SLOW

RESTARTS = Backoff(base_seconds=1.0, cap_seconds=30.0, floor_seconds=0.5)
# not initialised, not loaded, library not found, lost, reset required, mismatch, unknown: only a fresh process sees the end of it
STALE_CODES = frozenset({1, 9, 12, 15, 16, 18, 999})

log = structlog.get_logger(__name__)

StartChild = Callable[[OnEvent], Awaitable[Child]]


class StandingProbe:
    """The one prober: started when needed, replaced when what it knows is old, never while one cannot be reaped."""

    def __init__(
        self, start: StartChild, on_event: OnEvent, *, timeout_seconds: float, clock: Clock, rng: Random
    ) -> None:
        self._start = start
        self._on_event = on_event
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._rng = rng
        self._child: Child | None = None
        self._stuck: Child | None = None
        self._made_for: tuple[str, str, int] | None = None  # driver by NVML and by the kernel, GPUs in its event set
        self._answers = 0
        self._backoff = RESTARTS
        self.stale = False
        self.watching = False
        self.library = ""
        self.retry_at = float("-inf")

    async def observe(self, depth: int, kernel_driver: str) -> Observation | None:
        """Return what there is to see now; None while a new child has to wait for its backoff."""
        if self._stuck:
            if not self._stuck.exited:
                return Hung(pid=self._stuck.pid, seconds=self._timeout_seconds, unkillable=True)
            self._stuck = None
        if self._child is None and self._clock.monotonic() < self.retry_at:
            return None
        if self.stale:
            await self.drop()
        try:
            return await self._ask(depth, kernel_driver)
        except NoAnswer:
            pid = self._child.pid if self._child else 0
            await self._failed()
            return Hung(pid=pid, seconds=self._timeout_seconds, unkillable=self._stuck is not None)
        except Gone as error:
            await self._failed()
            return Died(status=error.status, times=self._backoff.failures)
        except PrewarmError as error:
            log.warning("NVML prober unusable", error=str(error))
            await self._failed()
            return Died(status=1, times=self._backoff.failures)

    async def drop(self) -> None:
        """Kill the child; one that cannot be killed is remembered."""
        child, self._child = self._child, None
        self._made_for, self.stale, self._answers, self.watching = None, False, 0, False
        if child and not await child.close():
            log.error("NVML prober cannot be killed", pid=child.pid)
            self._stuck = child

    async def _ask(self, depth: int, kernel_driver: str) -> Observation:
        deadline = self._timeout_seconds
        if self._child is None:
            depth = SLOW
            self._child = await self._start(self._on_event)
            started = await self._child.started(deadline)
            self.watching, self.library = started.watching, started.library
            if started.init:  # pynvml never closes its library: only a fresh process sees a repaired driver
                await self._failed()
                return Refused(code=started.init)
        sample = await self._child.ask(depth, deadline)
        self._answers += 1
        if self._answers >= CLEAN_SAMPLES:  # one that dies after each answer must not start afresh for ever
            self._backoff = RESTARTS
        seen = (sample.driver, kernel_driver, sample.count)
        changed = self._made_for not in (None, seen)
        self.stale = self.stale or changed or (self._answers >= CLEAN_SAMPLES and bool(codes_of(sample) & STALE_CODES))
        self._made_for = seen
        return sample

    async def _failed(self) -> None:
        await self.drop()
        self._backoff = self._backoff.failed()
        self.retry_at = self._clock.monotonic() + self._backoff.delay_seconds(self._rng)


def codes_of(sample: Sample) -> set[int]:
    """Return every code of a sample that is not 0."""
    codes = {sample.count_code, sample.driver_code}
    for gpu in sample.gpus:
        codes |= {gpu.code, *(answer.code for answer in gpu.answers.values())}
    return codes - {0}
