"""What decides how many pods a workload has at least: HorizontalPodAutoscalers, KEDA's ScaledObjects, Knative's PodAutoscalers.

Knative makes a PodAutoscaler of each Revision, and its autoscaler reads the bounds from the annotations there. Changed there they hold
at once and no new Revision rolls out, which the same annotation on a Service's template would do, twice a window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from agent.core.names import KNATIVE_SERVICE, LABEL_RAISED_FROM, SCALE_MANAGER
from agent.kube.api import Resource
from agent.kube.owned import applies
from agent.kube.walk import Json, mapping, mappings, text, texts, time

KNATIVE_MIN_SCALE = "autoscaling.knative.dev/min-scale"


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A kind of autoscaler: where its least number of pods stands, and what counts where it is left out."""

    api_version: str
    kind: str
    path: tuple[str, ...]
    assumed: int = 0

    @property
    def word(self) -> str:
        """The field as people know it."""
        return self.path[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalerView:
    """One autoscaler. `target` is kind and name of the workload; `least` is None where it is left out."""

    knob: Knob
    namespace: str
    name: str
    uid: str
    target: tuple[str, str]
    least: int | None = None
    most: int | None = None
    raised_from: str = ""  # what our label says: `least` as it was before, or NOTHING
    ours: bool = False  # we have applied `least`
    made: bool = False  # by another controller, which would set it again
    created: datetime | None = None


NOTHING = "none"  # of LABEL_RAISED_FROM: it was left out

HPA = Knob(api_version="autoscaling/v2", kind="HorizontalPodAutoscaler", path=("spec", "minReplicas"), assumed=1)
KEDA = Knob(api_version="keda.sh/v1alpha1", kind="ScaledObject", path=("spec", "minReplicaCount"))
KNATIVE = Knob(
    api_version="autoscaling.internal.knative.dev/v1alpha1",
    kind="PodAutoscaler",
    path=("metadata", "annotations", KNATIVE_MIN_SCALE),
)


def _hpa(item: Json) -> ScalerView:
    spec = mapping(item, "spec")
    target = mapping(spec, "scaleTargetRef")
    return _view(HPA, item, (text(target, "kind"), text(target, "name")), most=_number(spec.get("maxReplicas")))


def _keda(item: Json) -> ScalerView:
    spec = mapping(item, "spec")
    target = mapping(spec, "scaleTargetRef")
    kind = text(target, "kind") or "Deployment"
    return _view(KEDA, item, (kind, text(target, "name")), most=_number(spec.get("maxReplicaCount")))


def _knative(item: Json) -> ScalerView:
    routed = text(mapping(item, "spec"), "reachability") in ("", "Reachable")  # traffic goes to this Revision
    service = texts(mapping(item, "metadata"), "labels").get(KNATIVE_SERVICE, "") if routed else ""
    return _view(KNATIVE, item, ("Service", service))


def _resource(knob: Knob, plural: str, parse: Callable[[Json], ScalerView]) -> Resource[ScalerView]:
    root = "apis/" + knob.api_version
    return Resource(group=root, plural=plural, parse=parse)


SCALERS: Mapping[Knob, Resource[ScalerView]] = {
    HPA: _resource(HPA, "horizontalpodautoscalers", _hpa),
    KEDA: _resource(KEDA, "scaledobjects", _keda),
    KNATIVE: _resource(KNATIVE, "podautoscalers", _knative),
}


def applied(view: ScalerView, least: int | None, raised_from: str) -> Json:
    """Return what SCALE_MANAGER applies: `least` (None lets go of it) and the record of what was before ("" for none)."""
    # Without a record no labels at all: applied empty, they become null in a custom resource.
    labels = {"labels": {LABEL_RAISED_FROM: raised_from}} if raised_from else {}
    meta = {"name": view.name, "namespace": view.namespace, "uid": view.uid} | labels
    body: dict[str, object] = {"apiVersion": view.knob.api_version, "kind": view.knob.kind, "metadata": meta}
    if least is None:
        return body
    if view.knob.path[0] == "metadata":
        return body | {"metadata": meta | {"annotations": {view.knob.path[-1]: str(least)}}}
    return body | {view.knob.path[0]: {view.knob.path[1]: least}}


def _view(knob: Knob, item: Json, target: tuple[str, str], *, most: int | None = None) -> ScalerView:
    meta = mapping(item, "metadata")
    holder: Json = item
    for key in knob.path[:-1]:
        holder = mapping(holder, key)
    return ScalerView(
        knob=knob,
        namespace=text(meta, "namespace"),
        name=text(meta, "name"),
        uid=text(meta, "uid"),
        target=target,
        least=_number(holder.get(knob.path[-1])),
        most=most,
        raised_from=texts(meta, "labels").get(LABEL_RAISED_FROM, ""),
        ours=applies(item, SCALE_MANAGER, *knob.path),
        made=any(owner.get("controller") is True for owner in mappings(meta, "ownerReferences")),
        created=time(meta, "creationTimestamp"),
    )


def _number(value: object) -> int | None:
    digits = str(value)
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 9 else None
