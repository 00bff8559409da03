"""What an annotated workload asks for, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from agent.core.refs import EndpointKey, ImageRef, ModelSource
from agent.core.sources import SourceRule
from agent.kube.objects import PodSpecView

DEFAULT_WINDOW = timedelta(hours=1)
DEFAULT_LEAD = timedelta(minutes=5)
DEFAULT_NODES = 1
DEFAULT_PRIORITY = 500
DEFAULT_REPLICAS = 1


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class WorkloadRef:
    """The object the annotations stand on; Events go to it."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Schedule:
    """Starts of traffic windows: a five-field cron expression on the wall clock of an IANA zone."""

    cron: str
    zone: str


class MinScale(StrEnum):
    """What becomes of an endpoint's minimum scale in its windows."""

    OFF = "off"
    RECOMMEND = "recommend"  # say what would be done
    APPLY = "apply"


class Predict(StrEnum):
    """What becomes of the windows that are foretold for an endpoint."""

    OFF = "off"  # none are
    SHADOW = "shadow"  # they are only looked at
    ON = "on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint as declared, all values checked. `nodes` is None for all eligible nodes."""

    key: EndpointKey
    workload: WorkloadRef
    models: tuple[ModelSource, ...] = ()
    schedule: tuple[Schedule, ...] = ()
    zone: str = "UTC"  # IANA name: the wall clock it lives by
    window: timedelta = DEFAULT_WINDOW
    lead: timedelta = DEFAULT_LEAD
    nodes: int | None = DEFAULT_NODES
    images: tuple[ImageRef, ...] = ()
    memory: bool = False  # also keep the weights in page cache during windows
    min_scale: MinScale = MinScale.OFF
    replicas: int = DEFAULT_REPLICAS  # pods that a window needs
    provision: bool = False  # bring up the nodes that a window lacks
    priority: int = DEFAULT_PRIORITY
    gpus: int = 0  # what one pod needs at a time
    container: str = ""  # the serving container, "" to find it
    metrics: str = ""  # "port/path", "" to find it
    predict: Predict = Predict.SHADOW
    history: str = ""  # PromQL that tells of its requests, "" for what its kind of workload offers
    spec: PodSpecView = field(default_factory=PodSpecView)

    @property
    def runtime_class(self) -> str:
        """The RuntimeClass of its pods, "" for the default."""
        return self.spec.runtime_class


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandDefaults:
    """What the operator's settings say where an annotation does not, and who may name which weights."""

    timezone: str = "UTC"
    predict: Predict = Predict.SHADOW
    sources: tuple[SourceRule, ...] = ()


class ProblemKind(StrEnum):
    """How bad a problem is; the value is fit for an Event's reason."""

    INVALID = "Invalid"  # the endpoint is left alone until it is mended
    NOT_SUPPORTED = "NotSupported"  # the key is known, this version cannot do it; the rest works
    UNKNOWN_KEY = "UnknownKey"  # probably a typing mistake; the rest works
    NOTE = "Note"  # it works, but less than its author seems to expect


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Problem:
    """One thing wrong with one annotation (full key; "" if it is about none), as a sentence fit for an Event."""

    kind: ProblemKind
    annotation: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointReading:
    """What one workload's annotations say.

    `key` is None for a workload that asks for nothing this version knows, and for one whose key cannot be formed;
    `endpoint` is None unless every value is valid.
    """

    workload: WorkloadRef
    key: EndpointKey | None = None
    endpoint: Endpoint | None = None
    problems: tuple[Problem, ...] = ()
