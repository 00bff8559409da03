"""What one node is asked to keep warm: the values behind `NodeWarmup.spec`, a `--plan` file and the copy on disk.

`agent.core.assignment_json` reads and writes them; the agent acts on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from agent.core.refs import Digest, EndpointKey, ImageRef, ModelUri


class WindowSource(StrEnum):
    """Who says that traffic comes."""

    DECLARED = "declared"
    PREDICTED = "predicted"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Window:
    """A traffic window: ready by `ready_by` (the lead already subtracted), warm until `until`. Both aware, UTC."""

    ready_by: datetime
    until: datetime
    source: WindowSource = WindowSource.DECLARED
    confidence: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageWant:
    """One image: `ref` as the pod spec names it (normalised), `digest` as the planner resolved it ("" if unresolved)."""

    ref: ImageRef
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWant:
    """One model version: which bytes, under which name.

    `digest` is the manifest digest (agent.models.manifest) of the version the planner resolved; "" where nobody has
    (a `--plan` file): the agent then resolves it by itself, once. Sizes are 0 until known.
    """

    name: str
    uri: ModelUri
    digest: Digest | None = None
    size_bytes: int = 0
    files: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The object the endpoint was read from."""

    kind: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointWant:
    """Everything one endpoint needs on this node, and when."""

    key: EndpointKey
    workload: Workload = Workload()
    priority: int = 500
    gpus: int = 0
    runtime_handler: str = ""
    service_account: str = ""  # of its pods, "" for the namespace's default one
    pull_secrets: tuple[str, ...] = ()  # names that the pod template itself gives
    images: tuple[ImageWant, ...] = ()
    models: tuple[ModelWant, ...] = ()
    windows: tuple[Window, ...] = ()
    memory: bool = False  # during windows also keep the weights in the page cache
    container: str = ""
    metrics: str = ""  # "port/path" of the serving container's Prometheus endpoint, "" to find it

    def next_window(self, now: datetime) -> Window | None:
        """Return the first window that has not ended."""
        return min((w for w in self.windows if w.until > now), default=None)

    def next_promise(self, now: datetime) -> Window | None:
        """Return the first window that has not ended and that somebody counts on: a predicted one is a guess, and promises nothing."""
        return min((w for w in self.windows if w.until > now and w.source is not WindowSource.PREDICTED), default=None)

    def promise_ahead(self, now: datetime) -> Window | None:
        """Return the first window that has not opened and that somebody counts on; another one may be open."""
        return min(
            (w for w in self.windows if w.ready_by > now and w.source is not WindowSource.PREDICTED), default=None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """All that is asked of one node. `generation` orders assignments of one NodeWarmup; 0 for a plan file."""

    node: str = ""
    endpoints: tuple[EndpointWant, ...] = ()
    generation: int = 0
    uid: str = ""

    def endpoint(self, key: EndpointKey) -> EndpointWant | None:
        """Return the endpoint called `key`, or None."""
        return next((e for e in self.endpoints if e.key == key), None)


KEEP_ASSIGNMENT = timedelta(hours=48)  # how long a node acts on its last NodeWarmup with nobody to renew it
