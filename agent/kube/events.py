"""Events on objects: told at once, kept alive while their cause stands, never a flood.

The API server forgets an Event an hour after its last write, so one whose cause stands is written again every ten minutes
(`count` and `lastTimestamp` of the same object: its name is made of what it says). One whose cause is gone ages away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
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
        return f"{self.about.name[:200]}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"


class EventWriter:
    """A service that keeps one Event alive for each standing announcement."""

    name = "events"

    def __init__(
        self, api: KubeApi, standing: Latest[Collection[Announcement]], *, component: str, instance: str, clock: Clock
    ) -> None:
        self._api, self._standing, self._clock = api, standing, clock
        self._component, self._instance = component, instance
        self._due: dict[Announcement, datetime] = {}
        self._backoff: dict[Announcement, Backoff] = {}

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
        self._due = {a: self._due.get(a, datetime.min.replace(tzinfo=self._clock.now().tzinfo)) for a in standing}
        self._backoff = {a: b for a, b in self._backoff.items() if a in self._due}
        for announcement in [a for a, due in self._due.items() if due <= self._clock.now()]:
            self._due[announcement] = await self._tell(announcement)
        if not self._due:
            return None
        return max(0.1, (min(self._due.values()) - self._clock.now()).total_seconds())

    async def _tell(self, announcement: Announcement) -> datetime:
        try:
            due = await self._write(announcement)
        except (Transient, Permanent) as error:
            if not isinstance(error, Transient):  # a namespace on its way out, or RBAC: nothing to hurry for
                log.warning("event refused", about=announcement.about.name, error=str(error))
                return self._clock.now() + REPEAT
            backoff = self._backoff.get(announcement, Backoff(floor_seconds=1)).failed()
            self._backoff[announcement] = backoff
            return self._clock.now() + timedelta(seconds=min(backoff.cap_seconds, 2.0**backoff.failures))
        self._backoff.pop(announcement, None)
        return due

    async def _write(self, announcement: Announcement) -> datetime:
        try:
            await self._create(announcement)
        except AlreadyExists:
            return await self._repeat(announcement)
        return self._clock.now() + REPEAT

    async def _repeat(self, announcement: Announcement) -> datetime:
        namespace, now = _namespace(announcement.about), self._clock.now()
        try:
            found = await self._api.get(EVENTS, announcement.event_name, namespace=namespace)
            if found.last is not None and now - REPEAT < found.last <= now:
                return found.last + REPEAT  # a planner before this one has just said it
            body = {"count": max(found.count, 1) + 1, "lastTimestamp": format_time(now)}
            await self._api.patch(EVENTS, announcement.event_name, body, namespace=namespace)
        except NotFound:  # it aged away in between
            await self._create(announcement)
        return now + REPEAT

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
