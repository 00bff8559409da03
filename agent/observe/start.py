"""One pod's cold start, from what Kubernetes says of the pod: which endpoint, how warm, which phase took how long. Pure.

Times of the API are whole seconds, so that every phase is exact to a second and none is ever negative. A phase is counted
once for a start; only the first start of the serving container counts, a restart ends the measurement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from agent.core.assignment import Assignment, EndpointWant
from agent.core.errors import Invalid
from agent.core.inventory import Inventory, ModelLevel
from agent.core.names import (
    KNATIVE_SERVICE,
    KSERVE_SERVICE,
    LABEL_ENDPOINT_NAME,
    LEADER_WORKER_SET,
    is_ours,
    node_pool,
)
from agent.core.refs import Digest, EndpointKey, ImageRef, parse_image_ref
from agent.core.starts import Starts
from agent.kube.objects import ContainerStatusView, PodView
from agent.plan.lacking import model_digest, model_is_warm

GB = 10**9
SIZE_CLASSES = ((10 * GB, "<10GB"), (40 * GB, "10-40GB"), (100 * GB, "40-100GB"), (200 * GB, "100-200GB"))
AWAIT_REQUEST = timedelta(minutes=10)  # after Ready; a later first answer tells of traffic, not of a start
_NAMING = (LABEL_ENDPOINT_NAME, KSERVE_SERVICE, KNATIVE_SERVICE, LEADER_WORKER_SET)
SEEN_LATE = timedelta(seconds=10)  # a container that had started longer ago when first seen: its warmth then is unknown


class Outcome(StrEnum):
    """How a start ended."""

    OK = "ok"
    FAILED = "failed"  # the serving container or the pod ended before it was Ready
    NEVER_READY = "never_ready"  # the pod was deleted before it was Ready


class Phase(StrEnum):
    """What is measured; each ends up in one histogram."""

    IMAGE_PULL = "image_pull"
    MODEL_LOAD = "model_load"
    TOTAL = "total"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartLabels:
    """The labels of a cold start."""

    namespace: str
    endpoint: str
    size_class: str
    node_pool: str
    warm: str
    outcome: str = Outcome.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One phase took that long, and the start ended like that."""

    phase: Phase
    seconds: float
    outcome: Outcome = Outcome.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A start under way: what was true when it was first seen, and the times since."""

    labels: StartLabels
    created: datetime
    container: str
    targets: tuple[tuple[int, str], ...] = ()
    started: datetime | None = None
    ready: datetime | None = None
    answered: datetime | None = None
    over: bool = False

    @property
    def to_ask(self) -> bool:
        """True while its metrics endpoint is worth asking."""
        return self.started is not None and self.answered is None and not self.over and bool(self.targets)


def size_class(size_bytes: int) -> str:
    """Return the size class of an endpoint's models together; `none` without models."""
    if size_bytes <= 0:
        return "none"
    return next((name for limit, name in SIZE_CLASSES if size_bytes < limit), ">200GB")


def endpoint_of(pod: PodView, assignment: Assignment | None) -> tuple[EndpointKey, EndpointWant | None] | None:
    """Return the endpoint a pod belongs to, with its want if it is assigned to this node; None for other pods.

    An endpoint that is warmed elsewhere is known by its pod's own annotations and label; where they are on the workload
    only, its pods here are not seen.
    """
    if KSERVE_SERVICE in pod.labels and pod.labels.get("component", "predictor") != "predictor":
        return None  # a transformer's or an explainer's: they load no model
    named = (pod.labels.get(label, "") for label in _NAMING)
    name = next(filter(None, named), "") or _workload_name(pod)
    key = EndpointKey(namespace=pod.namespace, name=name)
    want = assignment.endpoint(key) if assignment else None
    annotated = LABEL_ENDPOINT_NAME in pod.labels or any(is_ours(k) for k in pod.annotations)
    return (key, want) if name and (want or annotated) else None


def _workload_name(pod: PodView) -> str:
    template = pod.labels.get("pod-template-hash", "")
    return pod.owner_name.removesuffix(f"-{template}") if template else pod.owner_name


