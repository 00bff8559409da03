"""What annotations say on kinds that have more than a pod template."""

from __future__ import annotations

from dataclasses import replace

from agent.demand.annotations import read_endpoint
from agent.demand.endpoint import EndpointReading, ProblemKind
from agent.kube.objects import WorkloadView
from tests.unit.demand.workloads import DEFAULTS, workload


def inference_service(storage_uri: str, **annotations: str) -> WorkloadView:
    return replace(workload({"schedule": "0 9 * * *", **annotations}), kind="InferenceService", storage_uri=storage_uri)


def read(found: WorkloadView) -> EndpointReading:
    return read_endpoint(found, DEFAULTS)


def models(found: WorkloadView) -> list[str]:
    reading = read(found)
    assert reading.endpoint is not None, reading.problems
    return [f"{m.name}={m.uri}" for m in reading.endpoint.models]


def notes(found: WorkloadView) -> str:
    return " ".join(p.message for p in read(found).problems if p.kind is ProblemKind.NOTE)


def test_storage_uri_is_the_model_and_its_second_download_is_reported() -> None:
    found = inference_service("s3://models/llama/8b")
    assert models(found) == ["8b=s3://models/llama/8b/"]
    assert "storage-initializer downloads s3://models/llama/8b/ again at each start" in notes(found)


def test_storage_uri_of_a_file_is_that_file_and_dots_in_a_directory_s_name_make_none() -> None:
    assert models(inference_service("s3://models/llama/m.onnx")) == ["m.onnx=s3://models/llama/m.onnx"]
    assert models(inference_service("s3://models/llama/v3.1-8B")) == ["v3.1-8B=s3://models/llama/v3.1-8B/"]


def test_annotated_models_win_over_storage_uri_and_the_download_is_still_reported() -> None:
    found = inference_service("gs://elsewhere/8b", models="llm=s3://models/llama/8b/")
    assert models(found) == ["llm=s3://models/llama/8b/"]
    assert "downloads gs://elsewhere/8b again" in notes(found)


def test_a_storage_uri_of_another_kind_is_reported_and_images_are_kept_warm() -> None:
    found = inference_service("pvc://weights/8b")
    assert models(found) == []
    assert "'pvc://weights/8b' is not s3://…: only images are kept warm" in notes(found)


def test_a_storage_uri_is_held_to_the_sources_rule_and_must_be_well_formed() -> None:
    for uri, message in (("s3://other/8b", "sources: team-a=s3://other/"), ("s3://models/llama/../x", "path part")):
        reading = read(inference_service(uri))
        assert reading.endpoint is None
        assert message in " ".join(p.message for p in reading.problems if p.kind is ProblemKind.INVALID)


def test_a_group_of_pods_is_kept_warm_on_as_many_nodes_unless_annotated() -> None:
    group = replace(workload({"schedule": "0 9 * * *"}), kind="LeaderWorkerSet", group_size=4, more_images=("ray:1",))
    endpoint = read(group).endpoint
    assert endpoint is not None
    assert endpoint.nodes == 4
    assert "docker.io/library/ray:1" in map(str, endpoint.images)
    annotated = read(replace(group, annotations={**group.annotations, "prewarm.dev/nodes": "2"})).endpoint
    assert annotated is not None
    assert annotated.nodes == 2
