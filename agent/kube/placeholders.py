"""Placeholders: pods that do nothing but ask for, and then hold, the place that a pod of an endpoint will need.

They live in a namespace of their own: one beside the endpoint's pods would count against the same quota, and could keep from being
created the very pod that it is to make way for. Every level of pod security admits them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from agent.core.names import LABEL_PLACEHOLDER, READY, endpoint_label
from agent.core.refs import EndpointKey
from agent.kube.api import Resource
from agent.kube.objects import NodeRequirement, Toleration
from agent.kube.parse import parse_pod
from agent.kube.walk import Json, mapping, text, whole

PRIORITY_CLASS = "prewarm-placeholder"
WAITED_SECONDS = 5.0  # bound sooner than this, there was room already; times are whole seconds
_PLAIN = ("cpu", "memory", "ephemeral-storage")  # of all other resources a limit must equal the request
_MOST_SECONDS = 2**31 - 1  # of activeDeadlineSeconds
_HOST = "kubernetes.io/hostname"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What decides where pods of an endpoint can run and what they take there; `terms` is None for no required affinity."""

    selector: tuple[tuple[str, str], ...] = ()
    terms: tuple[tuple[NodeRequirement, ...], ...] | None = None
    tolerations: tuple[Toleration, ...] = ()
    requests: Mapping[str, str] = field(default_factory=dict)
    runtime_class: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceholderView:
    """A placeholder. `node` is "" until it is bound, `bound` is when it was; `over` is when its time is over at the soonest."""

    namespace: str
    name: str
    uid: str
    key: EndpointKey
    node: str = ""
    created: datetime | None = None
    bound: datetime | None = None
    over: datetime | None = None
    ended: bool = False  # its time was over, or the kubelet put it out
    deleting: bool = False

    @property
    def alive(self) -> bool:
        """True while it asks for a place or holds one."""
        return not (self.ended or self.deleting)

    @property
    def waited(self) -> bool:
        """True if there was no room for it when it came."""
        if self.created is None or self.bound is None:
            return False
        return (self.bound - self.created).total_seconds() >= WAITED_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityView:
    """A PriorityClass."""

    name: str
    uid: str
    value: int
    preempts: bool

    @property
    def yields(self) -> bool:
        """True if pods of this class make way for all that name none, and never have another one put out."""
        return self.value < 0 and not self.preempts


def _placeholder(item: Json) -> PlaceholderView:
    pod = parse_pod(item)
    namespace, _, name = pod.labels.get(LABEL_PLACEHOLDER, "").partition(".")
    scheduled = pod.condition("PodScheduled")
    seconds = min(_MOST_SECONDS, whole(mapping(item, "spec"), "activeDeadlineSeconds"))
    return PlaceholderView(
        namespace=pod.namespace,
        name=pod.name,
        uid=pod.uid,
        key=EndpointKey(namespace=namespace, name=name),
        node=pod.node,
        created=pod.created,
        bound=scheduled.since if scheduled and scheduled.status == "True" else None,
        over=pod.created + timedelta(seconds=seconds) if pod.created and seconds > 0 else None,
        ended=pod.phase in ("Succeeded", "Failed"),
        deleting=pod.deleting,
    )


def _priority(item: Json) -> PriorityView:
    meta = mapping(item, "metadata")
    return PriorityView(
        name=text(meta, "name"),
        uid=text(meta, "uid"),
        value=whole(item, "value"),
        preempts=text(item, "preemptionPolicy") != "Never",
    )


PLACEHOLDERS: Resource[PlaceholderView] = Resource(group="api/v1", plural="pods", parse=_placeholder)
PRIORITY_CLASSES: Resource[PriorityView] = Resource(
    group="apis/scheduling.k8s.io/v1", plural="priorityclasses", parse=_priority, namespaced=False
)


def placeholder_names(
    workload: str,
    key: EndpointKey,
    image: str,
    shape: Shape,
    count: int,
    *,
    living: Collection[str] = (),
    leaving: Collection[str] = (),
) -> tuple[str, ...]:
    """Return the names of `count` placeholders: two planners for a moment make one pod, and another shape is another pod.

    Those of `living` come first. A name of `leaving` is not free: a pod on a dead node goes only with the node.
    """
    said = json.dumps([str(key), _spec(key, image, shape)], sort_keys=True)
    stem = f"{workload[:40].rstrip('-.')}-{hashlib.sha256(said.encode()).hexdigest()[:10]}"
    mine = sorted(name for name in living if name.startswith(f"{stem}-"))
    taken = {*mine, *leaving}
    fresh = (name for n in itertools.count() if (name := f"{stem}-{n}") not in taken)
    return tuple(itertools.islice(itertools.chain(mine, fresh), count))


def placeholder_body(
    name: str, namespace: str, *, key: EndpointKey, image: str, shape: Shape, owner: PriorityView, seconds: int
) -> Json:
    """Return the pod; it ends by itself after `seconds` on a node, should no planner be there to end it.

    Its owner is its PriorityClass: without that there are no placeholders. It counts as a controller so that `kubectl drain` and
    autoscalers take it for a pod that may be put out.
    """
    owned = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {LABEL_PLACEHOLDER: str(key)},
            "ownerReferences": [owned],
        },
        "spec": _spec(key, image, shape) | {"activeDeadlineSeconds": max(1, seconds)},
    }


def _spec(key: EndpointKey, image: str, shape: Shape) -> dict[str, Any]:
    limits = {name: n for name, n in shape.requests.items() if name not in _PLAIN}
    container = {
        "name": "placeholder",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": dict(shape.requests)} | ({"limits": limits} if limits else {}),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec: dict[str, Any] = {
        "priorityClassName": PRIORITY_CLASS,
        "terminationGracePeriodSeconds": 1,  # 0 would give its place away before the kubelet has freed it
        "restartPolicy": "Always",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "runAsGroup": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "affinity": _affinity(key, shape),
        "tolerations": [_toleration(t) for t in shape.tolerations],
        "nodeSelector": dict(shape.selector),
    }
    return spec | ({"runtimeClassName": shape.runtime_class} if shape.runtime_class else {})


def _affinity(key: EndpointKey, shape: Shape) -> dict[str, Any]:
    """Return where it may be: as the endpoint's pods, on a warm node rather than another, each on a node of its own."""
    warm = {"key": endpoint_label(key.namespace, key.name), "operator": "In", "values": [READY]}
    node: dict[str, Any] = {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": {"matchExpressions": [warm]}}]
    }
    if shape.terms is not None:
        node["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": [_term(t) for t in shape.terms]}
    others = {"labelSelector": {"matchLabels": {LABEL_PLACEHOLDER: str(key)}}, "topologyKey": _HOST}
    return {"nodeAffinity": node, "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [others]}}


def _term(requirements: Iterable[NodeRequirement]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in requirements:
        word = "matchFields" if each.on_field else "matchExpressions"
        values = {"values": list(each.values)} if each.values else {}
        found.setdefault(word, []).append({"key": each.key, "operator": each.operator, **values})
    return found


def _toleration(toleration: Toleration) -> dict[str, str | int]:
    parts = {
        "key": toleration.key,
        "operator": toleration.operator,
        "value": toleration.value,
        "effect": toleration.effect,
    }
    bound = {} if toleration.seconds is None else {"tolerationSeconds": toleration.seconds}
    return {word: value for word, value in parts.items() if value} | bound
