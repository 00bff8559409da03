"""List, then watch: one kind's whole current state in a `Latest` cell, for ever, through every outage.

It costs nothing while nothing changes: no periodic list, one open request renewed every 5 to 9 minutes. An API server that is
away leaves the last state in the cell and says so beside it (`away_since`, `error`); what was deleted meanwhile shows when it
is back, by going on from the last version or, if the server has forgotten that, by listing again.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

import structlog

from agent.core.clock import Clock
from agent.core.errors import Permanent, Transient, cut
from agent.core.latest import Latest
from agent.core.retry import Backoff
from agent.kube.api import Json, KubeApi, Resource
from agent.kube.errors import Away, Forbidden, Gone, NotFound, refusal

log = structlog.get_logger()

_MAX_LINE = 32 << 20
_ABSENT_SECONDS = 30.0  # between two looks for a kind that is not installed
_SHORT_SECONDS = 5.0  # a watch that ends sooner than this counts as a failure for the pace of the next


class Named(Protocol):
    """An object with a name."""

    @property
    def name(self) -> str:
        """Its name; with `namespace`, where it has one, its key."""
        ...


N = TypeVar("N", bound=Named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Generic[N]):
    """Every object that matches, by `namespace/name` (or name), as last seen.

    `synced` turns True with the first complete list and stays. `away_since` is when the API server was lost, None while it
    answers; `error` is why.
    """

    items: Mapping[str, N] = field(default_factory=dict)
    synced: bool = False
    away_since: datetime | None = None
    error: str = ""

    @property
    def current(self) -> bool:
        """True if this is what the API server says now, not what it said before it was lost."""
        return self.synced and self.away_since is None

    def only(self) -> N | None:
        """Return the one object, for a watch selected by name."""
        return next(iter(self.items.values()), None)


def key_of(item: Named) -> str:
    """Return `namespace/name`, or the name of a cluster-scoped object."""
    namespace = getattr(item, "namespace", "")
    return f"{namespace}/{item.name}" if namespace else item.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which objects of a kind: on the server by namespace, labels and fields."""

    namespace: str = ""
    labels: str = ""
    fields: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long one watch may last (seconds, drawn between the two), and how soon the next one follows a failure."""

    seconds: tuple[float, float] = (300.0, 540.0)
    backoff: Backoff = field(default_factory=Backoff)


class Watch(Generic[N]):
    """A service that keeps `cell` equal to what the API server holds."""

    def __init__(
        self,
        api: KubeApi,
        resource: Resource[N],
        cell: Latest[Listing[N]],
        *,
        clock: Clock,
        select: Selection = Selection(),
        keep: Callable[[N], bool] = lambda _: True,
        optional: bool = False,
        pace: Pace = Pace(),
    ) -> None:
        """Watch what `select` selects on the server; `keep` drops the others before they take memory.

        A kind that is `optional` may not be installed, or not be this account's to read: then there are none, until it is. One
        that was seen is gone only when it is still missing at the next look.
        """
        self.name = f"watch {resource.plural}"
        self._api, self._resource, self._cell, self._clock = api, resource, cell, clock
        self._select, self._keep, self._pace = select, keep, pace
        self._rng = random.Random()  # noqa: S311 (jitter)
        self._backoff = pace.backoff
        self._version = ""
        self._optional = optional
        self._missing = 0  # looks in a row that found no such kind

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            began = self._clock.monotonic()
            try:
                if not self._version:
                    await self._list()
                await self._follow()
            except Gone as error:
                log.info("watch starts again", kind=self._resource.plural, reason=str(error))
                self._version = ""
                self._backoff = self._backoff.failed()
            except (Transient, Permanent) as error:
                if self._absent(error):
                    await self._clock.sleep(_ABSENT_SECONDS)
                    continue
                self._lost(error)
            else:
                short = self._clock.monotonic() - began < _SHORT_SECONDS
                self._backoff = self._backoff.failed() if short else self._pace.backoff
            await self._clock.sleep(self._backoff.delay_seconds(self._rng))

    async def _list(self) -> None:
        listed = await self._api.list(
            self._resource,
            namespace=self._select.namespace,
            label_selector=self._select.labels,
            field_selector=self._select.fields,
        )
        before = self._cell.get().items
        found = {key_of(item): item for item in listed.items if self._keep(item)}
        self._found({k: before[k] if before.get(k) == v else v for k, v in found.items()})  # identity: see _apply
        self._version, self._missing = listed.resource_version, 0

    async def _follow(self) -> None:
        seconds = self._rng.uniform(*self._pace.seconds)
        query = {
            "watch": "1",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        query |= {"labelSelector": self._select.labels} if self._select.labels else {}
        query |= {"fieldSelector": self._select.fields} if self._select.fields else {}
        path = self._resource.path(namespace=self._select.namespace)
        async with self._api.stream(path, query, seconds + 30) as chunks, aclosing(_lines(chunks)) as batches:
            self._found(self._cell.get().items)  # it answers
            async for batch in batches:
                self._apply(batch)

    def _apply(self, batch: list[bytes]) -> None:
        items, version = dict(self._cell.get().items), self._version
        for line in batch:
            kind, item = _event(line)
            version = str((item.get("metadata") or {}).get("resourceVersion") or version)
            if kind == "BOOKMARK":
                continue
            seen = self._resource.parse(item)
            if kind == "DELETED" or not self._keep(seen):
                items.pop(key_of(seen), None)
            elif items.get(key_of(seen)) != seen:  # an equal one keeps its identity, which readers memoize by
                items[key_of(seen)] = seen
        self._backoff = self._pace.backoff
        self._version = version  # only now: a batch that breaks off is sent again from where it began
        self._found(items)

    def _found(self, items: Mapping[str, N]) -> None:
        if self._cell.get().away_since is not None:
            log.info("api server answers again", kind=self._resource.plural)
        self._cell.set(Listing(items=items, synced=True))

    def _absent(self, error: Exception) -> bool:
        """Say whether an optional kind is not there; then there are none of it."""
        self._missing = self._missing + 1 if self._optional and isinstance(error, NotFound | Forbidden) else 0
        if not self._missing:
            return False
        self._version = ""
        before = self._cell.get()
        if not before.synced or (before.items and isinstance(error, NotFound) and self._missing > 1):
            log.info("kind is not there", kind=self._resource.plural, reason=str(error))
            self._found({})
        return True

    def _lost(self, error: Exception) -> None:
        before = self._cell.get()
        if before.away_since is None:
            log.warning("api server lost", kind=self._resource.plural, error=str(error))
        self._backoff = self._backoff.failed()
        since = before.away_since or self._clock.now()
        self._cell.set(replace(before, away_since=since, error=str(error)))


def _event(line: bytes) -> tuple[str, Json]:
    try:
        event = json.loads(line)
        kind, item = str(event["type"]), event["object"]
        if not isinstance(item, dict):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Away(f"watch: not an event: {cut(line[:200].decode(errors='replace'))}") from error
    if kind == "ERROR":
        raise _refusal(item)
    return kind, item


def _refusal(status: Mapping[str, Any]) -> Exception:
    code = status.get("code")
    return refusal(
        "watch", code if isinstance(code, int) else 500, str(status.get("reason", "")), str(status.get("message", ""))
    )


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[list[bytes], None]:
    """Yield the complete lines of each chunk together, so that a burst of events is one change of the cell."""
    open_line: list[bytes] = []
    size = 0
    async for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        if complete:
            complete[0] = b"".join([*open_line, complete[0]])
            open_line, size = [], 0
            if batch := [line for line in complete if line.strip()]:
                yield batch
        open_line.append(rest)
        size += len(rest)
        if size > _MAX_LINE:
            raise Away(f"watch: an event is longer than {_MAX_LINE} bytes")
