"""Asks S3 and registries which version each URI and tag stands for, at the times `resolutions.due_at` says.

One service each for models and images. One item's failure is a value with a reason and a backoff of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

import structlog

from agent.core.assignment import Window
from agent.core.clock import Clock
from agent.core.errors import Invalid, Permanent, Transient
from agent.core.latest import Latest, Signal
from agent.core.retry import Backoff
from agent.fleet.resolutions import Resolution, due_at

K = TypeVar("K")
V = TypeVar("V")
Wants = Mapping[K, tuple[Window, ...]]

log = structlog.get_logger()

_AT_ONCE = 8
_ANSWER_SECONDS = 60.0
_EVER = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class _State(Generic[V]):
    resolution: Resolution[V] = field(default_factory=Resolution)
    asked_at: datetime | None = None
    retry_at: datetime | None = None
    backoff: Backoff = field(default_factory=lambda: Backoff(base_seconds=2, cap_seconds=60, floor_seconds=1))


class Resolver(Generic[K, V]):
    """A service that keeps `results` filled for what `wants` names: each item with the windows it is needed in."""

    def __init__(
        self,
        name: str,
        ask: Callable[[K], Awaitable[V]],
        *,
        wants: Latest[Wants[K]],
        results: Latest[Mapping[K, Resolution[V]]],
        refresh: timedelta,
        clock: Clock,
    ) -> None:
        """What `results` holds already was found by a leader before: it is asked for again when that one would have."""
        self.name = name
        self._ask, self._wants, self._results = ask, wants, results
        self._refresh, self._clock = refresh, clock
        self._rng = random.Random()  # noqa: S311 (jitter)
        self._states: dict[K, _State[V]] = {
            k: _State(resolution=r, asked_at=clock.now()) for k, r in results.get().items()
        }
        self._busy: set[K] = set()
        self._signal = Signal()

    async def run(self) -> None:
        """Run until cancelled."""
        self._wants.attach(self._signal)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    wait = self._start_due(tasks)
                    await self._signal.wait(wait)
        finally:
            self._wants.detach(self._signal)

    def _start_due(self, tasks: asyncio.TaskGroup) -> float | None:
        """Start what is due, as far as `_AT_ONCE` allows; return the seconds until more is."""
        now = self._clock.now()
        idle = [k for k in self._wants.get() if k not in self._busy]
        due = sorted(((self._due(k, now), n) for n, k in enumerate(idle)))
        for _, n in [d for d in due if d[0] <= now][: _AT_ONCE - len(self._busy)]:
            self._busy.add(idle[n])
            tasks.create_task(self._resolve(idle[n]), name=f"{self.name} {idle[n]}")
        if len(self._busy) >= _AT_ONCE:
            return None  # each of them fires the signal when it ends
        later = [at for at, _ in due if at > now]
        return max(0.05, (min(later) - now).total_seconds()) if later else None

    def _due(self, key: K, now: datetime) -> datetime:
        state = self._states.get(key)
        if state is None or state.asked_at is None or state.asked_at > now:  # the last: the clock was set back
            return _EVER
        if state.retry_at is not None:
            return state.retry_at
        return due_at(state.asked_at, self._wants.get().get(key, ()), self._refresh)

    async def _resolve(self, key: K) -> None:
        state = self._states.setdefault(key, _State())
        state.asked_at = self._clock.now()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                value = await self._ask(key)
        except (Permanent, Invalid) as error:
            self._failed(key, state, str(error), lasting=True)
        except Transient as error:
            self._failed(key, state, str(error), lasting=False)
        except TimeoutError:
            self._failed(key, state, f"no answer about {key} within {_ANSWER_SECONDS:.0f} s", lasting=False)
        else:
            if state.resolution.value != value:
                log.info("resolved", item=str(key), version=str(value))
            state.resolution, state.retry_at = Resolution(value=value), None
            state.backoff = replace(state.backoff, failures=0)
        finally:
            self._busy.discard(key)
            self._tell()
            self._signal.fire()

    def _failed(self, key: K, state: _State[V], error: str, *, lasting: bool) -> None:
        if state.resolution.error != error:
            log.warning("cannot resolve", item=str(key), error=error)
        state.resolution = replace(state.resolution, error=error, lasting=lasting)
        state.backoff = state.backoff.failed()
        seconds = max(state.backoff.delay_seconds(self._rng), 10.0 if lasting else 0.0)
        state.retry_at = self._clock.now() + timedelta(seconds=seconds)

    def _tell(self) -> None:
        wanted = self._wants.get()
        self._states = {k: s for k, s in self._states.items() if k in wanted or k in self._busy}
        self._results.set({k: s.resolution for k, s in self._states.items()})
