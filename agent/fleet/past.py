"""Weeks of the past read from Prometheus at once, for a person's commands: who was active, or how many pods there were."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from agent.core.errors import Permanent, Transient
from agent.core.refs import EndpointKey
from agent.demand.history import Track
from agent.demand.history_queries import HEARTBEAT
from agent.fleet.history_reader import absent, pieces, trusted
from agent.fleet.prometheus import Prometheus

_AT_ONCE = 4
_SILENT = 8  # endpoints whose query may run out of time before Prometheus itself counts as away
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Past(Generic[T]):
    """What was found of each endpoint, and why nothing was of others."""

    found: Mapping[EndpointKey, T]
    refused: Mapping[EndpointKey, str]


async def past_activity(
    prometheus: Prometheus, queries: Mapping[EndpointKey, str], first: int, end: int
) -> Past[Track]:
    """Return who was active in the slots from `first` until before `end`, known as the planner's reader knows it.

    Raises:
        Transient: Prometheus is away, or refuses everybody.
        Permanent: it does not answer reasonably.
    """
    beat = await _track(prometheus, HEARTBEAT, first - 1, end)

    async def one(query: str) -> Track:
        found = await _track(prometheus, query, first, end, beat)
        return absent(found, beat).amended(trusted(found, beat))

    return await _each(queries, one)


async def past_levels(
    prometheus: Prometheus, queries: Mapping[EndpointKey, str], first: int, end: int
) -> Past[Mapping[int, float]]:
    """Return the greatest value in each slot; 0 where Prometheus was at work and had seen the endpoint before, absent where not.

    Raises:
        Transient, Permanent: as `past_activity`.
    """
    beat = await _track(prometheus, HEARTBEAT, first, end)

    async def one(query: str) -> Mapping[int, float]:
        levels: dict[int, float] = {}
        for at, count in pieces(first, end):
            levels |= await prometheus.levels(query, at, count)
        quiet = range(min(levels, default=end), end)
        return {slot: 0.0 for slot in quiet if beat.state(slot) is not None} | levels

    return await _each(queries, one)


async def _each(queries: Mapping[EndpointKey, str], ask: Callable[[str], Awaitable[T]]) -> Past[T]:
    """Ask about each endpoint; one that is refused costs no other its answer."""
    gate, found, refused, silent = asyncio.Semaphore(_AT_ONCE), dict[EndpointKey, T](), dict[EndpointKey, str](), []

    async def one(key: EndpointKey, query: str) -> None:
        async with gate:
            try:
                found[key] = await ask(query)
            except Permanent as error:
                refused[key] = str(error)
            except Transient as error:
                refused[key] = str(error)
                silent.append(key)
                if len(silent) > _SILENT:
                    raise

    away = ""
    try:
        async with asyncio.TaskGroup() as tasks:
            for key, query in queries.items():
                tasks.create_task(one(key, query), name=f"past of {key}")
    except* Transient as group:
        away = str(group.exceptions[0])  # what is raised here would come out in a group again
    if away:
        raise Transient(away)
    return Past(found=found, refused=refused)


async def _track(prometheus: Prometheus, query: str, first: int, end: int, beat: Track | None = None) -> Track:
    found = Track()
    for at, count in pieces(first, end):
        if beat is None or not beat.known or beat.bits(at, count)[1]:
            found = found.amended(await prometheus.track(query, at, count))
    return found
