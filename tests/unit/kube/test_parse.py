"""Kubernetes JSON as a real API server sends it, and as it should not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from agent.core.refs import EndpointKey
from agent.kube.objects import (
    Condition,
    ContainerView,
    NodeRequirement,
    NodeView,
    PodSpecView,
    Taint,
    Toleration,
)
from agent.kube.parse import (
    parse_event,
    parse_lease,
    parse_node,
    parse_nodewarmup,
    parse_nodewarmup_spec,
    parse_pod,
    parse_runtime_class,
)
from agent.kube.workloads import workload_parser

NODE: dict[str, Any] = {
    "metadata": {
        "name": "gpu-1",
        "uid": "2f1c",
        "resourceVersion": "4711",
        "creationTimestamp": "2026-11-23T08:00:00Z",
        "labels": {"kubernetes.io/hostname": "gpu-1", "endpoint.prewarm.dev/shop.chat": "ready"},
        "annotations": {"prewarm.dev/boot-id": "b-1"},
        "managedFields": [{"manager": "kubelet"}],
    },
    "spec": {
        "podCIDR": "10.78.1.0/24",
        "unschedulable": True,
        "taints": [
            {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": "2026-11-23T08:00:00Z"},
        ],
    },
    "status": {
        "allocatable": {"cpu": "96", "nvidia.com/gpu": "8", "memory": "1056Gi"},
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "KubeletReady",
                "message": "kubelet is posting ready status",
                "lastHeartbeatTime": "2026-11-23T09:00:00Z",
                "lastTransitionTime": "2026-11-23T08:00:10Z",
            }
        ],
        "nodeInfo": {"bootID": "b-1", "kernelVersion": "6.18"},
    },
}


def test_node() -> None:
    node = parse_node(NODE)
    assert (node.name, node.uid, node.resource_version, node.boot_id) == ("gpu-1", "2f1c", "4711", "b-1")
    assert node.labels["endpoint.prewarm.dev/shop.chat"] == "ready"
    assert node.taints == (
        Taint(key="nvidia.com/gpu", value="present", effect="NoSchedule"),
        Taint(key="node.kubernetes.io/unschedulable", effect="NoSchedule"),
    )
    assert node.allocatable["nvidia.com/gpu"] == "8"
    assert node.ready
    assert node.unschedulable
    assert node.conditions[0].since == datetime(2026, 11, 23, 8, 0, 10, tzinfo=UTC)


def test_a_heartbeat_alone_leaves_the_node_equal() -> None:
    beat = {**NODE, "metadata": {**NODE["metadata"], "resourceVersion": "4800"}}
    assert parse_node(beat) == parse_node(NODE)
    cordoned = {**NODE, "spec": {**NODE["spec"], "unschedulable": False}}
    assert parse_node(cordoned) != parse_node(NODE)


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_node_whose_ready_condition_is_not_true_is_not_ready(status: str) -> None:
    node = parse_node({"metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": status}]}})
    assert not node.ready


DEPLOYMENT: dict[str, Any] = {
    "metadata": {
        "name": "chat",
        "namespace": "shop",
        "uid": "d-1",
        "annotations": {"prewarm.dev/models": "s3://weights/llama/"},
    },
    "spec": {
        "replicas": 0,
        "template": {
            "metadata": {
                "labels": {"prewarm.dev/endpoint": "chat"},
                "annotations": {"prewarm.dev/schedule": "0 9 * * *"},
            },
            "spec": {
                "runtimeClassName": "nvidia",
                "serviceAccountName": "chat",
                "nodeSelector": {"pool": "gpu"},
                "tolerations": [
                    {"key": "nvidia.com/gpu", "operator": "Exists"},
                    {"key": "x", "value": "y", "tolerationSeconds": 0},
                ],
                "initContainers": [{"name": "wait", "image": "prewarm:1"}],
                "containers": [
                    {
                        "name": "server",
                        "image": "vllm/vllm-openai:v0.9",
                        "ports": [{"containerPort": 8000, "name": "http"}],
                        "readinessProbe": {"httpGet": {"path": "/health"}},
                        "resources": {"limits": {"nvidia.com/gpu": "2"}},
                    },
                    {"name": "side", "image": "busybox", "resources": {"requests": {"nvidia.com/gpu": 1}}},
                ],
                "affinity": {
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [
                                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]},
                                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]},
                            ]
                        }
                    }
                },
            },
        },
    },
}


def test_workload() -> None:
    found = workload_parser("apps/v1", "Deployment")(DEPLOYMENT)
    assert (found.api_version, found.kind, found.namespace, found.name) == ("apps/v1", "Deployment", "shop", "chat")
    assert found.annotations == {"prewarm.dev/models": "s3://weights/llama/"}
    assert found.template_annotations == {"prewarm.dev/schedule": "0 9 * * *"}
    assert found.template_labels == {"prewarm.dev/endpoint": "chat"}
    assert found.spec == PodSpecView(
        containers=(
            ContainerView(
                name="server", image="vllm/vllm-openai:v0.9", ports=(8000,), has_readiness_probe=True, gpus=2
            ),
            ContainerView(name="side", image="busybox", gpus=1),
        ),
        init_containers=(ContainerView(name="wait", image="prewarm:1"),),
        node_selector={"pool": "gpu"},
        required_terms=(
            (NodeRequirement(key="zone", operator="In", values=("a", "b")),),
            (NodeRequirement(key="metadata.name", operator="In", values=("n1",), on_field=True),),
        ),
        tolerations=(Toleration(key="nvidia.com/gpu", operator="Exists"), Toleration(key="x", value="y", seconds=0)),
        runtime_class="nvidia",
        service_account="chat",
        requests={"nvidia.com/gpu": "3"},
    )


def test_pod() -> None:
    pod = parse_pod(
        {
            "metadata": {
                "name": "chat-7d-x",
                "namespace": "shop",
                "uid": "p-1",
                "creationTimestamp": "2026-11-23T09:00:00Z",
                "deletionTimestamp": "2026-11-23T09:10:00Z",
                "ownerReferences": [
                    {"kind": "Thing", "name": "other"},
                    {"kind": "ReplicaSet", "name": "chat-7d", "controller": True},
                ],
            },
            "spec": {"nodeName": "gpu-1", "containers": []},
            "status": {
                "phase": "Running",
                "podIP": "10.78.1.4",
                "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-11-23T09:00:05Z"}],
                "containerStatuses": [
                    {
                        "name": "server",
                        "ready": True,
                        "restartCount": 3,
                        "state": {"running": {"startedAt": "2026-11-23T09:00:02Z"}},
                    }
                ],
            },
        }
    )
    assert (pod.node, pod.owner_kind, pod.owner_name, pod.pod_ip) == ("gpu-1", "ReplicaSet", "chat-7d", "10.78.1.4")
    assert pod.deleting
    assert pod.condition("Ready") == Condition(
        type="Ready", status="False", since=datetime(2026, 11, 23, 9, 0, 5, tzinfo=UTC)
    )
    assert pod.containers[0].restarts == 3
    assert pod.containers[0].started_at == datetime(2026, 11, 23, 9, 0, 2, tzinfo=UTC)


def test_nodewarmup_carries_its_assignment() -> None:
    view = parse_nodewarmup(
        {
            "metadata": {
                "name": "gpu-1",
                "uid": "w-1",
                "generation": 7,
                "ownerReferences": [{"kind": "Node", "name": "gpu-1", "uid": "2f1c"}],
            },
            "spec": {
                "endpoints": [{"namespace": "shop", "name": "chat", "images": [{"ref": "docker.io/library/a:1"}]}]
            },
            "status": {"observedGeneration": 6},
        }
    )
    assert view.assignment is not None
    assert (view.owner_uid, view.observed_generation, view.assignment.generation) == ("2f1c", 6, 7)
    assert [e.key for e in view.assignment.endpoints] == [EndpointKey(namespace="shop", name="chat")]


def test_nodewarmup_tells_when_its_spec_was_written() -> None:
    entries = [
        {"manager": "prewarm", "time": "2026-03-02T08:00:01Z"},
        {"manager": "prewarm", "time": "2026-03-02T09:00:00Z", "subresource": "status"},
        {"manager": "kubectl", "time": "2026-03-02T08:00:07Z", "subresource": ""},
        {"manager": "odd", "time": 7},
    ]
    view = parse_nodewarmup({"metadata": {"name": "n", "generation": 3, "managedFields": entries}, "spec": {}})
    assert (view.generation, view.written_at) == (3, datetime(2026, 3, 2, 8, 0, 7, tzinfo=UTC))
    assert parse_nodewarmup({"metadata": {"name": "n", "managedFields": None}, "spec": {}}).written_at is None


def test_status_of_a_nodewarmup_changes_nothing_for_the_planner() -> None:
    item = {"metadata": {"name": "n"}, "spec": {"endpoints": []}, "status": {"phase": "Ready"}}
    assert parse_nodewarmup_spec(item) == parse_nodewarmup_spec({**item, "status": {"phase": "Warming"}})
    assert parse_nodewarmup(item).status == {"phase": "Ready"}


def test_an_agents_word_on_its_windows_is_read_only_where_it_has_seen_the_newest_spec() -> None:
    rows = [{"key": "a.b", "stage": "late", "readyAt": "2026-03-02T09:00:00Z"}, {"key": "a.c", "stage": "ready"}]
    items = [
        {"ref": "s3://w/a/", "level": "partial", "bytes": 3, "total": 10},
        {"ref": "r/i:1", "level": "hydrated", "total": 10},
    ]
    item = {
        "metadata": {"name": "n", "generation": 7},
        "status": {"observedGeneration": 7, "paceBytesPerSecond": 5, "endpoints": rows, "items": items},
    }
    report = parse_nodewarmup_spec(item).report
    assert report.ready_at == {"a.b": datetime(2026, 3, 2, 9, tzinfo=UTC), "a.c": None}
    assert (report.pace_bytes_per_second, report.missing_bytes) == (5, {"s3://w/a/": 7, "r/i:1": 0})
    item["metadata"] = {"name": "n", "generation": 8}
    assert parse_nodewarmup_spec(item).report.ready_at == {}


def test_nodewarmup_that_cannot_be_read_says_why() -> None:
    view = parse_nodewarmup({"metadata": {"name": "n"}, "spec": {"endpoints": [{"namespace": "shop"}]}})
    assert view.assignment is None
    assert view.problem == "spec.endpoints[0].name: expected text, found ''"


def test_event_lease_and_runtime_class() -> None:
    event = parse_event({"metadata": {"name": "e"}, "count": 3, "lastTimestamp": "2026-11-23T09:00:00Z"})
    assert (event.count, event.last) == (3, datetime(2026, 11, 23, 9, tzinfo=UTC))
    lease = parse_lease(
        {"metadata": {"name": "l", "resourceVersion": "5"}, "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15}}
    )
    assert (lease.holder, lease.duration_seconds, lease.resource_version) == ("a", 15, "5")
    assert parse_runtime_class({"metadata": {"name": "nvidia"}, "handler": "nvidia-cdi"}).handler == "nvidia-cdi"


@pytest.mark.parametrize(
    "odd", [None, 7, "text", "0001-01-01T00:00:00+14:00", [1], {"labels": 3}, {"conditions": [None, "x"], "taints": {}}]
)
def test_fields_of_the_wrong_type_count_as_absent(odd: object) -> None:
    broken = {"metadata": {"name": "n", "labels": odd, "creationTimestamp": odd}, "spec": odd, "status": odd}
    assert parse_node(broken) == NodeView(name="n", labels=parse_node(broken).labels)
    assert parse_pod(broken).containers == ()
    assert workload_parser("apps/v1", "Deployment")(broken).spec == PodSpecView()
    assert parse_nodewarmup({**broken, "spec": {}}).name == "n"


def test_a_taint_that_an_agent_put_back_is_not_the_start_up_taint() -> None:
    spec = {
        "taints": [{"key": "other", "effect": "NoSchedule"}, {"key": "prewarm.dev/not-ready", "effect": "NoSchedule"}]
    }
    lifted = {"name": "n", "annotations": {"prewarm.dev/taint-lifted": "true"}}
    assert parse_node({"metadata": {"name": "n"}, "spec": spec}).starts_up
    assert not parse_node({"metadata": lifted, "spec": spec}).starts_up
    assert not parse_node({"metadata": {"name": "n"}}).starts_up
