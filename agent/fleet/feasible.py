"""Which windows cannot be met, by how much, and what would help: known while there is time to act. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from agent.core.assignment import EndpointWant
from agent.core.refs import EndpointKey
from agent.core.units import format_duration, format_size
from agent.fleet.yields import NOTHING_KNOWN, NodeYield, items_of
from agent.plan.physics import Job, Late, just_after, late_jobs, latest_starts

_STEP = timedelta(minutes=5)  # lateness is told in these steps, so that the same trouble is the same Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """One endpoint on one node that is not ready by its next window, though the node fetches from now on."""

    node: str
    found: NodeYield
    size_bytes: int
    late: Late[EndpointKey]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What will be late, by endpoint and worst first, and when to look again if nothing else changes."""

    misses: Mapping[EndpointKey, tuple[Miss, ...]] = field(default_factory=dict)
    look_at: datetime | None = None


def outlook(assigned: Mapping[str, Sequence[EndpointWant]], yields: Mapping[str, NodeYield], now: datetime) -> Outlook:
    """Return what the nodes cannot have ready by the next declared window of each of their endpoints.

    What a living agent says of its windows holds, for it sees every byte come; for the others the planner reckons by what was last
    reported. A window that is open already is the node's to report, not a forecast; the one after it is.
    """
    found: defaultdict[EndpointKey, list[Miss]] = defaultdict(list)
    looks: list[datetime] = []
    for node, wants in assigned.items():
        has = yields.get(node, NOTHING_KNOWN)
        sizes, jobs = _jobs(wants, has, now)
        told = list(_told(wants, has, now))
        reckoned = [late for late in late_jobs(jobs, now, timedelta(0)) if str(late.job.key) not in has.ready_at]
        for late in (*told, *reckoned):
            miss = Miss(node=node, found=has, size_bytes=sizes.get(late.job.key, 0), late=late)
            found[late.job.key].append(miss)
        looks += map(just_after, latest_starts(jobs, timedelta(0))[:1])
    worst = {key: tuple(sorted(some, key=lambda m: (-m.late.by, m.node))) for key, some in found.items()}
    return Outlook(misses=worst, look_at=min((at for at in looks if at > now), default=None))


def _told(wants: Iterable[EndpointWant], found: NodeYield, now: datetime) -> Iterator[Late[EndpointKey]]:
    """Yield what the node's agent says will be late."""
    for want in wants if any(found.ready_at.values()) else ():
        window, done = want.promise_ahead(now), found.ready_at.get(str(want.key))
        if window and done and window.ready_by < done:
            seconds = sum(found.lacks(items_of(want)).values()) / found.bytes_per_second
            yield Late(job=Job(key=want.key, due=window.ready_by, seconds=seconds), done=done, behind_seconds=0.0)


def _jobs(
    wants: Iterable[EndpointWant], found: NodeYield, now: datetime
) -> tuple[dict[EndpointKey, int], list[Job[EndpointKey]]]:
    """Return the work of a node in order of due times, with the bytes of each; what several need counts once."""
    due = [(w.ready_by, want) for want in wants if (w := want.promise_ahead(now))]
    sizes, jobs, fetched = dict[EndpointKey, int](), [], set[str]()
    for at, want in sorted(due, key=lambda pair: (pair[0], -pair[1].priority, pair[1].key)):
        lacks = found.lacks(items_of(want))
        size = sum(n for item, n in lacks.items() if item not in fetched)
        fetched |= lacks.keys()
        if size:
            sizes[want.key] = sum(lacks.values())
            jobs.append(Job(key=want.key, due=at, seconds=size / found.bytes_per_second))
    return sizes, jobs


def miss_note(misses: Sequence[Miss], nodes: int) -> str:
    """Say what is late by how much, and what would help."""
    worst = misses[0]
    late, rate = worst.late, worst.found.bytes_per_second
    by = _STEP * math.ceil(late.by / _STEP)
    where = f"node {worst.node}" + (f" (the worst of {len(misses)} of its {nodes} nodes)" if len(misses) > 1 else "")
    measured = "measured" if worst.found.measured else "assumed, nothing is measured yet"
    total = late.job.seconds + late.behind_seconds
    ahead = (late.job.due - late.done).total_seconds() + total
    faster = f"at {format_size(_round(rate * total / ahead))}/s, " if ahead > 1 else ""
    first = "what is due before on this node comes first; " if late.behind_seconds > late.job.seconds / 10 else ""
    return (
        f"the window at {late.job.due:%Y-%m-%d %H:%M} UTC cannot be met: {where} will be late by up to {format_duration(by)}, "
        f"it lacks {format_size(worst.size_bytes)} and fetches {format_size(rate)}/s ({measured}); {first}"
        f"in time it would be {faster}with fewer bytes, or declared that much earlier (lead)"
    )


def _round(number: float) -> float:
    """Round up to two digits: enough to act on, and the same sentence while time goes by."""
    scale = 10.0 ** (math.floor(math.log10(max(number, 1))) - 1)
    return math.ceil(number / scale) * scale
