"""What the node decided to do, in order, with a reason for each: the values `plan` returns and the rooms act on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from agent.core.assignment import EndpointWant, ImageWant, ModelWant
from agent.core.refs import Digest, EndpointKey


@dataclass(frozen=True, slots=True, kw_only=True)
class PullStep:
    """Pull one image. `due` is when it must be unpacked (None: a pod waits, or no window); most urgent step first."""

    want: ImageWant
    runtime_handler: str
    endpoints: tuple[EndpointKey, ...]
    due: datetime | None
    urgent: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PinStep:
    """Keep one image from the kubelet's garbage collection until `until`."""

    want: ImageWant
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class HydrateStep:
    """Bring one model version into the store (or first resolve it, where `want.digest` is None).

    An `early` one uses spare capacity before its start: it gives way to any that is not.
    """

    want: ModelWant
    endpoints: tuple[EndpointKey, ...]
    due: datetime | None
    urgent: bool
    reason: str
    early: bool = False


def gives_way(running: HydrateStep, first: HydrateStep) -> bool:
    """Say whether a running download stops for another, to go on later from where it was.

    For what a pod waits for; an early one for any that is not; and one for another that is due earlier.
    """
    if running.urgent or first.urgent:
        return first.urgent and not running.urgent
    if running.early or first.early:
        return running.early and not first.early
    return running.due is not None and first.due is not None and first.due < running.due


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictStep:
    """Remove one version from the store if nothing uses it; the room withdraws its claim first."""

    digest: Digest
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepStep:
    """Keep one committed version in the page cache until `until`. `yields_to` says what it waits for, "" to read now."""

    digest: Digest
    name: str
    endpoint: EndpointKey
    size_bytes: int
    until: datetime
    yields_to: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What the page cache is to hold now, most important first, and why the rest that was asked for is not kept.

    Until `known`, nothing may be let go: what is asked for, or committed, is not clear yet.
    """

    keep: tuple[KeepStep, ...] = ()
    refused: Mapping[Digest, str] = field(default_factory=dict)
    known: bool = False

    @property
    def asked(self) -> bool:
        """True if any window asks for memory now."""
        return bool(self.keep or self.refused)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ViewWant:
    """`views/<namespace>/<endpoint>/<digest>` must show this committed version as `name`."""

    endpoint: EndpointKey
    name: str
    digest: Digest


class Stage(StrEnum):
    """Where an endpoint stands on this node."""

    READY = "ready"
    WARMING = "warming"
    SCHEDULED = "scheduled"  # its start time is still ahead
    IDLE = "idle"  # no window within the horizon, nobody waits
    FAILING = "failing"  # something it needs failed and is backed off
    LATE = "late"  # its window has opened, or cannot be met


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointPlan:
    """One endpoint's stage, when it starts and is due, and the sentence that says why.

    `due` is that of the window that is open, else of the next one. `ready_at` is when it is ready at best, where that is after the
    next declared window that has not opened.
    """

    want: EndpointWant
    stage: Stage
    reason: str
    start_at: datetime | None = None
    due: datetime | None = None
    ready_at: datetime | None = None
    missing_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """All decisions of one cycle. `wake_at`: when the same inputs would give another plan."""

    pulls: tuple[PullStep, ...] = ()
    hydrations: tuple[HydrateStep, ...] = ()
    evictions: tuple[EvictStep, ...] = ()
    views: tuple[ViewWant, ...] = ()
    memory: MemoryPlan = MemoryPlan()
    pins: tuple[PinStep, ...] | None = None  # None while nothing is assigned: pins stay as they are
    endpoints: tuple[EndpointPlan, ...] = ()
    wake_at: datetime | None = None
    images: tuple[ImageWant, ...] = ()  # every image of the assignment: what the prover watches
    models: tuple[ModelWant, ...] = ()  # every model of the assignment: what is kept and proved
    refusals: Mapping[Digest, str] = field(default_factory=dict)  # versions that fit by no legal eviction, and why
    needed: Mapping[Digest, str] = field(default_factory=dict)  # versions that may not be removed now, and why
