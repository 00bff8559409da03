"""The versions to bring in, one after the other in the plan's order, and what failed and waits for its next try.

One that a pod waits for interrupts one that no pod waits for (which resumes later). While a pod waits for an image, a download
that can wait drops to a trickle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from agent.core.assignment import ModelWant
from agent.core.errors import PrewarmError, Transient
from agent.core.inventory import ModelLevel
from agent.core.latest import Latest, Signal
from agent.core.refs import Digest, EndpointKey
from agent.models.board import Board
from agent.models.capacity import NoRoom
from agent.models.engine import Engine
from agent.models.failures import Failures
from agent.models.hydration import Hydration
from agent.models.memory import give_back
from agent.models.shelf import Shelf
from agent.models.wire import SourceChanged
from agent.plan.decision import HydrateStep, NodePlan, gives_way

TRICKLE_BYTES_PER_SECOND = 2 << 20  # of a download that can wait, while a pod waits: connections stay alive

log = structlog.get_logger(__name__)


class Queue:
    """Executes the hydrate steps of `plan`, and mends what has gone bad. `ended` is awaited after each attempt."""

    def __init__(
        self,
        *,
        plan: Latest[NodePlan],
        shelf: Shelf,
        board: Board,
        engine: Engine,
        hydration: Hydration,
        failures: Failures,
        ended: Callable[[], Awaitable[None]],
    ) -> None:
        self._plan, self._shelf, self._board, self._engine = plan, shelf, board, engine
        self._hydration, self._failures, self._ended = hydration, failures, ended
        self._mending: set[Digest] = set()
        self._running: HydrateStep | None = None
        self.mended = 0
        self.changed = Signal()

    @property
    def is_running(self) -> bool:
        """Whether a version comes in now."""
        return self._running is not None

    def mend(self, digest: Digest) -> bool:
        """Have a version that is broken brought in again, if anybody here wants it; says whether."""
        wanted = self._want_of(digest) is not None
        if wanted:
            self._mending.add(digest)
        self.changed.fire()
        return wanted

    async def look_for_room(self, high_watermark: float) -> None:
        """Let what only lacked room be tried again once there is enough, and say how much is lacking still."""
        for key, digest, needed in self._failures.lacking_room():
            short = await self._shelf.short_bytes(needed, high_watermark)
            if short:
                self._board.update(digest, short_bytes=short)
                continue
            self._failures.forget(key)
            self._board.update(digest, short_bytes=0, error="", retry_at=None)
            self.changed.fire()

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """Run until cancelled; attempts are tasks of `tasks`."""
        while True:
            step = self._next()
            if step is None:
                await self.changed.wait(self._until_retry())
                continue
            self._running = step
            running = tasks.create_task(self._attempt(step), name=f"hydrate {step.want.name}")
            running.add_done_callback(lambda _: self.changed.fire())
            while not running.done():
                self._engine.throttle.yield_to_others(TRICKLE_BYTES_PER_SECOND if self._makes_way(step) else 0)
                await self.changed.wait()
                if not running.done() and self._must_yield(step):
                    running.cancel()
                    await asyncio.wait({running})
            self._running = None
            give_back()

    def _makes_way(self, running: HydrateStep) -> bool:
        """Say whether a download must leave the node's network and disk to a pod that waits for an image."""
        plan = self._plan.get()
        urgent = {self._key(s) for s in plan.hydrations if s.urgent}
        return self._key(running) not in urgent and any(pull.urgent for pull in plan.pulls)

    def _next(self) -> HydrateStep | None:
        """Return the step to run now: the first that a pod waits for, else the first, of those not backed off."""
        for step in sorted(self._steps(), key=lambda s: not s.urgent):
            digest = step.want.digest or self._board.resolved(step.want.uri)
            if not self._failures.waits(self._key(step)) and digest not in self._shelf.versions:
                return step
        return None

    def _steps(self) -> list[HydrateStep]:
        """Return the plan's steps, then what is to be mended: it was ready, so it is not left to the next window."""
        steps = list(self._plan.get().hydrations)
        planned = {s.want.digest or self._board.resolved(s.want.uri) for s in steps}
        whole = {d for d in self._mending if d in self._shelf.versions}
        self.mended += len(whole)
        self._mending = {d for d in self._mending - whole if self._want_of(d) is not None}
        for digest in sorted(self._mending - planned):
            want = self._want_of(digest)
            if want is not None:
                reason = "a part of it went bad on disk and is fetched again"
                steps.append(
                    HydrateStep(want=want, endpoints=self._users(digest), due=None, urgent=False, reason=reason)
                )
        return steps

    def _want_of(self, digest: Digest) -> ModelWant | None:
        return next((m for m in self._plan.get().models if self._means(m, digest)), None)

    def _users(self, digest: Digest) -> tuple[EndpointKey, ...]:
        plans = self._plan.get().endpoints
        return tuple(e.want.key for e in plans if any(self._means(m, digest) for m in e.want.models))

    def _means(self, want: ModelWant, digest: Digest) -> bool:
        return (want.digest or self._board.resolved(want.uri)) == digest

    def _until_retry(self) -> float | None:
        return self._failures.seconds_left({self._key(s) for s in self._steps()})

    def _must_yield(self, running: HydrateStep) -> bool:
        plan = self._plan.get()
        if running.want.uri not in {m.uri for m in plan.models}:
            return True
        first = self._next()
        if first is None or self._key(first) == self._key(running):
            return False
        asked = next((s for s in plan.hydrations if self._key(s) == self._key(running)), running)
        return gives_way(asked, first)

    @staticmethod
    def _key(step: HydrateStep) -> str:
        return step.want.digest or str(step.want.uri)

    async def _attempt(self, step: HydrateStep) -> None:
        key = self._key(step)
        try:
            await self._hydration.run(step)
        except PrewarmError as error:
            self._failed(step, error)
        except OSError as error:
            self._failed(step, Transient(f"the store's disk failed: {error.strerror}"))
        else:
            self._failures.forget(key)
        await self._ended()

    def _failed(self, step: HydrateStep, error: PrewarmError) -> None:
        want = step.want
        digest = want.digest or self._board.resolved(want.uri)
        retry_at = self._failures.failed(self._key(step), error, digest)
        self._failures.keep_only({m.digest or str(m.uri) for m in self._plan.get().models})
        log.warning("cannot bring in a model", model=want.name, uri=str(want.uri), error=str(error))
        away = isinstance(error, Transient) and not isinstance(error, SourceChanged)
        if digest is None and away and (old := self._hydration.newest_of(want.uri)):
            self._board.resolve(want.uri, old.digest)  # what the source last was is the best there is
        elif digest is None:
            self._board.resolve(want.uri, None, str(error))
        elif self._board.state(digest).level is not ModelLevel.COMMITTED:
            short = error.short_bytes if isinstance(error, NoRoom) else 0
            self._board.update(digest, error=str(error), retry_at=retry_at, busy=False, short_bytes=short)