def starting_models(pods: Iterable[PodView], assignment: Assignment | None, inventory: Inventory) -> Starts:
    """Return the committed models of the pods here that are not Ready yet."""
    pending: set[tuple[str, Digest]] = set()
    loading: set[Digest] = set()
    for pod in pods:
        condition, found = pod.condition("Ready"), endpoint_of(pod, assignment)
        ready = condition is not None and condition.status == "True"
        if ready or pod.deleting or pod.phase not in ("Pending", "Running") or found is None or found[1] is None:
            continue
        warm = (model_digest(want, inventory) for want in found[1].models if model_is_warm(want, inventory))
        digests = {digest for digest in warm if digest}
        loading |= digests
        if pod.phase == "Pending":
            pending |= {(pod.uid, digest) for digest in digests}
    return Starts(pending=frozenset(pending), loading=frozenset(loading))


def serving_container(pod: PodView, want: EndpointWant | None) -> str:
    """Return the container that serves: the annotated one, else that with a readiness probe, else the first."""
    containers = pod.spec.containers
    if want and any(c.name == want.container for c in containers):
        return want.container
    probed = next((c.name for c in containers if c.has_readiness_probe), "")
    return probed or (containers[0].name if containers else "")


def metrics_targets(pod: PodView, want: EndpointWant | None, container: str) -> tuple[tuple[int, str], ...]:
    """Return where the serving container's metrics may be: annotated, else by `prometheus.io/…`, else on its ports."""
    port, slash, path = (want.metrics if want else "").partition("/")
    if not slash:
        port = pod.annotations.get("prometheus.io/port", "")
        path = pod.annotations.get("prometheus.io/path", "").removeprefix("/") or "metrics"
    if port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536:
        return ((int(port), f"/{path[:256]}"),)
    ports = next((c.ports for c in pod.spec.containers if c.name == container), ())
    return tuple((each, "/metrics") for each in ports[:4])


def warmth(images: Sequence[ImageRef], want: EndpointWant | None, inventory: Inventory) -> str:
    """Return how warm the node is now: `cold`, `image`, `weights`, `both`, or `memory` (both, weights in the page cache).

    `unknown` while the inventory proves nothing yet.
    """
    if not inventory.proved:
        return "unknown"
    unpacked = bool(images) and all(_unpacked(ref, inventory) for ref in images)
    models = want.models if want else ()
    digests = [model_digest(model, inventory) for model in models]
    states = [inventory.models.get(digest) if digest else None for digest in digests]
    committed = bool(models) and all(state and state.level.committed for state in states)
    resident = all(state and state.level is ModelLevel.RESIDENT for state in states)
    if unpacked and committed and resident:
        return "memory"
    return {(False, False): "cold", (True, False): "image", (False, True): "weights"}.get((unpacked, committed), "both")


def _unpacked(ref: ImageRef, inventory: Inventory) -> bool:
    state = inventory.images.get(ref)
    return state is not None and state.level.warm


def begin(pod: PodView, assignment: Assignment | None, inventory: Inventory, node: Mapping[str, str]) -> Start | None:
    """Return the start of a pod seen for the first time, None if it is not one to measure. `node`: the node's labels."""
    found = endpoint_of(pod, assignment)
    if found is None or pod.created is None or pod.deleting or pod.phase in ("Succeeded", "Failed"):
        return None
    key, want = found
    container = serving_container(pod, want)
    labels = StartLabels(
        namespace=key.namespace,
        endpoint=key.name,
        size_class=_size_class(want, inventory),
        node_pool=node_pool(node),
        warm=warmth(_images(pod, container), want, inventory),
    )
    return Start(
        labels=labels,
        created=pod.created,
        container=container,
        targets=metrics_targets(pod, want, container),
    )


def _size_class(want: EndpointWant | None, inventory: Inventory) -> str:
    if want is None:
        return "unknown"
    total = 0
    for model in want.models:
        digest = model_digest(model, inventory)
        state = inventory.models.get(digest) if digest else None
        size_bytes = model.size_bytes or (state.total_bytes if state else 0)
        if not size_bytes:
            return "unknown"
        total += size_bytes
    return size_class(total)


