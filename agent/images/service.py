"""The images room: proves every image of the plan each interval and at every event, and pulls what the plan says.

A claim rests on a completed proof cycle. While containerd is away the last states stand for `TRUST_SECONDS` and the
heartbeat grows old, then every claim is dropped. A deletion withdraws its claim at once, before it is looked into.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping

import structlog

from agent.config import Settings
from agent.core.clock import Clock
from agent.core.errors import Permanent, PrewarmError, Transient
from agent.core.heartbeat import Heartbeat
from agent.core.inventory import ImageState
from agent.core.latest import Latest, Signal
from agent.core.refs import ImageRef
from agent.core.retry import Backoff
from agent.images.board import Board
from agent.images.faults import Fault, TransientFault
from agent.images.hydrate import Hydrator
from agent.images.layout import this_architecture
from agent.images.pinning import Pins
from agent.images.prove import Prover, record_name
from agent.images.pulls import NoObserver, PullObserver, Pulls
from agent.images.runtime import Change, ImageEvent, Runtime
from agent.plan.decision import NodePlan

log = structlog.get_logger(__name__)

TRUST_SECONDS = 30.0  # the age at which /readyz turns red: no claim outlives it
_CYCLE_SECONDS = 10.0  # a cycle takes milliseconds; one that takes this long counts as not completed
_RETRY_SECONDS = 2.0  # between cycles while containerd is away


class ImageService:
    """Publishes `images` from `plan`."""

    name = "images"

    def __init__(  # noqa: PLR0913 (what it reads and what it tells)
        self,
        runtime: Runtime,
        *,
        plan: Latest[NodePlan],
        images: Latest[Mapping[ImageRef, ImageState]],
        settings: Settings,
        clock: Clock,
        heartbeat: Heartbeat,
        observer: PullObserver | None = None,
        elsewhere: Latest[Mapping[str, str]] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._runtime = runtime
        self._plan = plan
        self._elsewhere = elsewhere or Latest[Mapping[str, str]]({})
        self._clock = clock
        self._observer = observer or NoObserver()
        self._heartbeat = heartbeat
        self._interval_seconds = settings.proof_interval_seconds
        self._rng = rng or random.Random()  # noqa: S311 (spreads retries)
        self._board = Board(images)
        self._prover = Prover(runtime, settings.snapshotter, this_architecture())
        self._pulls = Pulls(
            runtime,
            self._prover,
            self._board,
            prove=self._cycle,
            clock=clock,
            observer=self._observer,
            rng=self._rng,
            settings=settings,
        )
        self._hydrator = Hydrator(runtime, self._prover, self._board, clock)
        self._pins = Pins(runtime, self._board, clock, settings.pin_budget)
        self._one_cycle = asyncio.Lock()
        self._look = Signal()  # prove now
        self._act = Signal()  # look at the pulls
        self._completed = Signal()
        self._deleted: set[str] = set()  # records deleted since the running cycle began
        self._away = ""  # why the last cycle did not complete
        heartbeat.expect(self.name)

    async def run(self) -> None:
        """Run until cancelled; running pulls are cancelled with it."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_proving(), name="images prove")
            tasks.create_task(self._expire(), name="images expire")
            tasks.create_task(self._follow_events(), name="images events")
            tasks.create_task(self._follow_plan(), name="images plan")
            tasks.create_task(self._act_on_plan(tasks), name="images pulls")

    async def _keep_proving(self) -> None:
        while True:
            completed = await self._cycle()
            await self._look.wait(self._interval_seconds if completed else _RETRY_SECONDS)

    async def _cycle(self) -> bool:
        """Prove all images of the plan once; return whether that completed. One cycle at a time."""
        async with self._one_cycle:
            wants = self._plan.get().images
            self._deleted.clear()
            try:
                async with asyncio.timeout(_CYCLE_SECONDS):
                    proofs = await self._prover.prove(wants)
                    self._elsewhere.set(await self._runtime.elsewhere() if wants else {})
            except TimeoutError:
                self._tell(TransientFault(f"containerd did not answer within {_CYCLE_SECONDS:g} s", Fault.AWAY))
                return False
            except (Transient, Permanent) as error:
                self._tell(error)
                return False
            self._tell(None)
            self._board.proved(wants, proofs, self._deleted)
            await self._pin()
            self._heartbeat.beat(self.name, self._clock.monotonic())
            self._completed.fire()
            self._act.fire()
            return True

    async def _pin(self) -> None:
        """Bring the pins in line; an image is as warm without."""
        plan = self._plan.get()
        try:
            async with asyncio.timeout(_CYCLE_SECONDS):
                await self._pins.reconcile(plan.pins, plan.images)
        except (TimeoutError, Transient, Permanent) as error:
            log.warning("pins could not be brought in line", error=str(error) or "containerd did not answer")

    async def _expire(self) -> None:
        while True:
            if not await self._completed.wait(TRUST_SECONDS):
                reason = (
                    f"nothing could be proved for {TRUST_SECONDS:g} s: {self._away or 'containerd does not answer'}"
                )
                self._board.distrust(self._plan.get().images, reason)

    async def _follow_plan(self) -> None:
        watched, pinned = self._plan.get().images, self._plan.get().pins
        async for plan in self._plan.follow():
            self._act.fire()
            if plan.images != watched or plan.pins != pinned:
                pinned = plan.pins
                left = {want.ref for want in watched} - {want.ref for want in plan.images}
                watched = plan.images
                self._look.fire()
                await self._release(left)

    async def _release(self, left: Iterable[ImageRef]) -> None:
        """Let go of what was fetched in part of images that are no longer wanted; what cannot be told now expires."""
        for ref in sorted(left, key=str):
            try:
                await self._runtime.release(str(ref))
            except (Transient, Permanent) as error:
                log.debug("an unfinished pull is left to expire", image=str(ref), error=str(error))

    async def _act_on_plan(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._act.wait()
            plan = self._plan.get()
            self._pulls.reconcile(tasks, plan.pulls, self._act.fire, may_start=not self._away)
            open_windows = [step.want for step in plan.pins or ()]
            self._hydrator.reconcile(tasks, open_windows, yields=any(step.urgent for step in plan.pulls))

    async def _follow_events(self) -> None:
        backoff = Backoff(base_seconds=0.2, cap_seconds=5.0)
        while True:
            try:
                async for event in self._runtime.events():
                    backoff = Backoff(base_seconds=0.2, cap_seconds=5.0)
                    self._take(event)
            except (Transient, Permanent) as error:
                log.debug("image events ended", error=str(error))
            backoff = backoff.failed()
            await self._clock.sleep(backoff.delay_seconds(self._rng))

    def _take(self, event: ImageEvent) -> None:
        if event.change is Change.DELETED:
            self._deleted.add(event.name)
            for ref in self._board.deleted(event.name):
                log.warning("a warm image was removed by somebody else", image=str(ref))
                self._observer.lost(ref)
        names = {record_name(want.ref) for want in self._plan.get().images}
        if (
            event.change in (Change.STARTED, Change.LAYER_REMOVED)
            or event.name in names
            or self._pins.concerns(event.name)
        ):
            self._pins.doubt()
            self._look.fire()

    def _tell(self, error: PrewarmError | None) -> None:
        """Log once when proving stops, and once when it goes on."""
        if error and not self._away:
            log.warning("images cannot be proved: their claims stand for 30 s, then drop", error=str(error))
        if self._away and not error:
            log.info("images can be proved again")
        self._away = str(error) if error else ""
        if error:
            self._heartbeat.miss(self.name, self._away)
