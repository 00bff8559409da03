"""Workloads as people write them, of every kind that prewarm reads: one view of each, whatever its shape.

Some kinds are made of others: a Knative Service of Deployments, an InferenceService of Deployments or Knative Services, a
LeaderWorkerSet of StatefulSets. What a controller of theirs made has a `parent`, and is no endpoint of its own although
annotations are passed down to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from agent.core.names import KNATIVE_SERVICE, KSERVE_SERVICE, LEADER_WORKER_SET
from agent.kube.objects import Parent, PodSpecView, WorkloadView
from agent.kube.parse import parse_pod_spec
from agent.kube.walk import Json, mapping, mappings, text, texts, time, whole

Parser = Callable[[Json], WorkloadView]

_MAKERS = ("serving.knative.dev", "serving.kserve.io", "leaderworkerset.x-k8s.io")
# An InferenceService may be made of Knative Services, so its label is looked at first.
_PARENTS = ((KSERVE_SERVICE, "InferenceService"), (KNATIVE_SERVICE, "Service"), (LEADER_WORKER_SET, "LeaderWorkerSet"))
_KSERVE_CONTAINER = "kserve-container"  # KServe's name for the one that a `model` becomes


def parse_workload(item: Json) -> WorkloadView:
    """Parse a workload of a kind of PARSERS by its `apiVersion` and `kind`, which lists leave out (`workload_parser`)."""
    api_version, kind = text(item, "apiVersion"), text(item, "kind")
    return workload_parser(api_version, kind)(item)


def is_workload(item: Json) -> bool:
    """Say whether `parse_workload` knows this kind."""
    return (text(item, "apiVersion"), text(item, "kind")) in PARSERS


def workload_parser(api_version: str, kind: str) -> Parser:
    """Return the parser for lists of a kind."""
    parse = PARSERS.get((api_version, kind), _plain)
    return lambda item: parse({**item, "apiVersion": api_version, "kind": kind})


def _plain(item: Json) -> WorkloadView:
    """Parse a Deployment, a StatefulSet or a Knative Service: one pod template."""
    return _view(item, mapping(mapping(item, "spec"), "template"))


def _inference_service(item: Json) -> WorkloadView:
    """Parse an InferenceService: KServe passes its labels and annotations down to its pods, beside those of the predictor."""
    meta, predictor = mapping(item, "metadata"), mapping(mapping(item, "spec"), "predictor")
    passed = {key: {**texts(meta, key), **texts(predictor, key)} for key in ("labels", "annotations")}
    found = next((v for v in predictor.values() if isinstance(v, dict) and "storageUri" in v), {})
    model: Json = found or mapping(predictor, "model")
    containers = [*mappings(predictor, "containers"), *([{"name": _KSERVE_CONTAINER, **model}] if model else [])]
    spec = {**predictor, "containers": containers}
    return _view(item, {"metadata": passed, "spec": spec}, storage_uri=text(model, "storageUri"))


def _leader_worker_set(item: Json) -> WorkloadView:
    """Parse a LeaderWorkerSet: pods are placed as its workers are; the leader may have images of its own."""
    group = mapping(mapping(item, "spec"), "leaderWorkerTemplate")
    worker, leader = mapping(group, "workerTemplate"), mapping(group, "leaderTemplate")
    meta = {
        key: {**texts(mapping(worker, "metadata"), key), **texts(mapping(leader, "metadata"), key)}
        for key in ("labels", "annotations")
    }
    led = parse_pod_spec(mapping(leader, "spec"))
    images = tuple(c.image for c in (*led.init_containers, *led.containers) if c.image)
    size = max(1, whole(group, "size"))
    return _view(item, {"metadata": meta, "spec": mapping(worker, "spec")}, more_images=images, group_size=size)


PARSERS: Mapping[tuple[str, str], Parser] = MappingProxyType(
    {
        ("apps/v1", "Deployment"): _plain,
        ("apps/v1", "StatefulSet"): _plain,
        ("serving.knative.dev/v1", "Service"): _plain,
        ("serving.kserve.io/v1beta1", "InferenceService"): _inference_service,
        ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): _leader_worker_set,
    }
)


def _view(
    item: Json, template: Json, *, storage_uri: str = "", more_images: tuple[str, ...] = (), group_size: int = 1
) -> WorkloadView:
    meta, template_meta, spec = mapping(item, "metadata"), mapping(template, "metadata"), mapping(template, "spec")
    return WorkloadView(
        api_version=text(item, "apiVersion"),
        kind=text(item, "kind"),
        namespace=text(meta, "namespace"),
        name=text(meta, "name"),
        uid=text(meta, "uid"),
        resource_version=text(meta, "resourceVersion"),
        annotations=texts(meta, "annotations"),
        template_labels=texts(template_meta, "labels"),
        template_annotations=texts(template_meta, "annotations"),
        spec=parse_pod_spec(spec) if spec else PodSpecView(),
        storage_uri=storage_uri,
        more_images=more_images,
        group_size=group_size,
        parent=_parent(meta),
        created=time(meta, "creationTimestamp"),
        running=whole(mapping(item, "status"), "replicas") > 0,
        deleting="deletionTimestamp" in meta,
    )


def _parent(meta: Json) -> Parent | None:
    """Return what made an object: the workload that its labels name, if a controller of such a kind (or a pod of it) owns it."""
    owner: Json = next((o for o in mappings(meta, "ownerReferences") if o.get("controller") is True), {})
    labels = texts(meta, "labels")
    of_a_leader = text(owner, "kind") == "Pod" and LEADER_WORKER_SET in labels
    if text(owner, "apiVersion").partition("/")[0] not in _MAKERS and not of_a_leader:
        return None
    part = labels.get("component", "predictor") if KSERVE_SERVICE in labels else ""
    named = ((kind, labels[label]) for label, kind in _PARENTS if labels.get(label))
    kind, name = next(named, (text(owner, "kind"), text(owner, "name")))
    return Parent(kind=kind, name=name, part=part)
