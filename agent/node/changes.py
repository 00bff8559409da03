"""What must be written so that the Node says what it may: the watched Node held against a Readiness. Pure.

The rule for claims that stand when an agent starts:

1. The Node's boot id is not ours: every claim of it is withdrawn at once.
2. Same boot: a claim that the readiness contradicts is withdrawn at once; one still undecided is kept, while `grace` holds.
3. Grace is over: whatever is not proved is withdrawn.

On a Node that is not Ready nothing is claimed, however well it is proved: its kubelet starts no pod, and the planner withdraws
the same. What both leave there is equal, so neither undoes the other's work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from agent.core.assignment_json import format_time
from agent.core.names import (
    ANNOTATION_BOOT_ID,
    ANNOTATION_TAINT_LIFTED,
    ENDPOINT_PREFIX,
    LABEL_GPU,
    TAINT_EFFECT,
    TAINT_NOT_READY,
)
from agent.kube.objects import Condition, NodeView, Taint
from agent.node.readiness import Readiness, TaintWish

Json = Mapping[str, object]
_GOOD_GPU = ("healthy", "none")
_LIFTED: Json = {  # the map is there: the boot id is written before the taint is lifted
    "op": "add",
    "path": f"/metadata/annotations/{ANNOTATION_TAINT_LIFTED.replace('/', '~1')}",
    "value": "true",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What differs; a label of None is removed. `withdraws` names the claims that a write of this takes back."""

    labels: Mapping[str, str | None] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()  # without times
    taint: TaintWish = TaintWish.LEAVE
    withdraws: frozenset[str] = frozenset()

    @property
    def status(self) -> bool:
        """True if there is something to write to nodes/status."""
        return bool(self.labels or self.annotations or self.conditions)

    @property
    def any(self) -> bool:
        """True if there is anything to write."""
        return self.status or self.taint is not TaintWish.LEAVE


def changes(node: NodeView, wanted: Readiness, *, grace: bool, in_flight: frozenset[str] = frozenset()) -> Changes:
    """Return what to write.

    `grace`: the agent started less than 10 s ago. `in_flight`: claims written, or perhaps written, that the watch has not
    shown yet; they are withdrawn like those that stand.
    """
    down = _is_down(node)
    wanted = _silent(wanted, node) if down else wanted
    ours = wanted.annotations.get(ANNOTATION_BOOT_ID, "")
    patient = not down and grace and ours != "" and node.annotations.get(ANNOTATION_BOOT_ID) == ours
    standing = {k: v for k, v in node.labels.items() if is_claim(k)}
    labels: dict[str, str | None] = {k: v for k, v in wanted.labels.items() if standing.get(k) != v}
    labels |= {k: None for k in (standing.keys() | in_flight) - wanted.labels.keys() if is_claim(k)}
    if patient:
        labels = {k: v for k, v in labels.items() if not (k in standing and _is_undecided(k, wanted))}
    if LABEL_GPU in in_flight and _worse("healthy", wanted.labels.get(LABEL_GPU)):
        labels[LABEL_GPU] = wanted.labels.get(LABEL_GPU)
        standing[LABEL_GPU] = "healthy"
    annotations = {k: v for k, v in wanted.annotations.items() if node.annotations.get(k) != v}
    conditions = tuple(c for c in wanted.conditions if _differs(node, c, patient=patient))
    taint = _taint(node, wanted.taint)
    withdraws = {k for k, v in labels.items() if v is None or (k == LABEL_GPU and _worse(standing.get(k), v))}
    withdraws |= {c.type for c in conditions if c.status != "True" and _status(node, c.type) == "True"}
    withdraws |= {TAINT_NOT_READY} if taint is TaintWish.ADD else set()
    return Changes(
        labels=labels, annotations=annotations, conditions=conditions, taint=taint, withdraws=frozenset(withdraws)
    )


def is_claim(label: str) -> bool:
    """Say whether a node label is one that only the agent writes; other labels below our prefix are a person's."""
    return label == LABEL_GPU or label.startswith(ENDPOINT_PREFIX)


