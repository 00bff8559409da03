"""Runs the pulls the plan asks for: bounded, urgent ones first, each proved before it counts as done."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Protocol

import structlog

from agent.core.assignment import ImageWant
from agent.core.clock import Clock
from agent.core.errors import Permanent, PrewarmError, Transient
from agent.core.refs import ImageRef
from agent.images.board import Board
from agent.images.faults import Fault, PermanentFault, TransientFault
from agent.images.progress import Bytes, Progress
from agent.images.prove import Prover
from agent.images.runtime import Puller
from agent.images.states import Failure, fault_of, next_backoff
from agent.plan.decision import PullStep

log = structlog.get_logger(__name__)

_MEASURE_SECONDS = 2.0


class PullObserver(Protocol):
    """Who counts pulls."""

    def pulled(self, ref: ImageRef, seconds: float, size_bytes: int, outcome: str) -> None:
        """Take note of one ended pull; `outcome` is `ok`, `cancelled` or a Fault's value, `size_bytes` 0 unless ok."""
        ...


class NoObserver:
    """Counts nothing."""

    def pulled(self, ref: ImageRef, seconds: float, size_bytes: int, outcome: str) -> None:
        """See `PullObserver.pulled`."""


class Pulls:
    """The running pulls. `prove` runs one full proof cycle and says whether it completed."""

    def __init__(
        self,
        puller: Puller,
        prover: Prover,
        board: Board,
        *,
        prove: Callable[[], Awaitable[bool]],
        clock: Clock,
        observer: PullObserver,
        rng: random.Random,
        limit: int,
    ) -> None:
        self._puller = puller
        self._prover = prover
        self._board = board
        self._prove = prove
        self._clock = clock
        self._observer = observer
        self._rng = rng
        self._limit = limit
        self._running: dict[ImageRef, asyncio.Task[None]] = {}

    def reconcile(
        self, tasks: asyncio.TaskGroup, steps: Sequence[PullStep], ended: Callable[[], None], *, may_start: bool
    ) -> None:
        """Cancel pulls that are no longer wanted and start those whose turn it is, in `tasks`.

        Args:
            tasks: owns the pulls.
            steps: the plan's pulls, most urgent first.
            ended: called at the end of each pull, when there is room for another.
            may_start: False while containerd is away.
        """
        wanted = {step.want.ref for step in steps}
        for ref, task in self._running.items():
            if ref not in wanted and not self._board.unpacked(ref):  # proved while it returns: let it return
                task.cancel()
        for step in self._turn(steps) if may_start else ():
            ref = step.want.ref
            self._running[ref] = tasks.create_task(self._run(tasks, step, ended), name=f"pull {ref}")

    def _turn(self, steps: Sequence[PullStep]) -> list[PullStep]:
        """Return the steps to start now. While a pod waits for an image, only such images are pulled."""
        now = self._clock.now()
        able = [
            step
            for step in steps
            if self._board.proof(step.want.ref)
            and not self._board.unpacked(step.want.ref)
            and (step.want.ref in self._running or not self._board.waits(step.want, now))
        ]
        able = [step for step in able if step.urgent] or able
        return [step for step in able if step.want.ref not in self._running][: max(0, self._limit - len(self._running))]

    async def _run(self, tasks: asyncio.TaskGroup, step: PullStep, ended: Callable[[], None]) -> None:
        want, started, outcome, size_bytes = step.want, self._clock.monotonic(), "cancelled", 0
        log.info("pull started", image=str(want.ref), urgent=step.urgent, due=step.due, reason=step.reason)
        self._board.pulling(want.ref, Bytes())
        try:
            await self._pull(tasks, step)
            size_bytes = await self._check(want)
            outcome = "ok"
        except (Transient, Permanent) as error:
            outcome = self._failed(want, error)
        finally:
            seconds = self._clock.monotonic() - started
            log.info("pull ended", image=str(want.ref), outcome=outcome, seconds=round(seconds, 2))
            self._observer.pulled(want.ref, seconds, size_bytes, outcome)
            del self._running[want.ref]
            self._board.pulling(want.ref, None)
            ended()

    async def _pull(self, tasks: asyncio.TaskGroup, step: PullStep) -> None:
        meter = tasks.create_task(self._measure(step.want), name=f"measure {step.want.ref}")
        try:
            await self._puller.pull(str(step.want.ref), step.runtime_handler)
        finally:
            meter.cancel()

    async def _measure(self, want: ImageWant) -> None:
        progress = Progress(self._puller, self._prover, want.digest or want.ref.digest)
        while True:
            await self._clock.sleep(_MEASURE_SECONDS)
            try:
                self._board.pulling(want.ref, await progress.look())
            except (Transient, Permanent) as error:
                log.debug("progress unknown", image=str(want.ref), error=str(error))

    async def _check(self, want: ImageWant) -> int:
        """Prove what was pulled; return its compressed bytes.

        Raises:
            TransientFault: it is not what was wanted, or not unpacked.
            PermanentFault: as TransientFault, when nothing but another tag or plan can help.
        """
        completed = await self._prove()
        proof = self._board.proof(want.ref)
        if not completed or proof is None:
            raise TransientFault("pulled, but containerd went away before it could be proved", Fault.AWAY)
        if self._board.unpacked(want.ref):
            return proof.size_bytes
        if proof.moved:
            raise PermanentFault(f"tag moved since the planner resolved it: {proof.reason}", Fault.MOVED)
        raise TransientFault(f"pulled, but not proved: {proof.reason}", Fault.OTHER)

    def _failed(self, want: ImageWant, error: PrewarmError) -> str:
        fault = fault_of(error)
        backoff = next_backoff(fault, want.digest, self._board.failure(want))
        retry_at = self._clock.now() + timedelta(seconds=backoff.delay_seconds(self._rng))
        failure = Failure(error=str(error), fault=fault, digest=want.digest, backoff=backoff, retry_at=retry_at)
        self._board.failed(want.ref, failure)
        log.warning("pull failed", image=str(want.ref), fault=fault.value, error=str(error), retry_at=retry_at)
        return fault.value
