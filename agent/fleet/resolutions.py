"""Which version a model URI or an image tag stands for, and when to ask again. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Generic, Protocol, TypeVar

from agent.core.assignment import Window
from agent.core.refs import Digest, ImageRef, ModelUri
from agent.kube.objects import NodeWarmupView
from agent.kube.pull_secrets import Auths

V = TypeVar("V")

_LONG_AGO = datetime.min.replace(tzinfo=UTC)
AHEAD = timedelta(
    hours=1
)  # a window's versions are fixed this long before it: time to fetch 200 GB at 1 Gbit/s is 27 min
ALWAYS = timedelta(days=7)  # `windows` cuts an endless chain that long before now


class ModelResolver(Protocol):
    """Finds the version of a model that its source holds now."""

    async def resolve(self, uri: ModelUri) -> tuple[Digest, int, int]:
        """Return manifest digest, size in bytes and number of files.

        Raises:
            Permanent: missing or denied; the sentence goes into an Event.
            Transient: the source is away.
        """
        ...


class ImageResolver(Protocol):
    """Finds the digest that a tag points to now."""

    async def resolve(self, ref: ImageRef, secrets: Callable[[], Awaitable[Sequence[Auths]]]) -> str:
        """Return the manifest digest; errors as for models. `secrets` are asked for only if the registry asks who we are."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """One version of a model."""

    digest: Digest
    size_bytes: int
    files: int

    def __str__(self) -> str:
        return self.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution(Generic[V]):
    """The last version found (None: never), and why the last attempt failed ("" if it did not)."""

    value: V | None = None
    error: str = ""
    lasting: bool = False  # the error will not pass by itself

    @property
    def telling(self) -> str:
        """The error if people must hear of it: lasting, or nothing was ever found. An outage alone keeps the old version."""
        return self.error if self.lasting or self.value is None else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolutions:
    """All that is resolved."""

    models: Mapping[ModelUri, Resolution[ResolvedModel]] = field(default_factory=dict)
    images: Mapping[ImageRef, Resolution[str]] = field(default_factory=dict)


def due_at(resolved_at: datetime, windows: Iterable[Window], refresh: timedelta) -> datetime:
    """Return when to ask again after a success: every `refresh`, but once for each window and never while it lasts.

    A window's versions are fixed from `AHEAD` before it is due until it ends, so that every node loads the same bytes; one that has
    lasted `ALWAYS` is taken for one that never ends.
    """
    again = resolved_at + refresh
    coming = []
    for window in sorted(windows):
        begins = window.ready_by - AHEAD
        if begins > resolved_at:
            coming.append(begins)
        until = min(window.until, window.ready_by + ALWAYS)
        if begins <= again < until:
            again = until
    return min([again, *coming])


def from_warmups(warmups: Iterable[NodeWarmupView]) -> Resolutions:
    """Return what a planner before this one resolved, as its NodeWarmups say: S3 may be away when a new leader starts.

    Where they differ, the one written last holds the newest: the planner before died while it told the nodes.
    """
    models: dict[ModelUri, Resolution[ResolvedModel]] = {}
    images: dict[ImageRef, Resolution[str]] = {}
    oldest_first = sorted(warmups, key=lambda w: w.written_at or _LONG_AGO)
    for endpoint in (e for w in oldest_first if w.assignment for e in w.assignment.endpoints):
        for model in endpoint.models:
            if model.digest:
                found = ResolvedModel(digest=model.digest, size_bytes=model.size_bytes, files=model.files)
                models[model.uri] = Resolution(value=found)
        images |= {image.ref: Resolution(value=image.digest) for image in endpoint.images if image.digest}
    return Resolutions(models=models, images=images)
