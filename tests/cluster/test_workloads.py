"""Kinds that a cluster may lack, nodes kept for windows, minimum scales: on a real API server, with the real kinds' CRDs.

The controllers of Knative, KServe, LeaderWorkerSet and KEDA are played by the test; HorizontalPodAutoscalers have their own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.core.names import KEEP_ANNOTATIONS, KNATIVE_SERVICE, KSERVE_SERVICE
from tests.bed import APPLY_PATCH, Bed, Object
from tests.bed.bed import PROJECT
from tests.cluster.product import NAMESPACE, Product, wait_until

pytestmark = pytest.mark.cluster

CRDS = PROJECT / "tests" / "cluster" / "crds"
WARMUPS = "/apis/prewarm.dev/v1alpha1/nodewarmups"
IMAGE = "registry.bed/pause:1"
POD = {"containers": [{"name": "server", "image": IMAGE}], "terminationGracePeriodSeconds": 0}
KNATIVE = "apis/serving.knative.dev/v1/namespaces/{}/services"
KSERVE = "apis/serving.kserve.io/v1beta1/namespaces/{}/inferenceservices"
GROUPS = "apis/leaderworkerset.x-k8s.io/v1/namespaces/{}/leaderworkersets"
DEPLOYMENTS = "apis/apps/v1/namespaces/{}/deployments"
HPAS = "apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers"
KEDA = "apis/keda.sh/v1alpha1/namespaces/{}/scaledobjects"
KNATIVE_SCALERS = "apis/autoscaling.internal.knative.dev/v1alpha1/namespaces/{}/podautoscalers"
SCALED = ("scaled", "hpa", "keda", "owned", "asked")  # the first by Knative
MIN_SCALE = "autoscaling.knative.dev/min-scale"


class Space:
    """A namespace to make things in."""

    def __init__(self, bed: Bed, namespace: str) -> None:
        self.bed, self.namespace = bed, namespace

    def make(self, collection: str, name: str, spec: Object, **metadata: Any) -> Object:
        root, _, _ = collection.partition("/namespaces")
        kind = {"services": "Service", "podautoscalers": "PodAutoscaler"}.get(collection.rpartition("/")[2], "")
        kind = kind or {KSERVE: "InferenceService", GROUPS: "LeaderWorkerSet", KEDA: "ScaledObject"}.get(collection, "")
        typed = {"apiVersion": root.removeprefix("apis/"), "kind": kind} if kind else {}
        body = {**typed, "metadata": {"name": name, **metadata}, "spec": spec}
        return self.bed.api.post("/" + collection.format(self.namespace), body)

    def get(self, collection: str, name: str) -> Object:
        return self.bed.api.get(f"/{collection.format(self.namespace)}/{name}")

    def child(self, name: str, owner: Object, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
        """A Deployment as a controller makes it of `owner`, annotations passed down."""
        meta = owner["metadata"]
        owners = [
            {
                "apiVersion": owner["apiVersion"],
                "kind": owner["kind"],
                "name": meta["name"],
                "uid": meta["uid"],
                "controller": True,
            }
        ]
        self.make(DEPLOYMENTS, name, deployment(name, annotations), labels=labels, ownerReferences=owners)

    def reasons(self, name: str) -> dict[str, str]:
        events = self.bed.api.get(f"/api/v1/namespaces/{self.namespace}/events")["items"]
        return {e["reason"]: e["message"] for e in events if e["involvedObject"]["name"] == name}

    def placed(self) -> dict[str, list[Object]]:
        """Endpoints of this namespace by name, as they stand on each node that has them."""
        found: dict[str, list[Object]] = {}
        for warmup in self.bed.api.get(WARMUPS)["items"]:
            for endpoint in warmup["spec"].get("endpoints", []):
                if endpoint["namespace"] == self.namespace:
                    found.setdefault(endpoint["name"], []).append({**endpoint, "node": warmup["metadata"]["name"]})
        return found


def deployment(name: str, annotations: Mapping[str, str], replicas: int = 0) -> Object:
    metadata = {"labels": {"app": name}, "annotations": dict(annotations)}
    template = {"metadata": metadata, "spec": POD}
    return {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}


@pytest.fixture
def space(bed: Bed, product: Product, namespace: str) -> Iterator[Space]:
    """The CRDs, installed while the planner runs."""
    bed.kubectl("apply", "-f", str(CRDS))
    names = [f"crd/{c['metadata']['name']}" for c in crds(bed)]
    bed.kubectl("wait", "--for=condition=Established", *names, "--timeout=30s")
    yield Space(bed, namespace)
    bed.kubectl("delete", "--wait=false", *names)


def crds(bed: Bed) -> list[Object]:
    found = bed.api.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]
    return [c for c in found if c["spec"]["group"] != "prewarm.dev"]


def test_kinds_that_appear_are_warmed_and_windows_keep_nodes_and_raise_minimum_scales(
    bed: Bed, product: Product, space: Space
) -> None:
    make_kinds(space)
    placed = wait_until(lambda: (p := space.placed()) and len(p) == 3 and p, 60, "three kinds are placed")
    assert set(placed) == {"knative", "kserve", "group"}  # what controllers made of them is no endpoint
    assert len(placed["group"]) == 2
    assert [m["uri"] for m in placed["kserve"][0]["models"]] == ["s3://models/workloads/llm/"]
    assert [i["ref"] for i in placed["kserve"][0]["images"]] == [IMAGE]
    told = wait_until(lambda: space.reasons("kserve").get("Note"), 10, "the second download is told")
    assert "storage-initializer downloads s3://models/workloads/llm/ again" in told

    ends = make_scaled(space)
    wait_until(lambda: least(space) == ["2", 2, 2], 30, "minimum scales are raised")
    wait_until(lambda: "LeftAlone" in space.reasons("owned"), 30, "what is somebody else's is told")
    wait_until(lambda: "WouldRaise" in space.reasons("asked"), 30, "what would be done is told")
    nodes = {e["node"] for name, found in space.placed().items() if name in SCALED for e in found}
    assert nodes
    wait_until(lambda: all(kept(bed, n) for n in nodes), 10, "nodes of due windows are kept")
    bed.kubectl(
        *("-n", NAMESPACE, "delete", "pod", "-l", "app.kubernetes.io/component=planner", "--force", "--grace-period=0")
    )
    wait_until(lambda: space.get(DEPLOYMENTS, "hpa")["spec"]["replicas"] == 2, 40, "the real autoscaler follows")
    assert datetime.now(UTC) < ends, "the window was too short for what is tested in it"

    time.sleep((ends - datetime.now(UTC)).total_seconds())
    wait_until(lambda: least(space) == [None, 1, None], 40, "the next planner restores them")
    wait_until(lambda: not any(kept(bed, n) for n in nodes), 20, "nodes are let go")
    untouched = [space.get(HPAS, name) for name in ("owned", "asked")]
    assert [h["spec"]["minReplicas"] for h in untouched] == [1, 1]
    assert not any("prewarm.dev/raised-from" in h["metadata"].get("labels", {}) for h in untouched)
    product.wait_until_running()


def make_kinds(space: Space) -> None:
    """A workload of each kind that a cluster may lack, with what its controllers would make of it."""
    space.bed.s3.put("models", "workloads/llm/weights.bin", b"w" * 1000)
    window = {"prewarm.dev/schedule": "0 0 1 1 *"}
    template = {"metadata": {"annotations": window}, "spec": POD}
    service = space.make(KNATIVE, "knative", {"template": template})
    revision = {"apiVersion": "serving.knative.dev/v1", "kind": "Revision", "metadata": service["metadata"]}
    space.child("knative-00001-deployment", revision, {KNATIVE_SERVICE: "knative"}, window)
    model = {"modelFormat": {"name": "huggingface"}, "storageUri": "s3://models/workloads/llm"}
    kserve = space.make(KSERVE, "kserve", {"predictor": {"model": model}}, annotations=window)
    space.child("kserve-predictor", kserve, {KSERVE_SERVICE: "kserve", "component": "predictor"}, window)
    space.make(GROUPS, "group", {"leaderWorkerTemplate": {"size": 2, "workerTemplate": template}})


def make_scaled(space: Space) -> datetime:
    """Workloads with autoscalers, in a window that is due now, and when it ends: a second after a full minute."""
    starts = (datetime.now(UTC) + timedelta(seconds=80 + 59)).replace(second=0, microsecond=0)
    annotations = {
        "prewarm.dev/schedule": f"{starts.minute} {starts.hour} * * *",
        "prewarm.dev/lead": "1h",
        "prewarm.dev/window": "1s",
        "prewarm.dev/min-scale": "apply",
        "prewarm.dev/replicas": "2",
    }
    # Autoscalers first: a workload whose autoscaler comes after it is looked at again within a minute only.
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "scaled-00001-deployment"}
    labels = {KNATIVE_SERVICE: "scaled"}
    space.make(KNATIVE_SCALERS, "scaled-00001", {"scaleTargetRef": target, "reachability": "Reachable"}, labels=labels)
    for name in ("hpa", "asked"):
        spec = {"scaleTargetRef": target | {"name": name}, "maxReplicas": 3}
        body = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": name},
            "spec": spec,
        }
        path = f"/{HPAS.format(space.namespace)}/{name}?fieldManager=owner"
        space.bed.api.patch(path, body, APPLY_PATCH)
    space.make(HPAS, "owned", {"scaleTargetRef": target | {"name": "owned"}, "maxReplicas": 3})
    space.make(KEDA, "keda", {"scaleTargetRef": {"name": "keda"}, "triggers": []})
    service = space.make(KNATIVE, "scaled", {"template": {"metadata": {"annotations": annotations}, "spec": POD}})
    assert service["spec"]["template"]["metadata"]["annotations"] == annotations
    for name in SCALED[1:]:
        mode = annotations | ({"prewarm.dev/min-scale": "recommend"} if name == "asked" else {})
        space.make(DEPLOYMENTS, name, deployment(name, mode, replicas=1 if name == "hpa" else 0))
    return starts + timedelta(seconds=1)


def least(space: Space) -> list[object]:
    """The least number of pods of the three kinds of autoscaler."""
    knative = space.get(KNATIVE_SCALERS, "scaled-00001")["metadata"].get("annotations", {})
    hpa, keda = space.get(HPAS, "hpa")["spec"], space.get(KEDA, "keda")["spec"]
    return [knative.get(MIN_SCALE), hpa.get("minReplicas"), keda.get("minReplicaCount")]


def kept(bed: Bed, node: str) -> bool:
    annotations = bed.api.get(f"/api/v1/nodes/{node}")["metadata"].get("annotations", {})
    return any(key in annotations for key in KEEP_ANNOTATIONS)
