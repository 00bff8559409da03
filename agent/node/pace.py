"""Measures how fast this node fetches, and keeps it over restarts: the plan rests on it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import structlog

from agent.core.clock import Clock
from agent.core.errors import cut
from agent.core.inventory import ModelsView
from agent.core.latest import Latest, Signal
from agent.plan.decision import NodePlan
from agent.plan.pace import Pace, format_pace, parse_pace

log = structlog.get_logger(__name__)

_SAMPLE_SECONDS = 10.0
_SAVE_SECONDS = 300.0


class PaceKeeper:
    """A service that samples the rate of running downloads into the cell `pace`.

    Not in their first seconds, which tell of connections, nor while a pod waits for an image: downloads make way for it then. From
    one download to the next the present rate stands, for what waits is reckoned by it.
    """

    name = "pace"

    def __init__(
        self, *, models: Latest[ModelsView], plan: Latest[NodePlan], pace: Latest[Pace], path: Path, clock: Clock
    ) -> None:
        self._models, self._plan, self._pace, self._path, self._clock = models, plan, pace, path, clock
        self._sampled_at = self._saved_at = self._ran_at = float("-inf")

    async def run(self) -> None:
        """Sample until cancelled."""
        self._pace.set(await asyncio.to_thread(self._load))
        self._sampled_at = self._clock.monotonic()
        signal = Signal()
        self._models.attach(signal)
        try:
            while True:
                await signal.wait(_SAMPLE_SECONDS if self._pace.get().running else None)
                if self.look() and self._clock.monotonic() - self._saved_at >= _SAVE_SECONDS:
                    self._saved_at = self._clock.monotonic()
                    await asyncio.to_thread(self._save, self._pace.get())
        finally:
            self._models.detach(signal)

    def look(self) -> bool:
        """Take a sample if it is time for one; say whether one was taken."""
        now = self._clock.monotonic()
        rate = sum(s.rate_bytes_per_second for s in self._models.get().states.values() if s.busy)
        if rate < 1 or any(p.urgent for p in self._plan.get().pulls):
            self._sampled_at = now
            if now - self._ran_at >= _SAMPLE_SECONDS:
                self._pace.set(self._pace.get().paused())
            return False
        self._ran_at = now
        if now - self._sampled_at < _SAMPLE_SECONDS:
            return False
        self._sampled_at = now
        self._pace.set(self._pace.get().with_sample(rate))
        return True

    def _load(self) -> Pace:
        try:
            return parse_pace(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return Pace()
        except (OSError, ValueError, RecursionError) as error:
            log.warning("measured pace cannot be read", path=str(self._path), error=cut(error))
            return Pace()

    def _save(self, pace: Pace) -> None:
        """Write by rename; what is lost is measured again."""
        draft = self._path.with_suffix(".new")
        try:
            draft.write_text(json.dumps(format_pace(pace)))
            draft.replace(self._path)
        except OSError as error:
            log.warning("measured pace cannot be kept", path=str(self._path), error=error.strerror)
