"""Can a pod of this endpoint run on this node? As kube-scheduler's NodeAffinity, TaintToleration and Fit filters say. Pure.

Prewarm's own labels and taints never exclude a node: a pod may require `endpoint.prewarm.dev/…=ready`, but a node only becomes
ready because the endpoint was placed there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from agent.core.errors import cut
from agent.core.names import is_ours
from agent.kube.objects import NodeRequirement, NodeView, PodSpecView, Toleration

GPU_RESOURCE = "nvidia.com/gpu"
NOT_READY = "not Ready"
NAME = "metadata.name"  # the one field a term can name
_AWAY_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
# Set by what is about to end a node: Karpenter, its version before 1.0, Cluster Autoscaler, cloud providers, people.
_LEAVING_TAINTS = (
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
    "ToBeDeletedByClusterAutoscaler",
    "node.cloudprovider.kubernetes.io/shutdown",
    "node.kubernetes.io/out-of-service",
)
_HARD_EFFECTS = ("NoSchedule", "NoExecute")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")

Terms = tuple[tuple[NodeRequirement, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """All that decides eligibility, without what is prewarm's own; endpoints with equal needs share their nodes.

    `terms` is None for no required affinity; an empty tuple matches no node, as an empty term does in Kubernetes.
    """

    selector: tuple[tuple[str, str], ...] = ()
    terms: Terms | None = None
    tolerations: tuple[Toleration, ...] = ()
    gpus: int = 0

    @classmethod
    def of(cls, spec: PodSpecView, gpus: int) -> Needs:
        """Return the needs of a pod spec whose pods take `gpus` GPUs."""
        return cls(
            selector=tuple(sorted((k, v) for k, v in spec.node_selector.items() if not is_ours(k))),
            terms=_terms(spec.required_terms),
            tolerations=spec.tolerations,
            gpus=gpus,
        )

    def label_keys(self) -> frozenset[str]:
        """Return the label keys (and NAME) these needs look at."""
        return frozenset(key for key, _ in self.selector) | {r.key for term in self.terms or () for r in term}


def closed(node: NodeView) -> str:
    """Say why no pod at all should be placed here now, "" if the node is open."""
    if node.deleting:
        return "being deleted"
    if node.unschedulable:
        return "cordoned"
    if any(
        taint.key in _LEAVING_TAINTS or taint.key.startswith("aws-node-termination-handler/") for taint in node.taints
    ):
        return "about to go away"
    if not node.ready or any(taint.key in _AWAY_TAINTS for taint in node.taints):
        return NOT_READY
    return ""


def exclusion(node: NodeView, needs: Needs) -> str:
    """Say why this open node cannot run pods with these needs ("without label gpu=a100"), "" if it can."""
    for key, value in needs.selector:
        if node.labels.get(key) != value:
            return f"without label {cut(key, 80)}={cut(value, 63)}"
    if needs.terms is not None and not any(_matches_all(term, node) for term in needs.terms):
        return _outside(needs.terms)
    for taint in node.taints:
        if (
            taint.effect in _HARD_EFFECTS
            and not is_ours(taint.key)
            and not any(t.tolerates(taint) for t in needs.tolerations)
        ):
            value = f"={cut(taint.value, 63)}" if taint.value else ""
            return f"tainted {cut(taint.key, 80)}{value}:{taint.effect}"
    if needs.gpus and gpus_of(node.allocatable) < needs.gpus:
        return f"with fewer than {needs.gpus} {GPU_RESOURCE}"
    return ""


def gpus_of(allocatable: Mapping[str, str]) -> int:
    """Return the GPUs a node offers to pods; 0 where the quantity is not a plain number."""
    return _integer(allocatable.get(GPU_RESOURCE, "")) or 0


def _terms(required: Terms) -> Terms | None:
    if not required:
        return None
    kept: list[tuple[NodeRequirement, ...]] = []
    for term in required:
        rest = tuple(r for r in term if r.on_field or not is_ours(r.key))
        if term and not rest:
            return None  # only our own labels were asked for: any node can come to have them
        if rest:
            kept.append(rest)
    return tuple(kept)


def _matches_all(term: tuple[NodeRequirement, ...], node: NodeView) -> bool:
    return all(_matches(requirement, node) for requirement in term)


def _matches(requirement: NodeRequirement, node: NodeView) -> bool:
    if requirement.on_field:
        found = node.name if requirement.key == NAME else None
    else:
        found = node.labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return found in requirement.values
        case "NotIn":
            return found not in requirement.values
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
        case "Gt" | "Lt" as operator:
            have, bound = _integer(found or ""), _integer("".join(requirement.values[:1]))
            return have is not None and bound is not None and (have > bound if operator == "Gt" else have < bound)
        case _:
            return False  # the API server accepts no other


def _outside(terms: Terms) -> str:
    if len(terms) == 1 and len(terms[0]) == 1:
        (only,) = terms[0]
        return f"not matching {cut(only.key, 80)} {only.operator} [{cut(', '.join(only.values), 100)}]"
    return "outside the required node affinity"


def _integer(text: str) -> int | None:
    return int(text) if _INTEGER.fullmatch(text) else None