def status_body(change: Changes, node: NodeView, now: datetime) -> dict[str, object]:
    """Return the one strategic-merge patch of `nodes/status`: labels, annotations and conditions together.

    The uid keeps a patch meant for one Node off another of the same name. A condition's transition time moves only with its
    status; heartbeat time is written with it and never by itself.
    """
    metadata: dict[str, object] = {"uid": node.uid} if node.uid else {}
    if change.labels:
        metadata["labels"] = dict(change.labels)
    if change.annotations:
        metadata["annotations"] = dict(change.annotations)
    conditions = [_condition_body(c, node, now) for c in change.conditions]
    body: dict[str, object] = {"metadata": metadata}
    if conditions:
        body["status"] = {"conditions": conditions}
    return body


def taint_ops(node: NodeView, wish: TaintWish) -> list[Json]:
    """Return the JSON patch of the node's taints; every op rests on a `test` of what was seen, empty if nothing is to do.

    Lifting leaves the annotation that lets a later `ADD` know that this node is one with the taint.
    """
    places = [n for n, t in enumerate(node.taints) if _is_ours(t)]
    if wish is TaintWish.LIFT and places:
        at = f"/spec/taints/{places[0]}"
        return [
            {"op": "test", "path": f"{at}/key", "value": TAINT_NOT_READY},
            {"op": "test", "path": f"{at}/effect", "value": TAINT_EFFECT},
            {"op": "remove", "path": at},
            _LIFTED,
        ]
    if wish is TaintWish.ADD and not places:
        taint = {"key": TAINT_NOT_READY, "effect": TAINT_EFFECT}
        if node.taints:
            return [
                {"op": "test", "path": "/spec/taints/0/key", "value": node.taints[0].key},
                {"op": "add", "path": "/spec/taints/-", "value": taint},
            ]
        # With no list to append to, `add` would replace one that appeared meanwhile: the version says that none did.
        return [
            _unchanged(node),
            {"op": "add", "path": "/spec/taints", "value": [taint]},
        ]
    return []


def _unchanged(node: NodeView) -> Json:
    return {"op": "test", "path": "/metadata/resourceVersion", "value": node.resource_version}


def _taint(node: NodeView, wish: TaintWish) -> TaintWish:
    present = any(_is_ours(t) for t in node.taints)
    if wish is TaintWish.LIFT and present:
        return wish
    if wish is TaintWish.ADD and not present and ANNOTATION_TAINT_LIFTED in node.annotations:
        return wish
    return TaintWish.LEAVE


def _is_ours(taint: Taint) -> bool:
    return taint.key == TAINT_NOT_READY and taint.effect == TAINT_EFFECT


def _is_down(node: NodeView) -> bool:
    """Say whether the kubelet, or the lack of its word, says that no pod may start here."""
    return _status(node, "Ready") not in ("True", "")


def _silent(wanted: Readiness, node: NodeView) -> Readiness:
    """Return what may be said of a Node that is not Ready: no label, no taint lifted, conditions that say something Unknown."""
    message = "the Node is not Ready, so nothing is claimed"
    said = [c.type for c in wanted.conditions if _status(node, c.type) in ("True", "False")]
    conditions = tuple(Condition(type=kind, status="Unknown", reason="NodeNotReady", message=message) for kind in said)
    taint = TaintWish.LEAVE if wanted.taint is TaintWish.LIFT else wanted.taint
    return replace(wanted, labels={}, conditions=conditions, taint=taint)


def _is_undecided(label: str, wanted: Readiness) -> bool:
    if label == LABEL_GPU:
        return wanted.labels.get(LABEL_GPU) == "unknown"
    return wanted.undecided is None or label in wanted.undecided


def _worse(before: str | None, after: str | None) -> bool:
    return before in _GOOD_GPU and after not in _GOOD_GPU


def _status(node: NodeView, kind: str) -> str:
    return next((c.status for c in node.conditions if c.type == kind), "")


def _differs(node: NodeView, condition: Condition, *, patient: bool) -> bool:
    before = next((c for c in node.conditions if c.type == condition.type), None)
    if before is None:
        return True
    if patient and condition.status == "Unknown":
        return False
    return (before.status, before.reason, before.message) != (condition.status, condition.reason, condition.message)


def _condition_body(condition: Condition, node: NodeView, now: datetime) -> Json:
    before = next((c for c in node.conditions if c.type == condition.type), None)
    since = before.since if before and before.since and before.status == condition.status else now
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": format_time(since),
        "lastHeartbeatTime": format_time(now),
    }
