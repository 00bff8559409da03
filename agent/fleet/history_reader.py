"""Reads endpoints' requests from Prometheus: what is past once, then each slot as it ends.

Samples count more than the planner's own sight of replicas, which counts where there are none. In what is read of the past a
slot without a sample is idle only if Prometheus was at work in it and has seen the endpoint before; else it stays unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import structlog

from agent.core.errors import Permanent, Transient
from agent.core.names import PREFIX
from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint
from agent.demand.history import History, Track, oldest, slot_of
from agent.demand.history_queries import HEARTBEAT, query_of
from agent.fleet.prometheus import MAX_SLOTS, Prometheus
from agent.kube.events import Announcement
from agent.kube.objects import ObjectRef

log = structlog.get_logger()

SCRAPED = timedelta(seconds=75)  # after a slot's end until its last scrape is stored: scrapes are up to a minute apart
_AGAIN = 2  # slots before the last that are read once more: scrapes come late, and through other stores later
_AT_ONCE = 4
_SILENT = 8  # endpoints whose query may run out of time before Prometheus itself counts as away


class HistoryReader:
    """Remembers until which slot each endpoint has been read."""

    def __init__(self, prometheus: Prometheus, overrides: Mapping[str, str]) -> None:
        self.failures_total = 0
        self.problems: Mapping[EndpointKey, str] = {}  # queries that are refused, by endpoint
        self._prometheus, self._overrides = prometheus, overrides
        self._until: dict[EndpointKey, tuple[str, int]] = {}  # a query, and the slot before which it has been asked
        self._away = ""

    async def read(self, endpoints: Sequence[Endpoint], history: History, now: datetime) -> None:
        """Enter what Prometheus knows of the slots that have ended; what it does not answer now is asked for next time."""
        end = slot_of(now - SCRAPED)
        self._until = {e.key: self._until[e.key] for e in endpoints if e.key in self._until}
        queries = {e.key: query_of(e, self._overrides) for e in endpoints}
        due = {key: query for key, query in queries.items() if self._until.get(key) != (query, end)}
        away, refused = "", self.problems
        begin = min((self._from(k, q, end) for k, q in due.items()), default=end)
        try:
            beat = await self._beat(begin - 1, end)
            refused = await self._read_all(due, beat, history, end)
        except* (Transient, Permanent) as group:
            away = str(_first(group))
        self._told(away)
        for key in refused.keys() - self.problems.keys():
            log.warning("prometheus does not answer about an endpoint", endpoint=str(key), error=refused[key])
        self.problems = refused

    async def _read_all(
        self, queries: Mapping[EndpointKey, str], beat: Track, history: History, end: int
    ) -> Mapping[EndpointKey, str]:
        gate, refused, silent = asyncio.Semaphore(_AT_ONCE), dict[EndpointKey, str](), list[EndpointKey]()

        async def one(key: EndpointKey, query: str) -> None:
            async with gate:
                try:
                    await self._read(key, query, beat, history, end)
                except (Permanent, Transient) as error:
                    self.failures_total += 1
                    refused[key] = str(error)
                    silent.extend([key] if isinstance(error, Transient) else [])
                    if len(silent) > _SILENT:
                        raise

        async with asyncio.TaskGroup() as tasks:
            for key, query in queries.items():
                tasks.create_task(one(key, query), name=f"history of {key}")
        return refused

    async def _read(self, key: EndpointKey, query: str, beat: Track, history: History, end: int) -> None:
        begin, past = self._from(key, query, end), key not in self._until or self._until[key][0] != query
        found = Track()
        for first, count in pieces(begin, end):
            if not past or beat.bits(first, count)[1] or not beat.known:
                found = found.amended(await self._prometheus.track(query, first, count))
        history.tell(key, trusted(found, beat))
        if past:
            history.fill(key, absent(found, beat))
        self._until[key] = (query, end)

    async def _beat(self, begin: int, end: int) -> Track:
        """Return in which slots Prometheus was at work; an empty track where it cannot tell."""
        found = Track()
        for first, count in pieces(begin, end):
            found = found.amended(await self._prometheus.track(HEARTBEAT, first, count))
        return found

    def _from(self, key: EndpointKey, query: str, end: int) -> int:
        """Return from which slot on an endpoint is read: all of its past if that has not been read with this query."""
        asked, until = self._until.get(key, ("", 0))
        return max(until - _AGAIN if asked == query else 0, oldest(end))

    def _told(self, away: str) -> None:
        if away and away != self._away:
            log.warning("prometheus cannot be read, replicas count meanwhile", error=away)
        elif self._away and not away:
            log.info("prometheus answers again")
        self._away = away
        self.failures_total += bool(away)


def trusted(found: Track, beat: Track) -> Track:
    """Return what was found, without what is active right after a slot in which Prometheus was not at work.

    After a gap every counter looks new, and counts with all that it has ever counted.
    """
    if not beat.known or not found.known:
        return found
    _, worked = beat.bits(found.first - 1, found.end - found.first)
    doubtful = found.active & ~worked
    return Track(first=found.first, active=found.active & ~doubtful, known=found.known & ~doubtful)


def absent(found: Track, beat: Track) -> Track:
    """Return as idle the slots since the first one found in which Prometheus was at work and found nothing."""
    if not found.known:
        return Track()
    began = found.first + (found.known & -found.known).bit_length() - 1
    count = max(beat.end - began, 0)
    return Track(first=began, known=beat.bits(began, count)[1] & ~found.bits(began, count)[1])


def refusals(endpoints: Iterable[Endpoint], problems: Mapping[EndpointKey, str]) -> Collection[Announcement]:
    """Return an Event for each endpoint whose own query is refused; the built-in ones are the operator's business."""
    return frozenset(
        Announcement(
            about=ObjectRef(
                api_version=e.workload.api_version,
                kind=e.workload.kind,
                namespace=e.workload.namespace,
                name=e.workload.name,
                uid=e.workload.uid,
            ),
            reason="HistoryUnreadable",
            message=f"{PREFIX}history: {problems[e.key]}",
        )
        for e in endpoints
        if e.history and e.key in problems
    )


def pieces(first: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield first slot and length of the questions that cover the slots from `first` until before `end`."""
    return ((at, min(MAX_SLOTS, end - at)) for at in range(first, end, MAX_SLOTS))


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
