"""Events on objects: told at once, kept alive while their cause stands, never a flood.

The API server forgets an Event an hour after its last write, so one whose cause stands is written again every ten minutes
(`count` and `lastTimestamp` of the same object: its name is made of what it says). One whose cause is gone ages away.
Words that change all the time (numbers of nodes) would be an Event each: every object has a budget, and past it only the
newest words are told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

import structlog

from agent.core.assignment_json import format_time
from agent.core.clock import Clock
from agent.core.errors import Permanent, Transient, cut
from agent.core.latest import Latest, Signal
from agent.core.retry import Backoff
from agent.kube.api import KubeApi
from agent.kube.errors import AlreadyExists, NotFound
from agent.kube.objects import ObjectRef
from agent.kube.resources import EVENTS

log = structlog.get_logger()

REPEAT = timedelta(minutes=10)
_MAX_MESSAGE = 1000  # the API refuses more than 1,024 bytes
_BURST, _REFILL_SECONDS = 25.0, 20.0  # client-go's burst; refilled fast enough to keep a full burst alive


class EventType(StrEnum):
    """The two types Kubernetes knows."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """One thing to say about one object. `reason` is one CamelCase word, `message` one sentence without secrets."""

    about: ObjectRef
    reason: str
    message: str
    type: EventType = EventType.WARNING

    @property
    def event_name(self) -> str:
        """The Event's name: the same for the same words about the same object."""
        said = "\0".join((self.about.kind, self.about.uid, self.reason, self.message))
        return f"{self.about.name[:200].rstrip('-.')}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Budget:
    """The writes left for one object at a moment (monotonic seconds)."""

    left: float = _BURST
    at: float

    def now(self, monotonic: float) -> _Budget:
        """Return the budget refilled up to now."""
        return _Budget(left=min(_BURST, self.left + (monotonic - self.at) / _REFILL_SECONDS), at=monotonic)

    @property
    def wait_seconds(self) -> float:
        """How long until there is a write left."""
        return max(0.0, (1 - self.left) * _REFILL_SECONDS)


class EventWriter:
    """A service that keeps one Event alive for each standing announcement."""

    name = "events"

    def __init__(
        self, api: KubeApi, standing: Latest[Collection[Announcement]], *, component: str, instance: str, clock: Clock
    ) -> None:
        self._api, self._standing, self._clock = api, standing, clock
        self._component, self._instance = component, instance
        self._due: dict[Announcement, float] = {}  # monotonic seconds
        self._backoff: dict[Announcement, Backoff] = {}
        self._budgets: dict[ObjectRef, _Budget] = {}

    async def run(self) -> None:
        """Run until cancelled."""
        signal = Signal()
        self._standing.attach(signal)
        try:
            while True:
                wait = await self.announce(self._standing.get())
                await signal.wait(wait)
        finally:
            self._standing.detach(signal)

    async def announce(self, standing: Collection[Announcement]) -> float | None:
        """Write what is due of the standing announcements and forget all others.

        Returns:
            Seconds until the next one is due, None if there are none.
        """
        self._due = {a: self._due.get(a, 0.0) for a in standing}
        self._backoff = {a: b for a, b in self._backoff.items() if a in self._due}
        now = self._clock.monotonic()
        self._budgets = {o: b for o, b in self._budgets.items() if b.now(now).left < _BURST}
        for announcement in [a for a, due in self._due.items() if due <= now]:
            wait = self._budget(announcement).wait_seconds or await self._tell(announcement)
            self._due[announcement] = self._clock.monotonic() + wait
        if not self._due:
            return None
        return max(0.1, min(self._due.values()) - self._clock.monotonic())

    def _budget(self, announcement: Announcement) -> _Budget:
        now = self._clock.monotonic()
        return self._budgets.get(announcement.about, _Budget(at=now)).now(now)

    async def _tell(self, announcement: Announcement) -> float:
        """Write one; return the seconds until it is due again."""
        try:
            again = await self._write(announcement)
        except Transient:
            backoff = self._backoff.get(announcement, Backoff(floor_seconds=1)).failed()
            self._backoff[announcement] = backoff
            return min(backoff.cap_seconds, 2.0**backoff.failures)
        except Permanent as error:  # a namespace on its way out, or RBAC: nothing to hurry for
            log.warning("event refused", about=announcement.about.name, error=str(error))
            again = REPEAT
        budget = self._budget(announcement)
        self._budgets[announcement.about] = replace(budget, left=budget.left - 1)
        self._backoff.pop(announcement, None)
        return again.total_seconds()

    async def _write(self, announcement: Announcement) -> timedelta:
        try:
            await self._create(announcement)
        except AlreadyExists:
            return await self._repeat(announcement)
        return REPEAT

    async def _repeat(self, announcement: Announcement) -> timedelta:
        namespace, now = _namespace(announcement.about), self._clock.now()
        try:
            found = await self._api.get(EVENTS, announcement.event_name, namespace=namespace)
            if found.last is not None and now - REPEAT < found.last <= now:
                return found.last + REPEAT - now  # a planner before this one has just said it
            body = {"count": max(found.count, 1) + 1, "lastTimestamp": format_time(now)}
            await self._api.patch(EVENTS, announcement.event_name, body, namespace=namespace)
        except NotFound:  # it aged away in between
            await self._create(announcement)
        return REPEAT

    async def _create(self, announcement: Announcement) -> None:
        about, now = announcement.about, format_time(self._clock.now())
        namespace = _namespace(about)
        involved = {
            "apiVersion": about.api_version,
            "kind": about.kind,
            "namespace": about.namespace,
            "name": about.name,
            "uid": about.uid,
        }
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": announcement.event_name, "namespace": namespace},
            "involvedObject": {k: v for k, v in involved.items() if v},
            "reason": announcement.reason,
            "message": _fit(announcement.message),
            "type": str(announcement.type),
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
        }
        await self._api.create(EVENTS, body, namespace=namespace)


def _namespace(about: ObjectRef) -> str:
    return about.namespace or "default"  # where Kubernetes keeps Events about cluster-scoped objects


def _fit(message: str) -> str:
    line = cut(message, _MAX_MESSAGE)
    return line.encode()[:_MAX_MESSAGE].decode(errors="ignore")
