"""What a pod requests of memory, as the scheduler counts it."""

from __future__ import annotations

from typing import Any

import pytest

from agent.kube.memory import memory_requests, parse_quantity, pod_memory_request, pod_requests
from agent.kube.objects import NodeView, PodView

Mi = 1 << 20


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("128Mi", 128 * Mi),
        ("1.5Gi", 3 << 29),
        ("1G", 10**9),
        ("129e6", 129_000_000),
        ("134217728", 134_217_728),
        ("500m", 1),
        ("100k", 100_000),
        (2048, 2048),
        ("", 0),
        ("-1", 0),
        ("1Zi", 0),
        (None, 0),
    ],
)
def test_a_quantity_is_read(text: object, found: int) -> None:
    assert parse_quantity(text) == found


def container(memory: str | None = None, *, limit: str | None = None, **more: Any) -> dict[str, Any]:
    resources = {"requests": {"memory": memory} if memory else {}, "limits": {"memory": limit} if limit else {}}
    return {"name": "c", "resources": resources} | more


@pytest.mark.parametrize(
    ("spec", "mi"),
    [
        ({"containers": [container("100Mi"), container("28Mi"), container()]}, 128),
        ({"containers": [container(limit="64Mi")]}, 64),  # a limit alone is a request
        ({"containers": [container("100Mi")], "initContainers": [container("300Mi"), container("200Mi")]}, 300),
        ({"containers": [container("100Mi")], "initContainers": [container("50Mi", restartPolicy="Always")]}, 150),
        (
            {
                "containers": [container("10Mi")],
                "initContainers": [container("50Mi", restartPolicy="Always"), container("100Mi")],
            },
            150,
        ),
        ({"containers": [container("100Mi")], "overhead": {"memory": "20Mi"}}, 120),
        ({"containers": [container("100Mi")], "resources": {"requests": {"memory": "1Gi"}}}, 1024),
        ({"containers": "x", "overhead": 3}, 0),
    ],
)
def test_a_pod_requests_what_the_scheduler_counts(spec: dict[str, Any], mi: int) -> None:
    assert pod_memory_request(spec) == mi * Mi


def test_ended_pods_request_nothing_and_a_node_that_says_nothing_leaves_it_open() -> None:
    pods = [
        PodView(namespace="a", name="x", uid="1", phase="Running", memory_request_bytes=100),
        PodView(namespace="a", name="y", uid="2", phase="Succeeded", memory_request_bytes=1000),
    ]
    assert memory_requests(NodeView(name="n", allocatable={"memory": "1Ki"}), pods) == (1024, 100)
    assert memory_requests(NodeView(name="n"), pods) is None
    assert memory_requests(None, pods) is None


def test_a_pod_requests_each_resource_by_itself() -> None:
    server = {"requests": {"cpu": "1.5", "memory": "1Gi"}, "limits": {"nvidia.com/gpu": "2", "cpu": 4}}
    sidecar = {"requests": {"cpu": "250m"}}
    setup = {"requests": {"memory": "2Gi", "cpu": "100m"}}
    spec = {
        "containers": [
            {"resources": server},
            {"resources": {"limits": {"nvidia.com/gpu": 1}, "claims": [{"name": "x"}]}},
        ],
        "initContainers": [{"resources": sidecar, "restartPolicy": "Always"}, {"resources": setup}],
        "overhead": {"cpu": "1"},
    }
    assert pod_requests(spec) == {"cpu": "1750m", "memory": str(2 << 30), "nvidia.com/gpu": "3"}
    assert pod_requests(spec | {"resources": {"requests": {"cpu": "3"}}})["cpu"] == "3000m"
    assert pod_requests({"containers": [{"resources": {"requests": {"cpu": "x", "memory": None}}}, 3]}) == {}
