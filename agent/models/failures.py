"""What failed and when it is tried again: soon where the world was away, later where a person, or room, is needed."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from agent.core.clock import Clock
from agent.core.errors import PrewarmError, Transient
from agent.core.refs import Digest
from agent.core.retry import Backoff
from agent.models.capacity import NoRoom

_SOON = Backoff(base_seconds=1, cap_seconds=60, floor_seconds=0.5)  # S3 or the disk was away
_LATER = Backoff(base_seconds=30, cap_seconds=600, floor_seconds=15)  # a person has to change something


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    backoff: Backoff
    retry_at: datetime
    lacks: tuple[Digest, int] | None  # a version and the bytes it needs, where only room was lacking


class Failures:
    """Backed-off work, by key."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock, self._rng = clock, rng
        self._failures: dict[str, _Failure] = {}

    def failed(self, key: str, error: PrewarmError, digest: Digest | None) -> datetime:
        """Note a failure; returns when it is tried again."""
        before = self._failures.get(key)
        first = _SOON if isinstance(error, Transient) else _LATER
        backoff = replace(first, failures=before.backoff.failures if before else 0).failed()
        retry_at = self._clock.now() + timedelta(seconds=backoff.delay_seconds(self._rng))
        lacks = (digest, error.needed_bytes) if isinstance(error, NoRoom) and digest else None
        self._failures[key] = _Failure(backoff=backoff, retry_at=retry_at, lacks=lacks)
        return retry_at

    def forget(self, key: str) -> None:
        """Let it be tried at once."""
        self._failures.pop(key, None)

    def keep_only(self, keys: Collection[str]) -> None:
        """Forget everything but these."""
        self._failures = {k: f for k, f in self._failures.items() if k in keys}

    def waits(self, key: str) -> bool:
        """Say whether it is not yet to be tried again."""
        failure = self._failures.get(key)
        return failure is not None and failure.retry_at > self._clock.now()

    def seconds_left(self, keys: Iterable[str]) -> float | None:
        """Return when the first of these is tried again; None for never."""
        times = [f.retry_at for k in keys if (f := self._failures.get(k))]
        return max(0.05, (min(times) - self._clock.now()).total_seconds()) if times else None

    def lacking_room(self) -> list[tuple[str, Digest, int]]:
        """Return (key, version, needed bytes) of all that only lacked room."""
        return [(k, *f.lacks) for k, f in self._failures.items() if f.lacks]
