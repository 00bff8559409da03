"""Placeholders on a real scheduler and kubelet: they wait for a node, hold it, and make way for the pod they are for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from typing import Any

import pytest

from agent.core.names import LABEL_PLACEHOLDER
from tests.bed import ApiError, Bed, Object
from tests.bed.bed import PROJECT
from tests.cluster.product import NAMESPACE, Product, deployment, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

SPACE = "prewarm-placeholders"
PAUSE = "registry.bed/pause:1"
GPU = "nvidia.com/gpu"
POOL = "test/provision"
ON = ("PREWARM_PROVISION_NODES=3", f"PREWARM_PROVISION_IMAGE={PAUSE}")


@pytest.fixture
def allowed(bed: Bed, product: Product) -> Iterator[None]:
    """What an operator does to allow placeholders, and its undoing."""
    planner = ("-n", NAMESPACE, "set", "env", "deployment/prewarm-planner")
    bed.kubectl("apply", "-k", str(PROJECT / "deploy" / "provision"))
    bed.kubectl(*planner, *ON)
    product.wait_until_running()
    yield
    bed.kubectl(*planner, *(f"{pair.partition('=')[0]}-" for pair in ON))
    product.wait_until_running()
    bed.kubectl("delete", "--wait=false", "-k", str(PROJECT / "deploy" / "provision"))


@pytest.fixture
def pool(bed: Bed) -> Iterator[str]:
    """A node with one GPU and a pool of its own."""
    node = bed.nodes[-1]
    bed.give_gpus(node, 1)
    bed.kubectl("label", "node", node, f"{POOL}=full")
    yield node
    bed.kubectl("label", "node", node, f"{POOL}-")
    bed.give_gpus(node, 0)


class Starts:
    """Watches the pods of a namespace; `at` has when each was created, bound and running (monotonic seconds)."""

    def __init__(self, bed: Bed, namespace: str) -> None:
        self._bed, self._namespace = bed, namespace
        self.at: dict[str, dict[str, float]] = {}
        self.node: dict[str, str] = {}
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError, HTTPException, ApiError):  # other tests may end the API server before the watch
            for event in self._bed.api.watch(f"/api/v1/namespaces/{self._namespace}/pods", 280):
                name, pod = event.object["metadata"]["name"], event.object
                seen = self.at.setdefault(name, {})
                seen.setdefault("created", event.at)
                if node := pod["spec"].get("nodeName"):
                    self.node[name] = node
                    seen.setdefault("bound", event.at)
                if pod["status"].get("phase") == "Running":
                    seen.setdefault("running", event.at)

    def running(self, prefix: str) -> tuple[str, dict[str, float]] | None:
        return next(((n, t) for n, t in self.at.items() if n.startswith(prefix) and "running" in t), None)


def test_a_placeholder_waits_for_a_node_holds_it_and_makes_way_within_five_seconds(
    bed: Bed, product: Product, allowed: None, pool: str, namespace: str
) -> None:
    bed.apply(filling(), namespace)
    wait_until(lambda: phase(bed, namespace, "filler") == "Running", 60, "the node is full")
    starts_at = (datetime.now(UTC) + timedelta(seconds=90 + 59)).replace(second=0, microsecond=0)
    ends = starts_at + timedelta(seconds=1)
    for name, where in (("late", "full"), ("nowhere", "none")):
        make(bed, namespace, name, where, starts_at)

    wait_until(
        lambda: set(placeholders(bed)) == {f"{namespace}.late", f"{namespace}.nowhere"}, 60, "nodes are asked for"
    )
    wait_until(lambda: "Provisioning" in reasons(bed, namespace, "late"), 60, "that is told")
    assert node_of(placeholders(bed)[f"{namespace}.late"]) == ""
    bed.api.delete(f"/api/v1/namespaces/{namespace}/pods/filler")  # as good as a node that comes
    wait_until(lambda: node_of(placeholders(bed).get(f"{namespace}.late", {})) == pool, 60, "the node is held")
    wait_until(
        lambda: phase(bed, SPACE, placeholders(bed)[f"{namespace}.late"]["metadata"]["name"]) == "Running", 60, "up"
    )

    starts = Starts(bed, namespace)
    time.sleep(1)  # for the watch to stand
    bed.kubectl("-n", namespace, "scale", "deployment/late", "--replicas=1")
    name, at = wait_until(lambda: starts.running("late-"), 30, "the pod runs")
    assert starts.node[name] == pool
    print(f"created to bound {at['bound'] - at['created']:.2f} s, to running {at['running'] - at['created']:.2f} s")
    assert at["running"] - at["created"] < 5
    wait_until(lambda: f"{namespace}.late" not in placeholders(bed), 20, "its placeholder is gone")
    refuses_other_pods(bed, namespace)
    assert datetime.now(UTC) < ends, "the window was too short for what is tested in it"
    assert f"{namespace}.nowhere" in placeholders(bed)
    assert f"{namespace}.late" not in placeholders(bed)  # not made again while there is a pod

    time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()))
    wait_until(lambda: not placeholders(bed), 30, "placeholders go with the window")
    told = reasons(bed, namespace, "nowhere")
    assert {"Unplaceable", "Provisioning", "NoNodeCame"} <= told


def filling() -> Object:
    container = {"name": "c", "image": PAUSE, "resources": {"limits": {GPU: "1"}}}
    spec = {"nodeSelector": {POOL: "full"}, "containers": [container], "terminationGracePeriodSeconds": 0}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "filler"}, "spec": spec}


def make(bed: Bed, namespace: str, name: str, pool: str, starts: datetime) -> None:
    """A workload at zero replicas whose window is due now and ends a second after `starts`."""
    window = {
        "prewarm.dev/schedule": f"{starts.minute} {starts.hour} * * *",
        "prewarm.dev/lead": "1h",
        "prewarm.dev/window": "1s",
        "prewarm.dev/provision": "on",
    }
    made = deployment(name, window, image=PAUSE, gpus=1)
    pod: dict[str, Any] = made["spec"]["template"]["spec"]
    pod["nodeSelector"] = {POOL: pool}
    pod["containers"] = [{"name": "server", "image": PAUSE, "resources": {"limits": {GPU: "1"}}}]
    bed.apply(made, namespace)


def refuses_other_pods(bed: Bed, namespace: str) -> None:
    """The planner's own token makes no other pod, here or elsewhere."""
    pods = bed.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/component=planner")
    planner = bed.api.as_account("prewarm-planner", NAMESPACE, pods["items"][0]["metadata"]["name"])
    spec = {"priorityClassName": "prewarm-placeholder", "containers": [{"name": "c", "image": PAUSE}]}
    for space in (SPACE, namespace, NAMESPACE):
        body = {"metadata": {"name": "other", "labels": {LABEL_PLACEHOLDER: "a.b"}}, "spec": spec}
        with pytest.raises(ApiError) as refused:
            planner.post(f"/api/v1/namespaces/{space}/pods", body)
        assert refused.value.status == 403


def placeholders(bed: Bed) -> dict[str, Object]:
    """Those that are not on their way out, by endpoint."""
    found = bed.api.get(f"/api/v1/namespaces/{SPACE}/pods")["items"]
    alive = (p for p in found if "deletionTimestamp" not in p["metadata"])
    return {p["metadata"]["labels"][LABEL_PLACEHOLDER]: p for p in alive}


def node_of(pod: Object) -> str:
    node: str = pod.get("spec", {}).get("nodeName", "")
    return node


def phase(bed: Bed, namespace: str, name: str) -> str:
    found: str = bed.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")["status"].get("phase", "")
    return found


def reasons(bed: Bed, namespace: str, name: str) -> set[str]:
    events = bed.api.get(f"/api/v1/namespaces/{namespace}/events")["items"]
    return {e["reason"] for e in events if e["involvedObject"]["name"] == name}
