"""Everything a node leans on goes away while it warms: it works on with what it has, claims nothing false, and goes on after."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.core.names import READY, endpoint_label
from tests.bed import Bed, Object
from tests.bed.api import condition
from tests.bed.process import words
from tests.cluster import product as installed
from tests.cluster.product import NAMESPACE, Product, deployment, node_labels, wait_label, wait_until
from tests.cluster.watching import LabelWatch

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

IMAGE = "registry.bed/outage-server:1"
MODEL_BYTES = 120_000_000  # of its ranges more than half are still to come when the first are here
MBIT = 100
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/prewarm-planner"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outages:
    """A namespace with one endpoint that is ready, and models to bring in while something is away."""

    bed: Bed
    product: Product
    namespace: str

    def annotate(self, name: str, model: str, *, image: str = IMAGE) -> None:
        """Create a Deployment whose window is open."""
        annotations = {"prewarm.dev/models": f"llm=s3://models/outage/{model}/", "prewarm.dev/schedule": "* * * * *"}
        self.bed.apply(deployment(name, annotations, image=image), self.namespace)

    def remove(self, name: str) -> None:
        self.bed.kubectl("-n", self.namespace, "delete", "deployment", name, "--wait=false")

    def label(self, name: str) -> str:
        return endpoint_label(self.namespace, name)

    def ready_on(self, name: str, seconds: float = 60) -> str:
        """The node that says it is ready."""
        found: list[str] = wait_until(
            lambda: [n for n in self.bed.nodes if node_labels(self.bed, n).get(self.label(name)) == READY],
            seconds,
            f"{name} ready",
        )
        return found[0]

    def settled_on(self, name: str) -> str:
        """The one node that is asked for it and ready: after an outage, that of the API server too, there can be two for a while.

        Every kubelet has been heard of since: one that pauses after such an outage has its node turn NotReady later.
        """
        since = datetime.now(UTC)

        def settled() -> list[str]:
            asked = self.asked(name)
            ready = [n for n in self.bed.nodes if node_labels(self.bed, n).get(self.label(name)) == READY]
            nodes = self.bed.api.get("/api/v1/nodes")["items"]
            heard = all(condition(n, "Ready") == "True" and self.heard_of(n) > since for n in nodes)
            return ready if ready == asked and heard else []

        found: list[str] = wait_until(settled, 120, f"{name} is ready on the only node asked for it, all nodes Ready")
        return found[0]

    def heard_of(self, node: Object) -> datetime:
        """When its kubelet renewed its Lease."""
        lease = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node['metadata']['name']}"
        return datetime.fromisoformat(self.bed.api.get(lease)["spec"]["renewTime"])

    def asked(self, name: str) -> list[str]:
        """The nodes whose NodeWarmups name the endpoint."""
        return [
            w["metadata"]["name"]
            for w in self.bed.api.get("/apis/prewarm.dev/v1alpha1/nodewarmups")["items"]
            for e in w.get("spec", {}).get("endpoints", [])
            if (e["namespace"], e["name"]) == (self.namespace, name)
        ]

    def assigned_to(self, name: str) -> str:
        """The node whose NodeWarmup names the endpoint."""
        found: list[str] = wait_until(lambda: self.asked(name), 30, f"{name} is assigned to a node")
        return found[0]

    def digest(self, node: str, name: str) -> str:
        """The model version that the node's assignment names."""
        spec = self.bed.api.get(f"/apis/prewarm.dev/v1alpha1/nodewarmups/{node}")["spec"]
        found: str = next(e for e in spec["endpoints"] if (e["namespace"], e["name"]) == (self.namespace, name))[
            "models"
        ][0]["digest"]
        return found

    def hydrating(self, node: str, digest: str) -> None:
        """Wait until a part of the version is on the node's disk."""
        journal = self.root(node) / "staging" / digest / "journal"
        wait_until(lambda: journal.exists() and len(journal.read_bytes().splitlines()) > 1, 30, "it hydrates")
        assert not self.committed(node, digest)

    def committed(self, node: str, digest: str) -> bool:
        return (self.root(node) / "store" / digest / "manifest.json").exists()

    def root(self, node: str) -> Path:
        return self.bed.disk(node) / "var/lib/prewarm"

    def pids(self, node: str, command: str) -> list[int]:
        """This machine's pids of `prewarm COMMAND` on a node."""
        found = self.bed.node_pids(node, "prewarm")
        return [pid for pid in found if command in words(pid, "cmdline")]

    def event(self, name: str, reason: str, said: str) -> None:
        """Wait for an Event on a Deployment."""
        path = f"/api/v1/namespaces/{self.namespace}/events?fieldSelector=involvedObject.name={name},reason={reason}"
        wait_until(
            lambda: [e for e in self.bed.api.get(path)["items"] if said in e["message"]], 60, f"{reason}: {said}"
        )


