"""Runs the pulls the plan asks for: bounded, urgent ones first, each proved before it counts as done."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Protocol

import structlog

from agent.config import Settings
from agent.core.assignment import ImageWant
from agent.core.clock import Clock
from agent.core.errors import Permanent, PrewarmError, Transient
from agent.core.refs import ImageRef
from agent.images.board import Board
from agent.images.daemon import Way
from agent.images.disk import check_room
from agent.images.faults import Fault, PermanentFault, TransientFault
from agent.images.progress import Bytes, Progress
from agent.images.prove import Prover
from agent.images.runtime import PullRuntime
from agent.images.sources import told
from agent.images.states import Failure, fault_of, kept_waiting, next_backoff
from agent.plan.decision import PullStep

log = structlog.get_logger(__name__)

_MEASURE_SECONDS = 2.0
_FIRST_LOOKS_SECONDS = 0.25  # until the manifest is here: what does not fit is ended before much of it has come
_INTERRUPTED = "a pull was interrupted; the next one goes on from there"
_STALL_SECONDS = 300.0  # without a byte; the CRI gives up by itself then (containerd, image_pull_progress_timeout)


class PullObserver(Protocol):
    """Who counts pulls."""

    def pulled(self, ref: ImageRef, seconds: float, size_bytes: int, outcome: str) -> None:
        """Take note of one ended pull; `outcome` is `ok`, `cancelled` or a Fault's value, `size_bytes` 0 unless ok."""
        ...

    def lost(self, ref: ImageRef) -> None:
        """Take note of a warm image that was removed while it was wanted."""
        ...


class NoObserver:
    """Counts nothing."""

    def pulled(self, ref: ImageRef, seconds: float, size_bytes: int, outcome: str) -> None:
        """See `PullObserver.pulled`."""

    def lost(self, ref: ImageRef) -> None:
        """See `PullObserver.lost`."""


