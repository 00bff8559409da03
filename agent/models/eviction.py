"""Removes versions in the order that hurts nobody: claim gone, wait, ask who runs and who has files open, ask again, remove.

A version that cannot be removed after all gets its claim back, and is left alone for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from agent.core.clock import Clock
from agent.core.errors import Permanent, PrewarmError
from agent.core.inventory import ModelLevel
from agent.core.refs import Digest
from agent.core.sandbox import Sandbox
from agent.models.board import Board
from agent.models.shelf import Shelf
from agent.plan.decision import EvictStep

WAIT_SECONDS = 10.0  # from the withdrawn claim to the first look: a pod scheduled by it has its sandbox by then
HOLD_SECONDS = 60.0  # how long a version in use is left alone before it is tried again

log = structlog.get_logger(__name__)


class Sandboxes(Protocol):
    """Who runs on this node, by the container runtime."""

    async def sandboxes(self) -> Sequence[Sandbox]:
        """Return all pod sandboxes.

        Raises:
            Transient: the runtime does not answer.
        """
        ...


class Eviction:
    """Executes evict steps. `steps` returns the steps that stand now: one that is withdrawn is not carried out.

    `removed` is awaited after each removal.
    """

    def __init__(
        self,
        *,
        shelf: Shelf,
        board: Board,
        clock: Clock,
        sandboxes: Sandboxes | None,
        steps: Callable[[], Sequence[EvictStep]],
        removed: Callable[[], Awaitable[None]],
    ) -> None:
        self._shelf, self._board, self._clock, self._sandboxes = shelf, board, clock, sandboxes
        self._steps, self._removed = steps, removed
        self._look_at: dict[Digest, float] = {}  # versions whose claim is withdrawn, and when to look who uses them
        self._held: dict[
            Digest, tuple[float, str]
        ] = {}  # versions found in use: until when they are left alone, and why
        self._asked: dict[Digest, asyncio.Future[None]] = {}
        self.has_looked = False  # who ran here when the agent started is noted

    def ask(self, digest: Digest) -> asyncio.Future[None]:
        """Have a version removed that no step names; the future ends when it is gone, or with a Permanent that says why not.

        It is the caller's own: cancelled, the removal goes on, for whoever else has asked for it.
        """
        if digest not in self._asked:
            self._asked[digest] = asyncio.get_running_loop().create_future()
            self._held.pop(digest, None)
        return asyncio.shield(self._asked[digest])

    def held(self) -> dict[Digest, str]:
        """Return the versions that were found in use of late, and why they stay."""
        now = self._clock.monotonic()
        return {digest: why for digest, (until, why) in self._held.items() if until > now}

    async def run(self) -> float | None:
        """Do what is due now; return the seconds until something else is, None for nothing."""
        now = self._clock.monotonic()
        steps, held = self._standing(), self.held()
        for digest in [d for d in self._look_at if d not in steps]:
            self._stay(digest, "it is needed again")
        for digest, step in steps.items():
            if digest not in self._shelf.versions:
                await self._drop_partial(digest, step)
            elif digest in held:
                self._answer(digest, held[digest])
            elif digest not in self._look_at:
                self._board.update(digest, level=ModelLevel.PARTIAL, reason=f"leaving: {step.reason}")
                self._look_at[digest] = now + WAIT_SECONDS
            elif now >= self._look_at[digest]:
                await self._evict(step)
        ends = [*self._look_at.values(), *(until for until, _ in self._held.values() if until > now)]
        return max(0.1, min(ends) - now) if ends else None

    def _standing(self) -> dict[Digest, EvictStep]:
        steps = {s.digest: s for s in self._steps()}
        for digest in self._asked:
            steps.setdefault(digest, EvictStep(digest=digest, reason="a person asked for it"))
        return steps

    async def _drop_partial(self, digest: Digest, step: EvictStep) -> None:
        self._look_at.pop(digest, None)
        if self._board.state(digest).level is ModelLevel.ABSENT:
            self._answer(digest, "it is not here")
        elif self._board.state(digest).busy:
            self._answer(digest, "it is being downloaded")
        else:
            await self._shelf.discard(digest)
            await self._gone(step)

    async def _evict(self, step: EvictStep) -> None:
        digest = step.digest
        if why := await self._why_not(digest):
            self._held[digest] = self._clock.monotonic() + HOLD_SECONDS, why
            self._stay(digest, why)
            self._answer(digest, why)
        elif await self._shelf.remove(digest, lambda: digest in self._standing()):
            self._look_at.pop(digest, None)
            await self._gone(step)
            log.info("evicted", digest=digest, reason=step.reason)

    async def _gone(self, step: EvictStep) -> None:
        self._board.gone(step.digest, f"removed: {step.reason}")
        self._answer(step.digest, "")
        await self._removed()

    def _stay(self, digest: Digest, why: str) -> None:
        """Give a version its claim back."""
        self._look_at.pop(digest, None)
        version = self._shelf.versions.get(digest)
        if version is not None:
            self._board.committed(version, f"kept: {why}", kept=self.held().get(digest, ""))

    def _answer(self, digest: Digest, why_not: str) -> None:
        """Tell who asked for a removal how it ended."""
        asked = self._asked.pop(digest, None)
        if asked is None:
            return
        if why_not:
            asked.set_exception(Permanent(f"version {digest[:19]} is not removed: {why_not}"))
            asked.exception()  # seen, so that nobody complains that it was not: who asked may not wait any more
        else:
            asked.set_result(None)

    async def _why_not(self, digest: Digest) -> str:
        try:
            await self.look()
        except PrewarmError as error:
            return f"who runs on this node is not known ({error})"
        return await self._shelf.why_in_use(digest)

    async def look(self) -> None:
        """Ask the container runtime who runs, and forget pods it has twice not shown.

        The first time, every pod of an endpoint with a view counts as a user of it: it may have come while no agent was here.

        Raises:
            Transient: it does not answer.
        """
        if self._sandboxes is None:
            self.has_looked = True
            return
        running = await self._sandboxes.sandboxes()
        if not self.has_looked:
            await self._shelf.name_users(running)
            self.has_looked = True
        await self._shelf.seen({s.uid for s in running})
