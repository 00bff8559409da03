"""The whole planner on a large fleet: seconds and memory of a first plan, of a plan again, and after a node has left.

Run by the test of the budget as a process of its own, so that the peak of memory is the planner's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from agent.core.assignment import Assignment
from agent.core.refs import Digest, EndpointKey, ModelUri, parse_image_ref, parse_model_uri
from agent.core.sources import SourceRule
from agent.demand.endpoint import DemandDefaults
from agent.fleet.draft import Draft, Drafter, FleetState
from agent.fleet.resolutions import Resolution, Resolutions, ResolvedModel
from agent.kube.objects import (
    Condition,
    ContainerView,
    NodeReport,
    NodeView,
    NodeWarmupView,
    PodSpecView,
    Taint,
    Toleration,
    WorkloadView,
)

NOW = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
GPU = "nvidia.com/gpu"


def _peak_mb() -> int:
    """Return what this program took at most; getrusage's peak is also that of the process it was started from."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(status["VmHWM"].split()[0]) / 1024)


def main() -> None:
    """Plan 5,000 nodes and 1,000 endpoints (or as many as the arguments say) and print one line of JSON."""
    nodes, endpoints = (int(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 2 else (5000, 1000)
    fleet = [_node(n) for n in range(nodes)]
    workloads = tuple(_workload(n) for n in range(endpoints))
    known = Resolutions(
        models={_uri(n): Resolution(value=_model(n)) for n in range(endpoints)},
        images={parse_image_ref("registry.bed/server:1"): Resolution(value="sha256:" + "2" * 64)},
    )
    state = FleetState(workloads=workloads, nodes=tuple(fleet), resolutions=known)
    drafter = Drafter(DemandDefaults(sources=(SourceRule(namespace="*", bucket="weights", prefix=""),)))
    first, first_seconds = _timed(drafter, state)
    warmups = _reported(first.assignments)
    state = FleetState(workloads=workloads, nodes=tuple(fleet), resolutions=known, warmups=warmups)
    again, again_seconds = _timed(drafter, state)
    busy = max(again.assignments, key=lambda name: len(again.assignments[name].endpoints))
    rest = tuple(n for n in fleet if n.name != busy)
    state = FleetState(workloads=workloads, nodes=rest, resolutions=known, warmups=warmups)
    left, left_seconds = _timed(drafter, state)
    found = {
        "nodes": nodes,
        "endpoints": endpoints,
        "places": len(_places(first)),
        "first_seconds": round(first_seconds, 2),
        "again_seconds": round(again_seconds, 2),
        "moved_again": len(_places(again) - _places(first)),
        "left_seconds": round(left_seconds, 2),
        "left_had": len(again.assignments[busy].endpoints),
        "moved_left": len(_places(left) - _places(again)),
        "peak_mb": _peak_mb(),
    }
    print(json.dumps(found))


def _timed(drafter: Drafter, state: FleetState) -> tuple[Draft, float]:
    began = time.process_time()
    return drafter.draft(state, NOW), time.process_time() - began


def _places(draft: Draft) -> set[tuple[str, EndpointKey]]:
    return {(node, e.key) for node, a in draft.assignments.items() for e in a.endpoints}


def _reported(assignments: Mapping[str, Assignment]) -> dict[str, NodeWarmupView]:
    """Return the NodeWarmups as agents would have them that are half done."""
    return {
        name: NodeWarmupView(
            name=name,
            assignment=assignment,
            report=NodeReport(
                pace_bytes_per_second=200_000_000 + hash(name) % 1_000_000,
                capacity_bytes=3_500_000_000_000,
                missing_bytes={str(m.uri): m.size_bytes // 2 for e in assignment.endpoints for m in e.models},
            ),
        )
        for name, assignment in assignments.items()
    }


def _node(n: int) -> NodeView:
    labels = {
        "kubernetes.io/hostname": f"ip-10-{n // 256}-{n % 256}",
        "topology.kubernetes.io/zone": f"eu-{'abc'[n % 3]}",
        "node.kubernetes.io/instance-type": f"p{n % 4}",
        **{f"label-{k}.example.com/key": f"value-{n % 7}-{k}" for k in range(15)},
    }
    return NodeView(
        name=f"ip-10-{n // 256}-{n % 256}.ec2.internal",
        uid=f"uid-{n}",
        labels=labels,
        taints=(Taint(key=GPU, effect="NoSchedule"),) if n % 2 else (),
        conditions=(Condition(type="Ready", status="True"),),
        allocatable={GPU: "8", "cpu": "96", "memory": "1024Gi"},
    )


def _workload(n: int) -> WorkloadView:
    return WorkloadView(
        api_version="apps/v1",
        kind="Deployment",
        namespace=f"team-{n % 50}",
        name=f"endpoint-{n}",
        uid=f"uid-{n}",
        annotations={
            "prewarm.dev/models": f"s3://weights/model-{n}/",
            "prewarm.dev/schedule": f"{n % 60} {6 + n % 12} * * MON-FRI; 30 20 * * *",
            "prewarm.dev/timezone": ("Europe/Berlin", "America/New_York", "Asia/Tokyo")[n % 3],
            "prewarm.dev/nodes": str(1 + n % 10),
            "prewarm.dev/priority": str(n % 1000),
        },
        spec=PodSpecView(
            containers=(ContainerView(name="server", image="registry.bed/server:1", gpus=1 + n % 8),),
            node_selector={"node.kubernetes.io/instance-type": f"p{n % 4}"} if n % 3 else {},
            tolerations=(Toleration(key=GPU, operator="Exists"), Toleration(key=f"t{n}", operator="Exists")),
        ),
    )


def _uri(n: int) -> ModelUri:
    return parse_model_uri(f"s3://weights/model-{n}/")


def _model(n: int) -> ResolvedModel:
    return ResolvedModel(digest=Digest(f"sha256:{n:064x}"), size_bytes=(1 + n % 140) * 10**9, files=30)


if __name__ == "__main__":
    main()
