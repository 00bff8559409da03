"""Workloads with what controllers made of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from agent.fleet.families import whole
from agent.kube.objects import ContainerView, Parent, PodSpecView, WorkloadView
from tests.unit.demand.workloads import workload

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def service(kind: str = "InferenceService", image: str = "") -> WorkloadView:
    spec = PodSpecView(containers=(ContainerView(name="kserve-container", image=image),))
    return replace(workload({"schedule": "0 9 * * *"}, spec=spec), kind=kind)


def made(
    name: str, image: str, *, of: str = "InferenceService", part: str = "predictor", hour: int = 1
) -> WorkloadView:
    containers = (ContainerView(name="server", image=image), ContainerView(name="queue-proxy", image="queue:1"))
    child = workload({"schedule": "0 9 * * *"}, name=name, spec=PodSpecView(containers=containers))
    parent = Parent(kind=of, name="chat", part=part)
    return replace(child, parent=parent, created=NOON.replace(hour=hour))


def images(found: WorkloadView) -> list[str]:
    return [c.image for c in found.spec.containers]


def test_a_workload_nothing_else_made_is_as_it_was() -> None:
    plain = workload({"schedule": "0 9 * * *"})
    assert whole([plain])[0] is plain


def test_the_pods_of_an_inference_service_are_those_of_its_newest_predictor() -> None:
    children = [
        made("old", "runtime:1", hour=1),
        made("new", "runtime:2", hour=2),
        made("transformer", "transformer:1", part="transformer", hour=3),
    ]
    (found,) = whole([service(), *children])
    assert images(found) == ["runtime:2", "queue:1"]
    assert found.serving == "server"
    assert not found.running


def test_what_it_says_itself_stands_until_its_controller_has_made_something() -> None:
    (found,) = whole([service("Service", "vllm:1"), made("elsewhere", "x:1", of="LeaderWorkerSet")])
    assert images(found) == ["vllm:1"]


def test_any_pod_of_any_part_makes_it_run() -> None:
    idle, busy = made("old", "a:1"), replace(made("new", "b:1"), running=True)
    group = replace(service("LeaderWorkerSet", "worker:1"), kind="LeaderWorkerSet")
    ours = [replace(c, kind="StatefulSet", parent=Parent(kind="LeaderWorkerSet", name="chat")) for c in (idle, busy)]
    (found,) = whole([group, *ours])
    assert found.running
    assert images(found) == ["worker:1"]


def test_children_are_matched_within_their_namespace() -> None:
    stranger = replace(made("new", "evil:1"), namespace="other")
    (found,) = whole([service(), stranger])
    assert images(found) == [""]
