"""Workloads for the demand tests."""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.sources import SourceRule
from agent.demand.annotations import read_endpoint
from agent.demand.endpoint import DemandDefaults, Endpoint, EndpointReading
from agent.kube.objects import ContainerView, PodSpecView, WorkloadView

SOURCES = (SourceRule(namespace="team-a", bucket="models", prefix="llama/"),)
DEFAULTS = DemandDefaults(timezone="Europe/Paris", sources=SOURCES)
SPEC = PodSpecView(
    containers=(
        ContainerView(name="server", image="vllm/vllm-openai:v0.11.0", gpus=2),
        ContainerView(name="proxy", image="registry.k8s.io/pause:3.10", gpus=1),
    ),
    init_containers=(ContainerView(name="setup", image="busybox"),),
)


def workload(
    annotations: Mapping[str, str] | None = None,
    template: Mapping[str, str] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    name: str = "chat",
    namespace: str = "team-a",
    spec: PodSpecView = SPEC,
    deleting: bool = False,
) -> WorkloadView:
    """A Deployment; annotation keys without the prefix."""
    return WorkloadView(
        api_version="apps/v1",
        kind="Deployment",
        namespace=namespace,
        name=name,
        uid=f"uid-{name}",
        annotations={f"prewarm.dev/{k}": v for k, v in (annotations or {}).items()},
        template_annotations={f"prewarm.dev/{k}": v for k, v in (template or {}).items()},
        template_labels=labels or {},
        spec=spec,
        deleting=deleting,
    )


def read(annotations: Mapping[str, str] | None = None, **more: object) -> EndpointReading:
    """Read a workload made as by `workload`."""
    return read_endpoint(workload(annotations, **more), DEFAULTS)  # type: ignore[arg-type]


def endpoint(annotations: Mapping[str, str] | None = None, **more: object) -> Endpoint:
    """Read a workload that must be valid."""
    reading = read(annotations, **more)
    assert reading.endpoint is not None, reading.problems
    return reading.endpoint
