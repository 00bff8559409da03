"""Workloads of every kind, as their API servers send them."""

from __future__ import annotations

from typing import Any

import pytest

from agent.core.names import KNATIVE_SERVICE, KSERVE_SERVICE, LEADER_WORKER_SET
from agent.kube.objects import Parent, WorkloadView
from agent.kube.workloads import is_workload, parse_workload, workload_parser

POD = {"containers": [{"name": "server", "image": "vllm:1"}], "nodeSelector": {"pool": "gpu"}}


def view(api_version: str, kind: str, spec: dict[str, Any], **meta: Any) -> WorkloadView:
    body = {"metadata": {"namespace": "shop", "name": "chat", **meta}, "spec": spec}
    return workload_parser(api_version, kind)(body)


def owned(kind: str, api_version: str, labels: dict[str, str], *, controller: bool = True) -> WorkloadView:
    owner = {"apiVersion": api_version, "kind": kind, "name": "chat-00001", "controller": controller}
    return view("apps/v1", "Deployment", {"template": {"spec": POD}}, labels=labels, ownerReferences=[owner])


def test_a_knative_service_has_one_pod_template() -> None:
    template = {"metadata": {"labels": {"prewarm.dev/endpoint": "c"}}, "spec": POD}
    found = view("serving.knative.dev/v1", "Service", {"template": template})
    assert found.spec.containers[0].image == "vllm:1"
    assert found.template_labels == {"prewarm.dev/endpoint": "c"}
    assert found.parent is None


@pytest.mark.parametrize("framework", ["model", "triton"])
def test_an_inference_service_names_its_model_and_passes_annotations_down(framework: str) -> None:
    model = {"storageUri": "s3://models/llama/", "resources": {"limits": {"nvidia.com/gpu": "2"}}}
    predictor = {"annotations": {"a": "predictor"}, "labels": {"l": "1"}, "nodeSelector": {"pool": "gpu"}}
    found = view(
        "serving.kserve.io/v1beta1",
        "InferenceService",
        {"predictor": {**predictor, framework: model}, "transformer": {"containers": [{"image": "t"}]}},
        annotations={"a": "service", "b": "service"},
    )
    assert found.storage_uri == "s3://models/llama/"
    assert found.template_annotations == {"a": "predictor", "b": "service"}
    assert found.template_labels == {"l": "1"}
    assert [(c.name, c.image, c.gpus) for c in found.spec.containers] == [("kserve-container", "", 2)]
    assert found.spec.node_selector == {"pool": "gpu"}


def test_a_leader_worker_set_has_images_of_two_templates_and_a_size() -> None:
    leader = {"metadata": {"labels": {"prewarm.dev/endpoint": "c"}}, "spec": {"containers": [{"image": "ray:1"}]}}
    group = {"size": 4, "leaderTemplate": leader, "workerTemplate": {"spec": POD}}
    found = view("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", {"leaderWorkerTemplate": group})
    assert ([c.image for c in found.spec.containers], found.more_images) == (["vllm:1"], ("ray:1",))
    assert found.group_size == 4
    assert found.template_labels == {"prewarm.dev/endpoint": "c"}


@pytest.mark.parametrize(
    ("kind", "api_version", "labels", "parent"),
    [
        ("Revision", "serving.knative.dev/v1", {KNATIVE_SERVICE: "chat"}, Parent(kind="Service", name="chat")),
        (
            "Revision",
            "serving.knative.dev/v1",
            {KNATIVE_SERVICE: "chat-predictor", KSERVE_SERVICE: "chat", "component": "transformer"},
            Parent(kind="InferenceService", name="chat", part="transformer"),
        ),
        (
            "InferenceService",
            "serving.kserve.io/v1beta1",
            {KSERVE_SERVICE: "chat"},
            Parent(kind="InferenceService", name="chat", part="predictor"),
        ),
        ("Pod", "v1", {LEADER_WORKER_SET: "chat"}, Parent(kind="LeaderWorkerSet", name="chat")),
        (
            "LeaderWorkerSet",
            "leaderworkerset.x-k8s.io/v1",
            {},
            Parent(kind="LeaderWorkerSet", name="chat-00001"),
        ),
        ("Rollout", "argoproj.io/v1alpha1", {KNATIVE_SERVICE: "chat"}, None),
        ("Pod", "v1", {}, None),
    ],
)
def test_what_a_controller_of_these_kinds_made_names_the_workload_above(
    kind: str, api_version: str, labels: dict[str, str], parent: Parent | None
) -> None:
    assert owned(kind, api_version, labels).parent == parent
    assert owned(kind, api_version, labels, controller=False).parent is None


def test_kinds_of_other_groups_are_no_workloads() -> None:
    assert is_workload({"apiVersion": "serving.knative.dev/v1", "kind": "Service"})
    assert not is_workload({"apiVersion": "v1", "kind": "Service"})
    assert parse_workload({"apiVersion": "apps/v1", "kind": "Deployment"}).kind == "Deployment"


@pytest.mark.parametrize("odd", [None, 7, "text", [1], {"predictor": [1], "leaderWorkerTemplate": {"size": "x"}}])
def test_fields_of_the_wrong_type_count_as_absent(odd: object) -> None:
    for api_version, kind in (
        ("serving.kserve.io/v1beta1", "InferenceService"),
        ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"),
    ):
        found = workload_parser(api_version, kind)({"metadata": odd, "spec": odd, "status": odd})
        assert (found.spec.containers, found.group_size, found.storage_uri) == ((), 1, "")