@pytest.fixture(scope="module")
def outages(bed: Bed, product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outages]:
    installed.push_server_image(bed, IMAGE, padding_bytes=1_000_000)
    for name in ("api", "restart", "s3", "later", "small"):
        size = 2_000_000 if name in ("small", "later") else MODEL_BYTES
        installed.put_model(bed, f"outage/{name}", size, version=name, directory=tmp_path_factory.mktemp(name))
    namespace = f"outages-{os.getpid()}"
    bed.api.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
    made = Outages(bed=bed, product=product, namespace=namespace)
    made.annotate("steady", "small")
    made.ready_on("steady")
    yield made
    bed.api.delete(f"/api/v1/namespaces/{namespace}")


@contextmanager
def slow(bed: Bed) -> Iterator[None]:
    bed.shape(MBIT)
    try:
        yield
    finally:
        bed.shape(None)


def test_with_the_api_server_away_a_node_goes_on_and_says_so_when_it_returns(outages: Outages) -> None:
    bed = outages.bed
    with slow(bed):
        outages.annotate("api", "api")
        node = outages.assigned_to("api")
        digest = outages.digest(node, "api")
        outages.hydrating(node, digest)
        bed.kill_api_server()
        try:
            wait_until(lambda: outages.committed(node, digest), 60, "committed without the API server")
        finally:
            bed.start_api_server()
    # Nodes may have turned NotReady in between: then their claims went too, and another node was asked meanwhile.
    wait_label(bed, node, outages.label("api"), READY, 120)
    outages.ready_on("steady", 60)
    outages.remove("api")


def test_an_agent_killed_while_the_api_server_is_away_acts_on_its_assignment_on_disk(outages: Outages) -> None:
    bed = outages.bed
    with slow(bed):
        outages.annotate("restart", "restart")
        node = outages.assigned_to("restart")
        digest = outages.digest(node, "restart")
        outages.hydrating(node, digest)
        bed.kill_api_server()
        try:
            killed = outages.pids(node, "agent")
            assert killed
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            since = time.monotonic()
            wait_until(lambda: set(outages.pids(node, "agent")) - set(killed), 60, "kubelet starts it again")
            print(f"killed -> started again without the API server: {time.monotonic() - since:.1f} s")
            assert not outages.committed(node, digest)
            wait_until(lambda: outages.committed(node, digest), 90, "committed by the restarted agent")
            print(f"killed -> committed: {time.monotonic() - since:.1f} s")
        finally:
            bed.start_api_server()
    since = time.monotonic()
    wait_label(bed, node, outages.label("restart"), READY, 120)  # its kubelet may be in a long pause between tries
    print(f"API server back -> label: {time.monotonic() - since:.1f} s")
    outages.remove("restart")


def test_s3_away_when_a_window_opens_is_told_and_the_model_comes_when_it_returns(outages: Outages) -> None:
    bed = outages.bed
    steady = outages.settled_on("steady")
    with slow(bed):
        outages.annotate("s3", "s3")
        node = outages.assigned_to("s3")
        outages.hydrating(node, outages.digest(node, "s3"))
        with LabelWatch(bed, steady, outages.label("steady"), READY) as watch:
            bed.kill_s3()
            try:
                outages.annotate("later", "later")
                outages.event("later", "Unresolved", "S3 does not answer")
                wait_until(lambda: says(bed, node, outages.namespace, "s3", "S3"), 60, "the NodeWarmup says why")
                assert outages.label("s3") not in node_labels(bed, node)
            finally:
                bed.start_s3()
    assert watch.lost == []
    outages.ready_on("s3", 90)
    outages.ready_on("later", 90)
    outages.remove("s3")
    outages.remove("later")