def _images(pod: PodView, container: str) -> tuple[ImageRef, ...]:
    """Return the serving container's image; nothing else decides when it can start at this size."""
    for each in pod.spec.containers:
        if each.name == container:
            try:
                return (parse_image_ref(each.image),)
            except Invalid:
                return ()
    return ()


def seen_too_late(start: Start, pod: PodView, now: datetime, *, first_listing: bool) -> bool:
    """Say whether the pod ran before anybody watched, so that how warm it started is not known."""
    status = _status(start, pod)
    if status is None or (status.started_at is None and not status.restarts):
        return False
    return first_listing or status.restarts > 0 or status.started_at is None or now - status.started_at > SEEN_LATE


def advance(start: Start, pod: PodView | None, now: datetime) -> tuple[Start, tuple[Measure, ...]]:
    """Return the start as of now and the phases that ended. `pod` is None once it is gone.

    A pod that is Ready but never asked within AWAIT_REQUEST has no total: nobody was waiting, so what passed was idle time.
    """
    if start.over:
        return start, ()
    status = _status(start, pod) if pod else None
    if start.started is None and status and status.started_at and not status.restarts:
        start = replace(start, started=max(status.started_at, start.created))
    if start.ready is None:
        return _towards_ready(start, pod, status, now)
    gone = pod is None or pod.deleting or (status is not None and status.restarts > 0)
    if start.answered is None and (gone or not start.targets or now - start.ready > AWAIT_REQUEST):
        return replace(start, over=True), ()
    return start, ()


def answer(start: Start, now: datetime) -> tuple[Start, tuple[Measure, ...]]:
    """Return the start after its first successful answer was seen at `now`."""
    if start.over or start.answered is not None:
        return start, ()
    start = replace(start, answered=now)
    if start.ready is None:
        return start, ()
    return replace(start, over=True), (_total(start, now),)


def _towards_ready(
    start: Start, pod: PodView | None, status: ContainerStatusView | None, now: datetime
) -> tuple[Start, tuple[Measure, ...]]:
    condition = pod.condition("Ready") if pod else None
    if (started := start.started) and condition and condition.status == "True":
        ready = max(condition.since or now, started)
        start = replace(start, ready=ready)
        measures = (
            Measure(phase=Phase.IMAGE_PULL, seconds=_seconds(start.created, started)),
            Measure(phase=Phase.MODEL_LOAD, seconds=_seconds(started, ready)),
        )
        if start.answered is None:
            return start, measures
        return replace(start, over=True), (*measures, _total(start, start.answered))
    restarted = status is not None and status.restarts > 0
    if pod and (restarted or pod.phase in ("Failed", "Succeeded")):
        return _broken(start, now, Outcome.FAILED)
    if pod is None or pod.deleting:
        return _broken(start, now, Outcome.NEVER_READY)
    return start, ()


def _broken(start: Start, now: datetime, outcome: Outcome) -> tuple[Start, tuple[Measure, ...]]:
    """Count the phases it reached, up to now."""
    phases = [Measure(phase=Phase.IMAGE_PULL, seconds=_seconds(start.created, start.started or now), outcome=outcome)]
    if start.started:
        phases.append(Measure(phase=Phase.MODEL_LOAD, seconds=_seconds(start.started, now), outcome=outcome))
    phases.append(Measure(phase=Phase.TOTAL, seconds=_seconds(start.created, now), outcome=outcome))
    return replace(start, over=True), tuple(phases)


def _total(start: Start, answered: datetime) -> Measure:
    return Measure(phase=Phase.TOTAL, seconds=_seconds(start.created, answered))


def _seconds(since: datetime, until: datetime) -> float:
    return max(0.0, (until - since).total_seconds())


def _status(start: Start, pod: PodView) -> ContainerStatusView | None:
    return next((c for c in pod.containers if c.name == start.container), None)