class Pulls:
    """The running pulls. `prove` runs one full proof cycle and says whether it completed."""

    def __init__(
        self,
        puller: PullRuntime,
        prover: Prover,
        board: Board,
        *,
        prove: Callable[[], Awaitable[bool]],
        clock: Clock,
        observer: PullObserver,
        rng: random.Random,
        settings: Settings,
    ) -> None:
        self._puller = puller
        self._prover = prover
        self._board = board
        self._prove = prove
        self._clock = clock
        self._observer = observer
        self._rng = rng
        self._limit = settings.max_pulls
        self._watermark = settings.image_watermark
        self._stopped: dict[ImageRef, TransientFault] = {}  # pulls that are being ended, and why
        self._running: dict[ImageRef, asyncio.Task[None]] = {}
        self._ways: dict[ImageRef, Way] = {}  # of running pulls, as soon as known
        self._urgent: set[ImageRef] = set()  # running, and a pod waits for it

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
        self._urgent = {step.want.ref for step in steps if step.urgent and step.want.ref in self._running}
        starting = self._turn(steps) if may_start else []
        urgent = self._urgent or any(step.urgent for step in starting)
        for ref, task in self._running.items():
            if self._board.unpacked(ref):  # proved while it returns: let it return
                continue
            yields = urgent and ref not in self._urgent and self._resumes(ref)
            if (ref not in wanted or yields) and not task.cancelling():
                task.cancel()
        for step in starting:
            ref = step.want.ref
            self._running[ref] = tasks.create_task(self._run(tasks, step, ended), name=f"pull {ref}")

    def _turn(self, steps: Sequence[PullStep]) -> list[PullStep]:
        """Return the steps to start now.

        While a pod waits for an image, only such images are pulled: resumable pulls give way, and those that cannot be
        interrupted without loss hold up no pod by standing in the limit.
        """
        now = self._clock.now()
        able = [
            step
            for step in steps
            if self._board.proof(step.want.ref)
            and not self._board.unpacked(step.want.ref)
            and (step.want.ref in self._running or not self._board.waits(step.want, now))
        ]
        urgent = [step for step in able if step.urgent]
        running = len(self._urgent) if urgent else len(self._running)
        return [s for s in urgent or able if s.want.ref not in self._running][: max(0, self._limit - running)]

    def _resumes(self, ref: ImageRef) -> bool:
        way = self._ways.get(ref)
        return way is not None and way.resumable

    async def _run(self, tasks: asyncio.TaskGroup, step: PullStep, ended: Callable[[], None]) -> None:
        want, started, outcome, size_bytes = step.want, self._clock.monotonic(), "cancelled", 0
        log.info("pull started", image=str(want.ref), urgent=step.urgent, due=step.due, reason=step.reason)
        self._board.pulling(want.ref, self._board.kept(want.ref) or Bytes())
        try:
            await self._pull(tasks, step)
            size_bytes = await self._check(want)
            outcome = "ok"
            if source := told(self._puller.sources(str(want.ref))):
                log.info("image came", image=str(want.ref), source=source)
                self._board.came(want.ref, source)
        except (Transient, Permanent) as error:
            if fault_of(error) is Fault.NO_SPACE:
                await self._give_back(want.ref)
            outcome = self._failed(want, await self._with_wait(want, error))
        finally:
            seconds = self._clock.monotonic() - started
            log.info("pull ended", image=str(want.ref), outcome=outcome, seconds=round(seconds, 2))
            self._observer.pulled(want.ref, seconds, size_bytes, outcome)
            self._end(want.ref, outcome)
            ended()

    async def _give_back(self, ref: ImageRef) -> None:
        """Let containerd collect what was fetched of an image that the disk has no room for: nobody else can."""
        if self._resumes(ref):
            self._board.pulling(ref, None)
            try:
                await self._puller.release(str(ref))
            except (Transient, Permanent) as error:
                log.debug("an unfinished pull is left to expire", image=str(ref), error=str(error))

    def _end(self, ref: ImageRef, outcome: str) -> None:
        """Note that a pull has ended, and what it leaves for the next."""
        resumes = self._resumes(ref)
        del self._running[ref]
        self._ways.pop(ref, None)
        kept = self._board.kept(ref)
        left = kept if kept and kept.done and resumes and outcome != "ok" else None
        self._board.pulling(ref, replace(left, interrupted=True, way=_INTERRUPTED) if left else None)

    async def _pull(self, tasks: asyncio.TaskGroup, step: PullStep) -> None:
        name = str(step.want.ref)
        way = self._ways[step.want.ref] = await self._puller.way(name, step.runtime_handler)
        await self._check_room(step, self._known_missing(step.want))
        log.info("pull goes", image=name, way=way.reason)
        try:
            async with asyncio.timeout(None) as patience:
                meter = tasks.create_task(self._measure(step, way, patience), name=f"measure {step.want.ref}")
                try:
                    await self._puller.pull(name, step.runtime_handler)
                finally:
                    meter.cancel()
        except TimeoutError:
            raise self._stopped.pop(step.want.ref) from None

    async def _measure(self, step: PullStep, way: Way, patience: asyncio.Timeout) -> None:
        """Publish how far the pull is, and let it run on while bytes come and there is room for them."""
        want, found = step.want, Bytes()
        progress = Progress(self._puller, self._prover, want.digest or want.ref.digest)
        activity, now = -1, self._clock.monotonic()
        moved_at = now
        while True:
            try:
                now, knew = self._clock.monotonic(), found.total
                found = await progress.look(now)
                self._board.pulling(want.ref, replace(found, way=way.reason))
                if found.total and not knew:
                    await self._check_room(step, found.total - found.done)
            except TransientFault as error:
                if error.fault is Fault.NO_SPACE:
                    return self._stop(want.ref, error, patience)
            except (Transient, Permanent) as error:
                log.debug("progress unknown", image=str(want.ref), error=str(error))
            if progress.activity != activity or not progress.fetches:
                activity, moved_at = progress.activity, now
            if way.resumable and now - moved_at > _STALL_SECONDS:
                text = f"no byte came for {_STALL_SECONDS:g} s; the next try goes on from there"
                fault = TransientFault(f"cannot pull {want.ref}: {text}", Fault.REGISTRY)
                return self._stop(want.ref, fault, patience)
            await self._clock.sleep(_MEASURE_SECONDS if found.total or not progress.fetches else _FIRST_LOOKS_SECONDS)

    def _stop(self, ref: ImageRef, error: TransientFault, patience: asyncio.Timeout) -> None:
        """End a pull, once: a timeout that has expired cannot be set again, and a pull takes its time to end."""
        self._stopped[ref] = error
        patience.reschedule(0)

    def _known_missing(self, want: ImageWant) -> int:
        """Return the compressed bytes that are still to come, as far as an earlier look told."""
        kept = self._board.kept(want.ref)
        return kept.total - kept.done if kept else 0

    async def _check_room(self, step: PullStep, missing_bytes: int) -> None:
        """Refuse what would fill the disk, unless a pod waits for it: the kubelet would pull it all the same.

        Raises:
            TransientFault: with the numbers.
        """
        disk = None if step.urgent else await self._puller.disk()
        if disk:
            check_room(step.want.ref, disk, missing_bytes, self._watermark)

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

    async def _with_wait(self, want: ImageWant, error: PrewarmError) -> PrewarmError:
        """Return the error with what the registry says of when to come again, where it limits the rate."""
        if fault_of(error) is not Fault.RATE_LIMIT:
            return error
        try:
            return TransientFault(str(error), Fault.RATE_LIMIT, await self._puller.retry_after(str(want.ref)))
        except (Transient, Permanent):
            return error

    def _failed(self, want: ImageWant, error: PrewarmError) -> str:
        fault = fault_of(error)
        backoff = kept_waiting(next_backoff(fault, want.digest, self._board.failure(want)), error)
        retry_at = self._clock.now() + timedelta(seconds=backoff.delay_seconds(self._rng))
        failure = Failure(error=str(error), fault=fault, digest=want.digest, backoff=backoff, retry_at=retry_at)
        self._board.failed(want.ref, failure)
        log.warning("pull failed", image=str(want.ref), fault=fault.value, error=str(error), retry_at=retry_at)
        return fault.value
