"""From the API's JSON to the values of `objects`: total over what an API server can send, and over what it should not.

A field of an unexpected type counts as absent, so that one odd object never stops the reading of the others.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from dataclasses import replace

from agent.core.assignment_json import parse_assignment
from agent.core.errors import Invalid
from agent.core.inventory import ImageLevel, ModelLevel
from agent.core.names import KEEP_ANNOTATIONS, KEEP_MANAGER
from agent.kube.memory import pod_memory_request, pod_requests
from agent.kube.objects import (
    BinaryView,
    Condition,
    ConfigMapView,
    ContainerStatusView,
    ContainerView,
    DaemonSetView,
    EventView,
    LeaseView,
    NodeReport,
    NodeRequirement,
    NodeView,
    NodeWarmupView,
    PodSpecView,
    PodView,
    PolicyBindingView,
    PolicyView,
    RuntimeClassView,
    Taint,
    Toleration,
)
from agent.kube.owned import applies, written_at
from agent.kube.pull_secrets import secret_names
from agent.kube.walk import Json
from agent.kube.walk import mapping as _map
from agent.kube.walk import mappings as _maps
from agent.kube.walk import text as _text
from agent.kube.walk import texts as _texts
from agent.kube.walk import time as _time
from agent.kube.walk import whole as _whole

GPU_RESOURCE = "nvidia.com/gpu"
_WARM_LEVELS = (*(str(i) for i in ImageLevel if i.warm), *(str(m) for m in ModelLevel if m.committed))


def parse_node(item: Json) -> NodeView:
    """Parse a Node."""
    meta, spec, status = _map(item, "metadata"), _map(item, "spec"), _map(item, "status")
    return NodeView(
        name=_text(meta, "name"),
        uid=_text(meta, "uid"),
        resource_version=_text(meta, "resourceVersion"),
        labels=_texts(meta, "labels"),
        annotations=_texts(meta, "annotations"),
        taints=tuple(
            Taint(key=_text(t, "key"), effect=_text(t, "effect"), value=_text(t, "value"))
            for t in _maps(spec, "taints")
        ),
        unschedulable=spec.get("unschedulable") is True,
        conditions=_conditions(status),
        allocatable=_texts(status, "allocatable"),
        boot_id=_text(_map(status, "nodeInfo"), "bootID"),
        kept=any(applies(item, KEEP_MANAGER, "metadata", "annotations", key) for key in KEEP_ANNOTATIONS),
        created=_time(meta, "creationTimestamp"),
        deleting="deletionTimestamp" in meta,
    )


def parse_pod(item: Json) -> PodView:
    """Parse a Pod."""
    meta, spec, status = _map(item, "metadata"), _map(item, "spec"), _map(item, "status")
    owner: Json = next((o for o in _maps(meta, "ownerReferences") if o.get("controller") is True), {})
    return PodView(
        namespace=_text(meta, "namespace"),
        name=_text(meta, "name"),
        uid=_text(meta, "uid"),
        node=_text(spec, "nodeName"),
        labels=_texts(meta, "labels"),
        annotations=_texts(meta, "annotations"),
        owner_kind=_text(owner, "kind"),
        owner_name=_text(owner, "name"),
        phase=_text(status, "phase"),
        pod_ip=_text(status, "podIP"),
        created=_time(meta, "creationTimestamp"),
        deleting="deletionTimestamp" in meta,
        memory_request_bytes=pod_memory_request(spec),
        spec=parse_pod_spec(spec),
        conditions=_conditions(status),
        containers=tuple(_container_status(c) for c in _maps(status, "containerStatuses")),
    )


def parse_nodewarmup(item: Json) -> NodeWarmupView:
    """Parse a NodeWarmup."""
    meta, status = _map(item, "metadata"), _map(item, "status")
    name, generation = _text(meta, "name"), _whole(meta, "generation")
    assignment, problem = None, ""
    try:
        assignment = parse_assignment(item.get("spec") or {}, node=name, generation=generation, uid=_text(meta, "uid"))
    except Invalid as error:
        problem = str(error)
    return NodeWarmupView(
        name=name,
        uid=_text(meta, "uid"),
        resource_version=_text(meta, "resourceVersion"),
        owner_uid=next((_text(o, "uid") for o in _maps(meta, "ownerReferences") if o.get("kind") == "Node"), ""),
        assignment=assignment,
        problem=problem,
        generation=generation,
        written_at=written_at(item),
        observed_generation=_whole(status, "observedGeneration"),
        report=_report(item),
        status=status,
    )


def parse_nodewarmup_spec(item: Json) -> NodeWarmupView:
    """Parse a NodeWarmup for the planner: of the status only the report, for it would hold and compare thousands for nothing."""
    parsed = parse_nodewarmup({key: value for key, value in item.items() if key != "status"})
    return replace(parsed, report=_report(item))


def _report(item: Json) -> NodeReport:
    status = _map(item, "status")
    newest = _whole(status, "observedGeneration") == _whole(_map(item, "metadata"), "generation")
    return NodeReport(
        pace_bytes_per_second=max(0, _whole(status, "paceBytesPerSecond")),
        capacity_bytes=max(0, _whole(_map(status, "cache"), "capacityBytes")),
        missing_bytes=dict(_missing(i) for i in _maps(status, "items") if _text(i, "ref")),
        ready_at={sys.intern(_text(e, "key")): _time(e, "readyAt") for e in _maps(status, "endpoints") if newest},
    )


def _missing(item: Json) -> tuple[str, int]:
    warm = _text(item, "level") in _WARM_LEVELS
    return sys.intern(_text(item, "ref")), 0 if warm else max(0, _whole(item, "total") - _whole(item, "bytes"))


def parse_event(item: Json) -> EventView:
    """Parse an Event of core/v1."""
    return EventView(
        name=_text(_map(item, "metadata"), "name"),
        reason=_text(item, "reason"),
        message=_text(item, "message"),
        count=_whole(item, "count"),
        last=_time(item, "lastTimestamp"),
    )


def parse_lease(item: Json) -> LeaseView:
    """Parse a coordination Lease."""
    meta, spec = _map(item, "metadata"), _map(item, "spec")
    return LeaseView(
        name=_text(meta, "name"),
        resource_version=_text(meta, "resourceVersion"),
        holder=_text(spec, "holderIdentity"),
        duration_seconds=_whole(spec, "leaseDurationSeconds"),
        renewed=_text(spec, "renewTime"),
        acquired=_text(spec, "acquireTime"),
        transitions=_whole(spec, "leaseTransitions"),
    )


def parse_runtime_class(item: Json) -> RuntimeClassView:
    """Parse a RuntimeClass."""
    return RuntimeClassView(name=_text(_map(item, "metadata"), "name"), handler=_text(item, "handler"))


def parse_configmap(item: Json) -> ConfigMapView:
    """Parse a ConfigMap."""
    meta = _map(item, "metadata")
    return ConfigMapView(
        namespace=_text(meta, "namespace"),
        name=_text(meta, "name"),
        uid=_text(meta, "uid"),
        resource_version=_text(meta, "resourceVersion"),
        data=_texts(item, "data"),
    )


def parse_binary(item: Json) -> BinaryView:
    """Parse a ConfigMap for its binary data."""
    meta = _map(item, "metadata")
    return BinaryView(
        namespace=_text(meta, "namespace"),
        name=_text(meta, "name"),
        resource_version=_text(meta, "resourceVersion"),
        binary={k: _bytes(v) for k, v in _texts(item, "binaryData").items()},
        texts=tuple(_texts(item, "data")),
    )


def parse_daemonset(item: Json) -> DaemonSetView:
    """Parse a DaemonSet."""
    meta = _map(item, "metadata")
    spec = _map(_map(_map(item, "spec"), "template"), "spec")
    owner: Json = next((o for o in _maps(meta, "ownerReferences") if o.get("controller") is True), {})
    return DaemonSetView(
        namespace=_text(meta, "namespace"),
        name=_text(meta, "name"),
        owner=f"{_text(owner, 'kind')}/{_text(owner, 'name')}" if owner else "",
        images=tuple(_text(c, "image") for key in ("initContainers", "containers") for c in _maps(spec, key)),
        host_paths=tuple(_text(_map(v, "hostPath"), "path") for v in _maps(spec, "volumes") if "hostPath" in v),
        tolerations=_tolerations(spec),
    )


def parse_policy(item: Json) -> PolicyView:
    """Parse a ValidatingAdmissionPolicy."""
    spec, checked = _map(item, "spec"), _map(_map(item, "status"), "typeChecking")
    return PolicyView(
        name=_text(_map(item, "metadata"), "name"),
        concerns=tuple(_text(c, "expression") for c in _maps(spec, "matchConditions")),
        fails_closed=_text(spec, "failurePolicy") != "Ignore",
        warnings=tuple(_text(w, "warning") for w in _maps(checked, "expressionWarnings")),
    )


def parse_policy_binding(item: Json) -> PolicyBindingView:
    """Parse a ValidatingAdmissionPolicyBinding."""
    spec = _map(item, "spec")
    actions = spec.get("validationActions")
    return PolicyBindingView(
        name=_text(_map(item, "metadata"), "name"),
        policy=_text(spec, "policyName"),
        denies=isinstance(actions, list) and "Deny" in actions,
    )


def parse_pod_spec(spec: Json) -> PodSpecView:
    """Parse what prewarm reads of a pod spec; `required_terms` without any requirement match no node, as in Kubernetes."""
    affinity = _map(_map(spec, "affinity"), "nodeAffinity")
    required = _map(affinity, "requiredDuringSchedulingIgnoredDuringExecution")
    return PodSpecView(
        containers=tuple(_container(c) for c in _maps(spec, "containers")),
        init_containers=tuple(_container(c) for c in _maps(spec, "initContainers")),
        node_selector=_texts(spec, "nodeSelector"),
        required_terms=tuple(tuple(_requirements(t)) for t in _maps(required, "nodeSelectorTerms")),
        tolerations=_tolerations(spec),
        runtime_class=_text(spec, "runtimeClassName"),
        service_account=_text(spec, "serviceAccountName") or "default",
        pull_secrets=secret_names(spec),
        requests=pod_requests(spec),
    )


def _tolerations(spec: Json) -> tuple[Toleration, ...]:
    return tuple(
        Toleration(
            key=_text(t, "key"),
            operator=_text(t, "operator") or "Equal",
            value=_text(t, "value"),
            effect=_text(t, "effect"),
            seconds=None if t.get("tolerationSeconds") is None else _whole(t, "tolerationSeconds"),
        )
        for t in _maps(spec, "tolerations")
    )


def _container(item: Json) -> ContainerView:
    resources = _map(item, "resources")
    gpus = _map(resources, "limits").get(GPU_RESOURCE, _map(resources, "requests").get(GPU_RESOURCE, "0"))
    return ContainerView(
        name=_text(item, "name"),
        image=_text(item, "image"),
        ports=tuple(_whole(p, "containerPort") for p in _maps(item, "ports")),
        has_readiness_probe=bool(_map(item, "readinessProbe")),
        gpus=int(gpus) if str(gpus).isascii() and str(gpus).isdigit() and len(str(gpus)) <= 18 else 0,
    )


def _container_status(item: Json) -> ContainerStatusView:
    return ContainerStatusView(
        name=_text(item, "name"),
        ready=item.get("ready") is True,
        restarts=_whole(item, "restartCount"),
        started_at=_time(_map(_map(item, "state"), "running"), "startedAt"),
    )


def _requirements(term: Json) -> Iterator[NodeRequirement]:
    for key, on_field in (("matchExpressions", False), ("matchFields", True)):
        for item in _maps(term, key):
            values = item.get("values")
            yield NodeRequirement(
                key=_text(item, "key"),
                operator=_text(item, "operator"),
                values=tuple(str(v) for v in values) if isinstance(values, list) else (),
                on_field=on_field,
            )


def _conditions(status: Json) -> tuple[Condition, ...]:
    return tuple(
        Condition(
            type=_text(c, "type"),
            status=_text(c, "status"),
            reason=_text(c, "reason"),
            message=_text(c, "message"),
            since=_time(c, "lastTransitionTime"),
        )
        for c in _maps(status, "conditions")
    )


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""
