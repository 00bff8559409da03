"""Kinds that a cluster may lack, on a real API server with the CRDs of the real kinds; their controllers are played by the test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from agent.core.names import KNATIVE_SERVICE, KSERVE_SERVICE
from tests.bed import Bed, Object
from tests.bed.bed import PROJECT
from tests.cluster.product import Product, wait_until

pytestmark = pytest.mark.cluster

CRDS = PROJECT / "tests" / "cluster" / "crds"
WARMUPS = "/apis/prewarm.dev/v1alpha1/nodewarmups"
IMAGE = "registry.bed/pause:1"
POD = {"containers": [{"name": "server", "image": IMAGE}], "terminationGracePeriodSeconds": 0}
KNATIVE = "apis/serving.knative.dev/v1/namespaces/{}/services"
KSERVE = "apis/serving.kserve.io/v1beta1/namespaces/{}/inferenceservices"
GROUPS = "apis/leaderworkerset.x-k8s.io/v1/namespaces/{}/leaderworkersets"
DEPLOYMENTS = "apis/apps/v1/namespaces/{}/deployments"


class Space:
    """A namespace to make things in."""

    def __init__(self, bed: Bed, namespace: str) -> None:
        self.bed, self.namespace = bed, namespace

    def make(self, collection: str, name: str, spec: Object, **metadata: Any) -> Object:
        root, _, _ = collection.partition("/namespaces")
        kind = {"services": "Service"}.get(collection.rpartition("/")[2], "")
        kind = kind or {KSERVE: "InferenceService", GROUPS: "LeaderWorkerSet"}.get(collection, "")
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


def test_kinds_that_appear_are_warmed(space: Space) -> None:
    make_kinds(space)
    placed = wait_until(lambda: (p := space.placed()) and len(p) == 3 and p, 60, "three kinds are placed")
    assert set(placed) == {"knative", "kserve", "group"}  # what controllers made of them is no endpoint
    assert len(placed["group"]) == 2
    assert [m["uri"] for m in placed["kserve"][0]["models"]] == ["s3://models/workloads/llm/"]
    assert [i["ref"] for i in placed["kserve"][0]["images"]] == [IMAGE]
    told = wait_until(lambda: space.reasons("kserve").get("Note"), 10, "the second download is told")
    assert "storage-initializer downloads s3://models/workloads/llm/ again" in told


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
