"""What is true on this node, as proved: the values the rooms publish and `plan` and `readiness` read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from agent.core.refs import Digest, EndpointKey, ImageRef


class ImageLevel(StrEnum):
    """How warm an image is."""

    ABSENT = "absent"
    PARTIAL = "partial"
    PRESENT = "present"  # a record only
    UNPACKED = "unpacked"  # every layer's snapshot is committed in the snapshotter the runtime will use
    LAZY = "lazy"  # the same, and every layer is proved to be served remotely: its bytes come when they are read
    HYDRATED = "hydrated"  # lazy, and the bytes of every layer are here

    @property
    def warm(self) -> bool:
        """True if a pod with this image starts without a pull."""
        return self in (ImageLevel.UNPACKED, ImageLevel.LAZY, ImageLevel.HYDRATED)


RESIDENT_SHARE = 0.95  # of a version's bytes, measured in the page cache


class ModelLevel(StrEnum):
    """How warm a model version is."""

    ABSENT = "absent"
    PARTIAL = "partial"
    COMMITTED = "committed"  # every byte checked
    RESIDENT = "resident"  # committed, and RESIDENT_SHARE of it in the page cache

    @property
    def committed(self) -> bool:
        """True if every byte is on disk and checked, in memory or not."""
        return self in (ModelLevel.COMMITTED, ModelLevel.RESIDENT)


class GpuVerdict(StrEnum):
    """The node's GPU verdict, as in the label `prewarm.dev/gpu`."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"
    NONE = "none"  # no GPU is expected here


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageState:
    """One image on this node. `digest` is what the reference points to here, "" while absent."""

    ref: ImageRef
    level: ImageLevel = ImageLevel.ABSENT
    digest: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    rate_bytes_per_second: float = 0.0
    busy: bool = False  # a pull is running
    pinned: bool = False  # the kubelet is told to leave it alone
    reason: str = ""  # one sentence: why this level
    error: str = ""  # the last failure, "" after a success
    retry_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """One model version on this node, keyed by its manifest digest.

    `own_bytes` is what removing it frees (it may share files with others; None: not known); `kept` why it may not be removed
    (a pod uses it, it is pinned); `short_bytes` the room that was lacking when it was last tried.
    """

    digest: Digest
    level: ModelLevel = ModelLevel.ABSENT
    done_bytes: int = 0
    total_bytes: int = 0
    resident_bytes: int = 0  # in the page cache, where that was asked for and measured
    rate_bytes_per_second: float = 0.0
    busy: bool = False
    proof: str = ""  # how the bytes were checked: "crc64nvme", "sha256", "md5", … or "source unproved"
    reason: str = ""
    error: str = ""
    retry_at: datetime | None = None
    own_bytes: int | None = None
    kept: str = ""
    short_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReason:
    """One thing that stands against a GPU, or a word about it: `code` as in the catalogue of docs/gpu.md.

    `verdict` is None for information, which changes no verdict.
    """

    code: str
    verdict: GpuVerdict | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """One GPU: its own verdict, and every reason that stands, worst first."""

    index: int
    uuid: str = ""
    verdict: GpuVerdict = GpuVerdict.UNKNOWN
    reasons: tuple[GpuReason, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """The node's GPU verdict with its reason; `count` is the number of GPUs NVML showed.

    `alone` and `together` are the verdicts for endpoints of one GPU and of several (which also use the links between them),
    None where they are the node's; `usable` is how many GPUs endpoints may count on, None for all. `gpus` are the GPUs one
    by one, `reasons` what stands against the node as a whole.
    """

    verdict: GpuVerdict = GpuVerdict.UNKNOWN
    reason: str = "not probed yet"
    count: int = 0
    alone: GpuVerdict | None = None
    together: GpuVerdict | None = None
    usable: int | None = None
    gpus: tuple[GpuState, ...] = ()
    reasons: tuple[GpuReason, ...] = ()

    def verdict_for(self, gpus: int) -> GpuVerdict:
        """Return the verdict for an endpoint that needs so many GPUs (at least one), judged by what it uses."""
        if self.usable is not None and gpus > self.usable:
            return GpuVerdict.DEGRADED if self.verdict is GpuVerdict.HEALTHY else self.verdict
        return (self.together if gpus > 1 else self.alone) or self.verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """Bytes of the model store and of the file system under it."""

    used_bytes: int = 0
    free_bytes: int = 0
    capacity_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsView:
    """What the models room publishes. `unresolved` tells, by URI, why a version could not be found where none is given."""

    states: Mapping[Digest, ModelState] = field(default_factory=dict)
    resolved: Mapping[str, Digest] = field(default_factory=dict)
    cache: CacheUse = CacheUse()
    unresolved: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """What the page cache holds of one version, as last measured, and why it is there or not; `retry_at`: not before."""

    resident_bytes: int = 0
    reason: str = ""
    retry_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCare:
    """What was done since the start so that committed versions stay whole.

    `read_bytes` were read back and right, `bad_parts` were not; `broken` versions were withdrawn, for these or because
    something was changed behind our back, and `mended` are whole again. `turn_age_seconds`: since everything was last read
    back, None where that is not done yet.
    """

    read_bytes: int = 0
    bad_parts: int = 0
    broken: int = 0
    mended: int = 0
    turn_age_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryView:
    """What the memory tier publishes.

    `budget_bytes` is what it may hold now (None: not known yet) and `basis` the numbers that come from; `held_bytes` is what
    its cgroup is charged; `off` says why this node has no memory tier, "" where it has one.
    """

    states: Mapping[Digest, Residency] = field(default_factory=dict)
    budget_bytes: int | None = None
    held_bytes: int = 0
    basis: str = ""
    off: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Everything proved on this node at one moment.

    `resolved` maps a model URI (as text) to the digest the agent itself found for it, for wants that carry none;
    `unresolved` maps one to why none was found.
    `waiting` are endpoints some pod on this node waits for in `prewarm wait`. `proved` turns True when the first full
    proof after the process started is through: until then nothing may be claimed. `elsewhere` are the runtime handlers whose
    images lie in another snapshotter than the one that is looked at, with that one's name: "" stands for all that are not
    named, and where it is there, those whose images are looked at have no name.
    """

    boot_id: str = ""
    images: Mapping[ImageRef, ImageState] = field(default_factory=dict)
    models: Mapping[Digest, ModelState] = field(default_factory=dict)
    resolved: Mapping[str, Digest] = field(default_factory=dict)
    unresolved: Mapping[str, str] = field(default_factory=dict)
    gpu: GpuReport = GpuReport()
    cache: CacheUse = CacheUse()
    memory: MemoryView = MemoryView()
    waiting: frozenset[EndpointKey] = frozenset()
    pace_bytes_per_second: float = 0.0  # what nine in ten measurements of this node's downloads reached; 0: not known
    present_bytes_per_second: float = 0.0  # what running downloads reach now; 0: none runs, or it is too early to tell
    proved: bool = False
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def unproved(self, runtime_handler: str) -> str:
        """Return why images are not proved where a runtime handler looks for them, "" if they are."""
        default = self.elsewhere.get("", "")
        other = self.elsewhere.get(runtime_handler, default)
        if not other:
            return ""
        if runtime_handler and runtime_handler in self.elsewhere:
            return f"runtime handler {runtime_handler} unpacks into {other}, where prewarm proves nothing"
        cure = f"set snapshotter (PREWARM_SNAPSHOTTER) to {other}"
        return f"the runtime unpacks into {other}, where prewarm proves nothing: {cure}"


def with_residency(models: Mapping[Digest, ModelState], memory: MemoryView) -> Mapping[Digest, ModelState]:
    """Return the models as the memory tier measured them: a committed version that is in memory is `resident`."""
    if not memory.states:
        return models
    return {d: _measured(s, memory.states[d]) if d in memory.states else s for d, s in models.items()}


def _measured(state: ModelState, found: Residency) -> ModelState:
    if not state.level.committed:
        return state
    resident = state.total_bytes > 0 and found.resident_bytes >= RESIDENT_SHARE * state.total_bytes
    return replace(
        state,
        level=ModelLevel.RESIDENT if resident else ModelLevel.COMMITTED,
        resident_bytes=found.resident_bytes,
        reason="; ".join(r for r in (state.reason, found.reason) if r),
    )