def test_the_registry_away_is_told_and_the_image_comes_when_it_returns(outages: Outages) -> None:
    bed = outages.bed
    image = "registry.bed/outage-other:1"
    installed.push_server_image(bed, image, padding_bytes=1_200_000)
    bed.kill_registry()
    try:
        outages.annotate("other", "small", image=image)
        outages.event("other", "Unresolved", image)
        node = outages.assigned_to("other")
        wait_until(lambda: f"cannot pull {image}" in outages.product.agent_log(node), 30, "the agent says why")
        assert outages.label("other") not in node_labels(bed, node)
    finally:
        bed.start_registry()
    outages.ready_on("other", 90)
    outages.remove("other")


@pytest.mark.parametrize("how", ["killed", "deleted", "forced"])
def test_an_agent_that_ends_and_returns_in_the_same_boot_withdraws_nothing(outages: Outages, how: str) -> None:
    bed = outages.bed
    node = outages.settled_on("steady")
    before, old = incarnation(outages, node), outages.pids(node, "agent")
    with LabelWatch(bed, node, outages.label("steady"), READY) as watch:
        if how == "killed":
            for pid in old:
                os.kill(pid, signal.SIGKILL)
        else:
            pod = outages.product.agent_pod(node)["metadata"]["name"]
            grace = "?gracePeriodSeconds=0" if how == "forced" else ""
            bed.api.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}{grace}")
        wait_until(lambda: not set(old) & set(outages.pids(node, "agent")), 30, "the old process is gone")
        # Forced, the old one still answers on the node's port for the first moments of the new one.
        wait_until(lambda: answers_ready(bed, node), 60, "the new one is ready by its own word")
        wait_until(lambda: incarnation(outages, node) not in ("", before), 60, "another container of it is Ready")
    assert watch.lost == []
    assert node_labels(bed, node)[outages.label("steady")] == READY


def test_a_killed_leader_is_replaced_and_a_new_endpoint_is_served_within_thirty_seconds(outages: Outages) -> None:
    bed = outages.bed
    leader: str = bed.api.get(LEASE)["spec"]["holderIdentity"]
    pod = bed.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods/{leader}")
    pids = [
        pid for pid in outages.pids(pod["spec"]["nodeName"], "planner") if f"HOSTNAME={leader}" in words(pid, "environ")
    ]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)  # no goodbye: the Lease is not released
    bed.api.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{leader}?gracePeriodSeconds=0")
    since = time.monotonic()
    outages.annotate("after", "small")
    outages.ready_on("after", 30)
    print(f"leader killed -> a new endpoint ready: {time.monotonic() - since:.1f} s")
    assert bed.api.get(LEASE)["spec"]["holderIdentity"] != leader
    outages.product.wait_until_running()


def says(bed: Bed, node: str, namespace: str, name: str, part: str) -> bool:
    """Whether the node's NodeWarmup calls the endpoint failing and its reason has `part`."""
    status: Object = bed.api.get(f"/apis/prewarm.dev/v1alpha1/nodewarmups/{node}").get("status", {})
    told = [e for e in status.get("endpoints", []) if e["key"] == f"{namespace}.{name}"]
    return any(e["stage"] == "failing" and part in json.dumps(e) for e in told)


def answers_ready(bed: Bed, node: str) -> bool:
    """Whether the agent on the node answers 200 on /readyz."""
    try:
        with urllib.request.urlopen(f"http://{bed.settings.addresses.node(node)}:9808/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def incarnation(outages: Outages, node: str) -> str:
    """The container in which the node's agent is Ready; "" while it is in none."""
    found = outages.bed.api.get(
        f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/component=agent"
        f"&fieldSelector=spec.nodeName={node}"
    )
    ready = [s["containerID"] for p in found["items"] for s in p["status"].get("containerStatuses", []) if s["ready"]]
    return ready[0] if len(ready) == 1 else ""
