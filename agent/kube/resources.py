"""The kinds prewarm reads and writes, and where the API server serves them."""

from __future__ import annotations

from dataclasses import replace

from agent.core.names import GROUP, VERSION
from agent.kube.api import Resource
from agent.kube.objects import (
    BinaryView,
    ConfigMapView,
    DaemonSetView,
    EventView,
    LeaseView,
    NodeView,
    NodeWarmupView,
    PodView,
    PolicyBindingView,
    PolicyView,
    RuntimeClassView,
    WorkloadView,
)
from agent.kube.parse import (
    parse_binary,
    parse_configmap,
    parse_daemonset,
    parse_event,
    parse_lease,
    parse_node,
    parse_nodewarmup,
    parse_nodewarmup_spec,
    parse_pod,
    parse_policy,
    parse_policy_binding,
    parse_runtime_class,
)
from agent.kube.workloads import workload_parser

NODES: Resource[NodeView] = Resource(group="api/v1", plural="nodes", parse=parse_node, namespaced=False)
PODS: Resource[PodView] = Resource(group="api/v1", plural="pods", parse=parse_pod)
EVENTS: Resource[EventView] = Resource(group="api/v1", plural="events", parse=parse_event)
CONFIGMAPS: Resource[ConfigMapView] = Resource(group="api/v1", plural="configmaps", parse=parse_configmap)
BINARIES: Resource[BinaryView] = Resource(group="api/v1", plural="configmaps", parse=parse_binary)
LEASES: Resource[LeaseView] = Resource(group="apis/coordination.k8s.io/v1", plural="leases", parse=parse_lease)
DEPLOYMENTS: Resource[WorkloadView] = Resource(
    group="apis/apps/v1", plural="deployments", parse=workload_parser("apps/v1", "Deployment")
)
STATEFULSETS: Resource[WorkloadView] = Resource(
    group="apis/apps/v1", plural="statefulsets", parse=workload_parser("apps/v1", "StatefulSet")
)
KNATIVE_SERVICES: Resource[WorkloadView] = Resource(
    group="apis/serving.knative.dev/v1", plural="services", parse=workload_parser("serving.knative.dev/v1", "Service")
)
INFERENCE_SERVICES: Resource[WorkloadView] = Resource(
    group="apis/serving.kserve.io/v1beta1",
    plural="inferenceservices",
    parse=workload_parser("serving.kserve.io/v1beta1", "InferenceService"),
)
LEADER_WORKER_SETS: Resource[WorkloadView] = Resource(
    group="apis/leaderworkerset.x-k8s.io/v1",
    plural="leaderworkersets",
    parse=workload_parser("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"),
)
NODEWARMUPS: Resource[NodeWarmupView] = Resource(
    group=f"apis/{GROUP}/{VERSION}", plural="nodewarmups", parse=parse_nodewarmup, namespaced=False
)
NODEWARMUP_SPECS: Resource[NodeWarmupView] = replace(NODEWARMUPS, parse=parse_nodewarmup_spec)
RUNTIMECLASSES: Resource[RuntimeClassView] = Resource(
    group="apis/node.k8s.io/v1", plural="runtimeclasses", parse=parse_runtime_class, namespaced=False
)
DAEMONSETS: Resource[DaemonSetView] = Resource(group="apis/apps/v1", plural="daemonsets", parse=parse_daemonset)
_ADMISSION = "apis/admissionregistration.k8s.io/v1"
POLICIES: Resource[PolicyView] = Resource(
    group=_ADMISSION, plural="validatingadmissionpolicies", parse=parse_policy, namespaced=False
)
POLICY_BINDINGS: Resource[PolicyBindingView] = Resource(
    group=_ADMISSION, plural="validatingadmissionpolicybindings", parse=parse_policy_binding, namespaced=False
)
