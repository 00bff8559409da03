"""`readiness`: from what is asked, what is proved and the time, to what this node may say of itself. Pure and total.

Nothing is claimed that the inventory does not prove; whatever is missing, unknown or contradictory reads as "not ready".
What already stands on the Node is no input here: `agent.node.changes` holds the two against each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from agent.core.assignment import Assignment, EndpointWant, ImageWant, ModelWant
from agent.core.errors import cut
from agent.core.inventory import GpuReport, GpuVerdict, Inventory
from agent.core.names import (
    ANNOTATION_BOOT_ID,
    CONDITION_CACHE,
    CONDITION_GPU,
    LABEL_GPU,
    READY,
    endpoint_label,
)
from agent.kube.objects import Condition

_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._\-]{0,61}[A-Za-z0-9])?")  # what the API server takes after the "/"
_MESSAGE_LIMIT = 900  # the CRD and people's terminals: one sentence, whatever a reason quotes


class TaintWish(StrEnum):
    """What this node wants of the taint `prewarm.dev/not-ready`."""

    LIFT = "lift"
    ADD = "add"  # put back what an agent lifted; never the first one on a node that was born without
    LEAVE = "leave"


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Everything this node says of itself.

    `labels` holds exactly the labels that may stand; `reasons` has one sentence for each label, standing or not.
    `undecided` are labels that the first proof after a start has neither proved nor contradicted yet (None: any endpoint
    label, since the assignment is not known): such a claim of the same boot may stand a few seconds longer.
    `wake_at` is when the same inputs would give another answer.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    taint: TaintWish = TaintWish.LEAVE
    reasons: Mapping[str, str] = field(default_factory=dict)
    undecided: frozenset[str] | None = frozenset()
    wake_at: datetime | None = None


class _Proof(StrEnum):
    PROVED = "proved"
    UNKNOWN = "unknown"  # nobody has looked yet
    REFUTED = "refuted"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """What holds of one endpoint, and why."""

    want: EndpointWant
    label: str
    proof: _Proof
    reason: str


def readiness(
    assignment: Assignment | None, inventory: Inventory, now: datetime, *, lift_taint: str = "gpu"
) -> Readiness:
    """Say what this node may claim now. `lift_taint` is the setting: `gpu`, `windows` or `off`."""
    endpoints = assignment.endpoints if assignment else ()
    findings = tuple(_finding(e, inventory) for e in endpoints)
    gpu = inventory.gpu
    undecided = {f.label for f in findings if f.proof is _Proof.UNKNOWN}
    if gpu.verdict is GpuVerdict.UNKNOWN:
        undecided.add(LABEL_GPU)
    return Readiness(
        labels={LABEL_GPU: str(gpu.verdict)} | {f.label: READY for f in findings if f.proof is _Proof.PROVED},
        annotations={ANNOTATION_BOOT_ID: inventory.boot_id} if inventory.boot_id else {},
        conditions=(_gpu_condition(gpu), _cache_condition(assignment, findings, inventory, now)),
        taint=_taint(findings, inventory, now, lift_taint, known=assignment is not None),
        reasons={LABEL_GPU: _sentence(f"the GPU verdict is {gpu.verdict}: {gpu.reason}")}
        | {f.label: _sentence(f.reason) for f in findings},
        undecided=frozenset(undecided) if assignment is not None else None,
        wake_at=min((t for e in endpoints for w in e.windows for t in (w.ready_by, w.until) if t > now), default=None),
    )


def _finding(want: EndpointWant, inventory: Inventory) -> _Finding:
    label = endpoint_label(want.key.namespace, want.key.name)
    if not _LABEL_NAME.fullmatch(str(want.key)) or "." in want.key.namespace:
        reason = f"{want.key} cannot be a label: at most 63 letters, digits, '-', '_' and '.', no '.' in the namespace"
        return _Finding(want=want, label=label, proof=_Proof.REFUTED, reason=reason)
    if not want.images and not want.models:
        reason = "not ready: no image and no model is assigned, so nothing is proved"
        return _Finding(want=want, label=label, proof=_Proof.REFUTED, reason=reason)
    doubts = list(_doubts(want, inventory))
    for proof in (_Proof.REFUTED, _Proof.UNKNOWN):
        if found := [reason for p, reason in doubts if p is proof]:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            return _Finding(want=want, label=label, proof=proof, reason=f"not ready: {found[0]}{more}")
    return _Finding(
        want=want, label=label, proof=_Proof.PROVED, reason="every image and model is proved warm and its GPUs are fit"
    )


def _doubts(want: EndpointWant, inventory: Inventory) -> Iterator[tuple[_Proof, str]]:
    """Yield what keeps an endpoint from being ready; nothing exactly if it is."""
    for image in want.images:
        yield from _image_doubt(image, inventory)
    if want.images and (unproved := inventory.unproved(want.runtime_handler)):
        yield _Proof.REFUTED, unproved
    for model in want.models:
        yield from _model_doubt(model, inventory)
    verdict = inventory.gpu.verdict_for(want.gpus) if want.gpus > 0 else GpuVerdict.HEALTHY
    if verdict is not GpuVerdict.HEALTHY:
        reason = f"it needs {want.gpus} GPU and the verdict is {verdict}: {inventory.gpu.reason}"
        yield _Proof.UNKNOWN if verdict is GpuVerdict.UNKNOWN else _Proof.REFUTED, reason
    if not inventory.proved:
        yield _Proof.UNKNOWN, "the proof of what is on this node is not through"


def _image_doubt(want: ImageWant, inventory: Inventory) -> Iterator[tuple[_Proof, str]]:
    state = inventory.images.get(want.ref)
    if state is None:
        yield _unseen(inventory), f"image {want.ref} is not proved yet"
    elif not state.level.warm:
        yield _Proof.REFUTED, f"image {want.ref} is {state.level}" + (f": {state.error}" if state.error else "")
    elif want.digest and want.digest != state.digest:
        yield _Proof.REFUTED, f"image {want.ref} is {state.digest or 'of unknown digest'} here, not {want.digest}"


def _model_doubt(want: ModelWant, inventory: Inventory) -> Iterator[tuple[_Proof, str]]:
    digest = want.digest or inventory.resolved.get(str(want.uri))
    state = inventory.models.get(digest) if digest else None
    if state is None:
        yield _unseen(inventory), f"model {want.name} is not {'here' if digest else 'resolved to a version'} yet"
    elif not state.level.committed:
        yield _Proof.REFUTED, f"model {want.name} is {state.level}" + (f": {state.error}" if state.error else "")


def _unseen(inventory: Inventory) -> _Proof:
    return _Proof.REFUTED if inventory.proved else _Proof.UNKNOWN


def _gpu_condition(gpu: GpuReport) -> Condition:
    status, reason = {
        GpuVerdict.HEALTHY: ("True", "Healthy"),
        GpuVerdict.NONE: ("True", "NoGPU"),
        GpuVerdict.DEGRADED: ("False", "Degraded"),
        GpuVerdict.UNHEALTHY: ("False", "Unhealthy"),
        GpuVerdict.UNKNOWN: ("Unknown", "NotProved"),
    }[gpu.verdict]
    return Condition(type=CONDITION_GPU, status=status, reason=reason, message=_sentence(gpu.reason))


def _cache_condition(
    assignment: Assignment | None, findings: tuple[_Finding, ...], inventory: Inventory, now: datetime
) -> Condition:
    """CacheReady: what must be warm now is warm. No byte counts in the message: each change of it is a write."""
    cold = [f for f in findings if f.proof is not _Proof.PROVED]
    late = [f for f in cold if _is_due(f.want, now)]
    if assignment is None:
        status, reason, message = "Unknown", "NoAssignment", "no assignment is known yet"
    elif not inventory.proved:
        status, reason, message = "Unknown", "NotProved", "the proof of what is on this node is not through"
    elif late:
        status, reason, message = "False", "Cold", f"{late[0].want.key}: its window is open and it is {late[0].reason}"
    elif cold:
        status, reason, message = "True", "NothingDue", f"{len(cold)} of {len(findings)} endpoints not warm, none due"
    elif findings:
        status, reason, message = "True", "AllWarm", f"all endpoints of this node are warm: {len(findings)}"
    else:
        status, reason, message = "True", "NothingAssigned", "no endpoint is assigned to this node"
    return Condition(type=CONDITION_CACHE, status=status, reason=reason, message=_sentence(message))


def _is_due(want: EndpointWant, now: datetime) -> bool:
    return any(w.ready_by <= now < w.until for w in want.windows)


def _taint(
    findings: tuple[_Finding, ...], inventory: Inventory, now: datetime, lift_taint: str, *, known: bool
) -> TaintWish:
    """The taint follows the GPUs; with `windows`, due endpoints delay its lifting but never bring it back."""
    if lift_taint == "off":
        return TaintWish.LEAVE
    if inventory.gpu.verdict is GpuVerdict.UNHEALTHY:
        return TaintWish.ADD
    if inventory.gpu.verdict not in (GpuVerdict.HEALTHY, GpuVerdict.NONE):
        return TaintWish.LEAVE
    warm = known and inventory.proved and all(f.proof is _Proof.PROVED for f in findings if _is_due(f.want, now))
    return TaintWish.LIFT if lift_taint != "windows" or warm else TaintWish.LEAVE


def _sentence(text: str) -> str:
    return cut(text, _MESSAGE_LIMIT)
