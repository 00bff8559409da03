"""Kubernetes objects as prewarm sees them: frozen values, parsed once from JSON by `agent.kube.parse`.

`resource_version` takes no part in equality: a heartbeat that changes nothing else wakes nobody. So the version in a cell may
be older than the object's; guard writes with the values they rest on (the `test` of a JSON patch), not with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from agent.core.assignment import Assignment
from agent.core.names import ANNOTATION_TAINT_LIFTED, TAINT_NOT_READY


@dataclass(frozen=True, slots=True, kw_only=True)
class Taint:
    """One node taint."""

    key: str
    effect: str
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition of a Node or Pod; `status` is True, False or Unknown."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    since: datetime | None = None  # lastTransitionTime


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A Node. `taints` keeps the order of the API (the list is atomic)."""

    name: str
    uid: str = ""
    resource_version: str = field(default="", compare=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False
    conditions: tuple[Condition, ...] = ()
    allocatable: Mapping[str, str] = field(default_factory=dict)
    boot_id: str = ""
    kept: bool = False  # KEEP_MANAGER asks autoscalers to leave it
    created: datetime | None = None
    deleting: bool = False

    @property
    def ready(self) -> bool:
        """True if the kubelet says Ready."""
        return any(c.type == "Ready" and c.status == "True" for c in self.conditions)

    @property
    def starts_up(self) -> bool:
        """True while the start-up taint stands, whatever its effect: once an agent has lifted it, one that stands was put back."""
        return ANNOTATION_TAINT_LIFTED not in self.annotations and any(t.key == TAINT_NOT_READY for t in self.taints)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerView:
    """One container of a pod spec."""

    name: str
    image: str
    ports: tuple[int, ...] = ()
    has_readiness_probe: bool = False
    gpus: int = 0  # limit or request of nvidia.com/gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """One toleration; empty key with Exists tolerates everything. `seconds` is how long a pod that runs there stays, None for ever."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""
    seconds: int | None = None

    def tolerates(self, taint: Taint) -> bool:
        """Say whether a pod with this toleration may run in spite of `taint`, as the scheduler's TaintToleration does."""
        if self.effect not in ("", taint.effect):
            return False
        if self.operator == "Exists":
            return self.key in ("", taint.key)
        return self.operator in ("", "Equal") and (self.key, self.value) == (taint.key, taint.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRequirement:
    """One match expression of a node selector term; `on_field` for matchFields (metadata.name)."""

    key: str
    operator: str  # In NotIn Exists DoesNotExist Gt Lt
    values: tuple[str, ...] = ()
    on_field: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSpecView:
    """What prewarm reads of a pod spec. `required_terms` are ORed; each term's requirements are ANDed."""

    containers: tuple[ContainerView, ...] = ()
    init_containers: tuple[ContainerView, ...] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    required_terms: tuple[tuple[NodeRequirement, ...], ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    runtime_class: str = ""
    service_account: str = "default"
    pull_secrets: tuple[str, ...] = ()
    requests: Mapping[str, str] = field(default_factory=dict)  # of a whole pod, without its runtime's overhead


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The workload that an object was made for, in its namespace; `part` of an InferenceService: predictor, transformer."""

    kind: str
    name: str
    part: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadView:
    """A workload of any kind that `agent.kube.workloads` reads."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    resource_version: str = field(default="", compare=False)
    annotations: Mapping[str, str] = field(default_factory=dict)
    template_labels: Mapping[str, str] = field(default_factory=dict)
    template_annotations: Mapping[str, str] = field(default_factory=dict)
    spec: PodSpecView = PodSpecView()
    storage_uri: str = ""  # where an InferenceService says that its model is
    more_images: tuple[str, ...] = ()  # of its pods, beside those of `spec`
    serving: str = ""  # its serving container, where that is known
    group_size: int = 1  # pods that serve together, each on a node
    parent: Parent | None = None  # None for what people wrote
    created: datetime | None = None
    running: bool = False  # any of its pods exists
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStatusView:
    """The state of one container; times are whole seconds, as the API gives them."""

    name: str
    ready: bool = False
    restarts: int = 0
    started_at: datetime | None = None  # state.running.startedAt


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """A Pod on this node (agent) or an agent pod (planner)."""

    namespace: str
    name: str
    uid: str
    node: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    owner_kind: str = ""
    owner_name: str = ""
    phase: str = ""
    pod_ip: str = ""
    created: datetime | None = None
    deleting: bool = False
    memory_request_bytes: int = 0
    spec: PodSpecView = PodSpecView()
    conditions: tuple[Condition, ...] = ()
    containers: tuple[ContainerStatusView, ...] = ()

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of that type, or None."""
        return next((c for c in self.conditions if c.type == kind), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What a node's agent says of itself that plans rest on; 0 where it says nothing.

    `missing_bytes` is, by image reference or model URI, what is still to come; an item that is not told is not known.
    `ready_at` has, by key, the endpoints it speaks of: when one is ready at best that misses its next window, else None. It is empty
    while the agent has not seen the newest spec.
    """

    pace_bytes_per_second: int = 0
    capacity_bytes: int = 0
    missing_bytes: Mapping[str, int] = field(default_factory=dict)
    ready_at: Mapping[str, datetime | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeWarmupView:
    """A NodeWarmup's spec. `assignment` is None where the spec cannot be read, and `problem` then says why."""

    name: str
    uid: str = ""
    resource_version: str = field(default="", compare=False)
    owner_uid: str = ""  # the Node's UID
    assignment: Assignment | None = None
    problem: str = ""
    generation: int = 0  # of the spec: no status changes it
    written_at: datetime | None = None  # the same as a time
    observed_generation: int = 0
    report: NodeReport = NodeReport()
    status: Mapping[str, object] = field(default_factory=dict)  # as it stands, to compare before writing


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """What an Event is about."""

    api_version: str
    kind: str
    name: str
    uid: str = ""
    namespace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """An Event as stored."""

    name: str
    reason: str = ""
    message: str = ""
    count: int = 0
    last: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """A coordination Lease; `renewed` is compared for change only, clocks of two machines are never compared."""

    name: str
    resource_version: str
    holder: str = ""
    duration_seconds: int = 0
    renewed: str = ""
    acquired: str = ""
    transitions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeClassView:
    """A RuntimeClass: pods name the class, the container runtime knows the handler."""

    name: str
    handler: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigMapView:
    """A ConfigMap; what it holds as binary is left out."""

    namespace: str
    name: str
    uid: str = ""
    resource_version: str = field(default="", compare=False)
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryView:
    """A ConfigMap by what it holds as binary; `texts` are the keys of the rest."""

    namespace: str
    name: str
    resource_version: str = field(default="", compare=False)
    binary: Mapping[str, bytes] = field(default_factory=dict)
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSetView:
    """A DaemonSet: what it mounts of the node tells what it is. `owner` is KIND/NAME of what made it, "" for a person."""

    namespace: str
    name: str
    owner: str = ""
    images: tuple[str, ...] = ()
    host_paths: tuple[str, ...] = ()
    tolerations: tuple[Toleration, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyView:
    """A ValidatingAdmissionPolicy; `concerns` are the expressions of its match conditions, `warnings` the type checker's."""

    name: str
    concerns: tuple[str, ...] = ()
    fails_closed: bool = True
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBindingView:
    """A ValidatingAdmissionPolicyBinding; without `denies` it only warns or audits."""

    name: str
    policy: str
    denies: bool = False
