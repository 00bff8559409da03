"""The catalogue of names that prewarm puts on Kubernetes objects. The README tables are checked against it."""

from __future__ import annotations

import re
from collections.abc import Mapping

PREFIX = "prewarm.dev/"
ENDPOINT_PREFIX = "endpoint.prewarm.dev/"

OBJECT_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")  # of most kinds; no slash: fit to be a part of a path

GROUP = "prewarm.dev"
VERSION = "v1alpha1"

LABEL_GPU = PREFIX + "gpu"
LABEL_ENDPOINT_NAME = PREFIX + "endpoint"  # on pod templates: the endpoint's name
LABEL_INJECT = PREFIX + "inject"
LABEL_CALENDAR = PREFIX + "calendar"  # "true" on ConfigMaps in prewarm's namespace that hold a calendar
LABEL_RAISED_FROM = PREFIX + "raised-from"  # on autoscalers: the least number of pods before a window raised it
LABEL_PLACEHOLDER = PREFIX + "placeholder"  # on pods that hold a place: the key of the endpoint it is for
ANNOTATION_BOOT_ID = PREFIX + "boot-id"
ANNOTATION_TAINT_LIFTED = PREFIX + "taint-lifted"  # the agent lifted the taint here: it may put it back

CONDITION_GPU = PREFIX + "GPUHealthy"
CONDITION_CACHE = PREFIX + "CacheReady"

TAINT_NOT_READY = PREFIX + "not-ready"
TAINT_EFFECT = "NoSchedule"

READY = "ready"

# What keeps Karpenter and Cluster Autoscaler from taking a node away, and the field manager that sets it.
KEEP_ANNOTATIONS = ("karpenter.sh/do-not-disrupt", "cluster-autoscaler.kubernetes.io/scale-down-disabled")
KEEP_MANAGER = "prewarm-keep"
SCALE_MANAGER = "prewarm-scale"  # the field manager of minimum scales

# Labels by which pods, and what they are made of, name the workload that people wrote.
KNATIVE_SERVICE = "serving.knative.dev/service"
KSERVE_SERVICE = "serving.kserve.io/inferenceservice"
LEADER_WORKER_SET = "leaderworkerset.sigs.k8s.io/name"

NODE_POOL_LABELS = (
    "karpenter.sh/nodepool",
    "eks.amazonaws.com/nodegroup",
    "cloud.google.com/gke-nodepool",
    "kubernetes.azure.com/agentpool",
    "node.kubernetes.io/instance-type",
)


def is_ours(key: str) -> bool:
    """Say whether a label, annotation, condition or taint key belongs to prewarm."""
    return key.startswith((PREFIX, ENDPOINT_PREFIX))


def endpoint_label(namespace: str, name: str) -> str:
    """Return the node label of an endpoint: `endpoint.prewarm.dev/<namespace>.<name>`."""
    return f"{ENDPOINT_PREFIX}{namespace}.{name}"


def node_pool(labels: Mapping[str, str]) -> str:
    """Return the node's pool by the first label that names one."""
    return next((labels[key] for key in NODE_POOL_LABELS if labels.get(key)), "none")
