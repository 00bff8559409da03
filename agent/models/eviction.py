"""Removes versions the plan gives up, in the order that hurts nobody: claim gone, wait, ask who uses it, ask again, remove."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from agent.core.clock import Clock
from agent.core.errors import PrewarmError
from agent.core.refs import Digest
from agent.core.sandbox import Sandbox
from agent.models.board import Board
from agent.models.shelf import Shelf
from agent.plan.decision import EvictStep

WAIT_SECONDS = 10.0  # from the withdrawn claim to the first look: a pod scheduled by it has its sandbox by then
_AGAIN_SECONDS = 10.0

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
    """Executes evict steps. `steps` returns the steps that stand now: one that is withdrawn is not carried out."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        board: Board,
        clock: Clock,
        sandboxes: Sandboxes | None,
        steps: Callable[[], Sequence[EvictStep]],
    ) -> None:
        self._shelf, self._board, self._clock, self._sandboxes, self._steps = shelf, board, clock, sandboxes, steps
        self._look_at: dict[Digest, float] = {}

    async def run(self) -> float | None:
        """Do what is due now; return the seconds until something else is, None for nothing."""
        now = self._clock.monotonic()
        wanted = {s.digest: s for s in self._steps()}
        self._look_at = {d: at for d, at in self._look_at.items() if d in wanted}
        for digest, step in wanted.items():
            if digest not in self._shelf.versions:
                if not self._board.state(digest).busy:
                    await self._shelf.discard(digest)
                    self._board.gone(digest, f"removed: {step.reason}")
                continue
            if now >= self._look_at.setdefault(digest, now + WAIT_SECONDS):
                await self._evict(step)
                self._look_at[digest] = now + _AGAIN_SECONDS
        self._look_at = {d: at for d, at in self._look_at.items() if d in self._shelf.versions}
        return max(0.1, min(self._look_at.values()) - now) if self._look_at else None

    async def _evict(self, step: EvictStep) -> None:
        digest = step.digest
        if why := await self._why_not(digest):
            self._board.update(digest, reason=f"kept: {why}")
            return

        def still() -> bool:
            if digest not in {s.digest for s in self._steps()}:
                return False
            self._board.gone(digest, f"removed: {step.reason}")
            return True

        if await self._shelf.remove(digest, still):
            self._board.use(await self._shelf.use())
            log.info("evicted", digest=digest, reason=step.reason)

    async def _why_not(self, digest: Digest) -> str:
        try:
            await self.look()
        except PrewarmError as error:
            return f"who runs on this node is not known ({error})"
        return await self._shelf.why_in_use(digest)

    async def look(self) -> None:
        """Ask the container runtime who runs, and forget pods it has twice not shown.

        Raises:
            Transient: it does not answer.
        """
        if self._sandboxes is not None:
            await self._shelf.seen({s.uid for s in await self._sandboxes.sandboxes()})
