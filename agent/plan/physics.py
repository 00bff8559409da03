"""When work must start to be done in time, and what cannot be: one resource, earliest due first. Pure.

A node's network and disk are one resource that does one thing after the other in order of due times (EDF: if any order meets every
due time, this one does; Liu and Layland 1973). Work is in seconds: what is missing over the rate the node is known to reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Generic, TypeVar

K = TypeVar("K")

LONGEST_SECONDS = 366 * 86400.0  # work that takes longer than any window is known ahead starts now in any case
LONG_AGO = datetime.min.replace(tzinfo=UTC)
SLOW_SHARE = 1 / 3  # of the pool's median rate
SPELL_SECONDS = 3600.0  # for how long a rate of now is expected to hold: rates differ more between hours than within


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Generic[K]):
    """Work for one endpoint: to be done by `due`, takes `seconds`."""

    key: K
    due: datetime
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Late(Generic[K]):
    """Work that cannot be done in time: when at the earliest, and what stood before it in the queue."""

    job: Job[K]
    done: datetime
    behind_seconds: float  # of work that is due no later

    @property
    def by(self) -> timedelta:
        """How late it is."""
        return self.done - self.job.due


def latest_starts(jobs: Sequence[Job[K]], margin: timedelta) -> list[datetime]:
    """Return for each of `jobs`, which are in order of due times, the latest start at which it and all after it are in time.

    That is: each ends when it is due, or when the one after it must start, whichever is earlier; all that `margin` before.
    """
    starts: list[datetime] = []
    ends: datetime | None = None
    for job in reversed(jobs):
        ends = min(job.due, ends) if ends else job.due
        ends = before(ends, job.seconds)
        starts.append(ends)
    return [before(start, margin.total_seconds()) for start in reversed(starts)]


def late_jobs(jobs: Iterable[Job[K]], now: datetime, margin: timedelta, share: float = 1.0) -> list[Late[K]]:
    """Return the jobs that are not done by `margin` before they are due, though work begins now and never stops.

    `share` is what the rate of now is of the usual one that the jobs' seconds rest on: see `lasting`.
    """
    found, behind = [], 0.0
    for job in sorted(jobs, key=lambda j: j.due):
        done = _after(now, lasting(behind + job.seconds, share) + margin.total_seconds())
        if done > job.due and job.seconds > 0:
            found.append(Late(job=job, done=done, behind_seconds=behind))
        behind += job.seconds
    return found


def lasting(seconds: float, share: float) -> float:
    """Return how long work of so many seconds takes that goes at `share` (above 0, at most 1) of its rate for a spell."""
    return min(seconds / share, seconds + SPELL_SECONDS * (1 - share))


def before(at: datetime, seconds: float) -> datetime:
    """Return a time so many seconds earlier; a download that stalls has a rate near 0: then everything starts now."""
    try:
        return at - timedelta(seconds=min(seconds, LONGEST_SECONDS))
    except OverflowError:  # due in the first days of the calendar
        return LONG_AGO


def just_after(start: datetime) -> datetime:
    """Return when to look at work whose latest start this is: at that very moment it can still be done in time."""
    return _after(start, 1.0)


def _after(at: datetime, seconds: float) -> datetime:
    try:
        return at + timedelta(seconds=min(seconds, LONGEST_SECONDS))
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def share_of(text: str) -> float:
    """Return a number from 0 to 1 that is always the same for a text and spreads evenly over texts: jitter; 0 for ""."""
    digest = blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32 if text else 0.0
