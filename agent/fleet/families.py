"""What people wrote, together with what controllers made of it. Pure.

The pods of a Knative Service or an InferenceService are those of Deployments below it, which have what the workload itself leaves
out: the runtime's image, the sidecar's, images by digest. Whether any pod runs only those know, for LeaderWorkerSets too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from agent.kube.objects import WorkloadView

_BY_CHILDREN = ("Service", "InferenceService")
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def whole(workloads: Iterable[WorkloadView]) -> tuple[WorkloadView, ...]:
    """Return the workloads that nothing else made, each with the pod spec that its pods will have, and whether any runs."""
    made: defaultdict[tuple[str, str, str], list[WorkloadView]] = defaultdict(list)
    written: list[WorkloadView] = []
    for workload in workloads:
        if workload.parent:
            made[workload.namespace, workload.parent.kind, workload.parent.name].append(workload)
        else:
            written.append(workload)
    return tuple(_joined(w, made.get((w.namespace, w.kind, w.name), ())) for w in written)


def _joined(workload: WorkloadView, made: Sequence[WorkloadView]) -> WorkloadView:
    running = workload.running or any(child.running for child in made)
    if workload.kind in _BY_CHILDREN:
        pods = [c for c in made if c.kind == "Deployment" and c.parent and c.parent.part in ("", "predictor")]
        newest = max(pods, key=lambda c: (c.created or _LONG_AGO, c.name), default=None)
        if newest and newest.spec.containers:
            # Knative and KServe put the serving container first; the readiness probe may be the sidecar's.
            return replace(workload, running=running, spec=newest.spec, serving=newest.spec.containers[0].name)
    return replace(workload, running=running) if running != workload.running else workload
