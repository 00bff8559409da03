"""The planner goes away: in the middle of publishing a plan, and for long. Nodes hear one plan, and meet the windows they know."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path

import pytest

from agent.core.names import READY, endpoint_label
from tests.bed import Bed
from tests.bed.api import ApiError, condition
from tests.bed.bed import PROJECT
from tests.cluster.product import (
    NAMESPACE,
    Product,
    cron_in,
    deployment,
    node_labels,
    put_model,
    wait_label,
    wait_until,
)
from tests.cluster.test_truth import no_planner, planners

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]

WARMUPS = "/apis/prewarm.dev/v1alpha1/nodewarmups"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/prewarm-planner"
NODES, PLACES, SOME = 400, 350, 20
TAKEOVER_SECONDS = 20


Told = frozenset[tuple[str, str]]  # endpoints, each with the version of its model


class Plans:
    """What each node has been told, in order."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self.told: defaultdict[str, list[Told]] = defaultdict(list)
        self.last_at = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        wait_until(self._watchable, 60, "the API server serves the new kind")
        with suppress(OSError, HTTPException, ApiError):  # the bed ends before the watch
            for event in self._bed.api.watch(WARMUPS, 200):
                endpoints = event.object["spec"].get("endpoints", [])
                new = frozenset((e["name"], e["models"][0]["digest"]) for e in endpoints)
                said = self.told[event.object["metadata"]["name"]]
                if said[-1:] != [new]:
                    said.append(new)
                    self.last_at = time.monotonic()

    def _watchable(self) -> bool:
        try:
            list(self._bed.api.watch(WARMUPS, 1))
        except ApiError:
            return False
        return True

    def having(self, *told: tuple[str, str]) -> int:
        """Return how many nodes have these endpoints in these versions by now."""
        return sum(said[-1] >= set(told) for said in list(self.told.values()))

    def versions(self, name: str) -> list[str]:
        """Return the versions of an endpoint that any node has heard of."""
        return sorted({v for said in list(self.told.values()) for told in said for n, v in told if n == name})


@pytest.fixture
def fleet() -> Iterator[Bed]:
    """A bed of its own with hundreds of Nodes that nobody stands behind, and nothing of prewarm but the CRD."""
    with Bed(PROJECT / ".cache" / f"bed-fleet-{os.getpid()}", nodes=1, fast_eviction=False) as bed:
        bed.kubectl("apply", "-f", str(PROJECT / "deploy/crd.yaml"))
        bed.kubectl("wait", "--for=condition=Established", "crd/nodewarmups.prewarm.dev", "--timeout=30s")
        bed.api.post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        bed.kill_service("kcm")  # it would miss the kubelets of these nodes
        put_version(bed, "1")
        with ThreadPoolExecutor(8) as several:
            list(several.map(lambda n: add_node(bed, f"far-{n}"), range(NODES)))
        yield bed


def add_node(bed: Bed, name: str) -> None:
    bed.api.post("/api/v1/nodes", {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}})
    ready = {"type": "Ready", "status": "True", "reason": "Test", "lastHeartbeatTime": f"{datetime.now(UTC):%FT%TZ}"}
    bed.api.patch(f"/api/v1/nodes/{name}/status", {"status": {"conditions": [ready]}})
    bed.api.patch(
        f"/api/v1/nodes/{name}", {"spec": {"taints": []}}
    )  # every Node is born with node.kubernetes.io/not-ready


def put_version(bed: Bed, version: str) -> None:
    """Upload a version of the model: one object, so that nobody sees half of it."""
    bed.s3.put("models", "failover/model.safetensors", f"version {version}".encode())


@contextmanager
def planner(bed: Bed, identity: str) -> Iterator[subprocess.Popen[bytes]]:
    """The planner's own program, with all rights."""
    settings = {
        "POD_NAME": identity,
        "PREWARM_KUBECONFIG": str(bed.kubeconfig),
        "PREWARM_HTTP_ADDRESS": "127.0.0.1:0",
        "PREWARM_SOURCES": "*=s3://models/",
        "PREWARM_RESOLVE_SECONDS": "10s",
        "AWS_ENDPOINT_URL": bed.s3.url,
        "AWS_REGION": bed.s3.region,
        "AWS_ACCESS_KEY_ID": bed.s3.access_key,
        "AWS_SECRET_ACCESS_KEY": bed.s3.secret_key,
    }
    with (bed.work / "log" / f"{identity}.log").open("wb") as log:
        command = [str(Path(sys.executable).parent / "prewarm"), "planner"]
        process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            print(identity, (bed.work / "log" / f"{identity}.log").read_text()[-3000:])


def annotate(bed: Bed, name: str, nodes: str) -> None:
    """Create a Deployment that any node may take, without a window: its version is asked for every ten seconds."""
    written = {"models": "llm=s3://models/failover/", "nodes": nodes, "images": "off"}
    made = deployment(name, {f"prewarm.dev/{k}": v for k, v in written.items()})
    made["spec"]["template"]["spec"]["tolerations"] = [{"operator": "Exists"}]
    bed.apply(made, "default")


def test_a_leader_killed_in_the_middle_of_publishing_is_followed_and_no_node_hears_two_plans(fleet: Bed) -> None:
    with planner(fleet, "one") as one, planner(fleet, "two") as two:
        plans = Plans(fleet)
        annotate(fleet, "first", nodes="all")
        wait_until(lambda: len(plans.told) >= NODES, 90, "the first plan is published")
        (old,) = plans.versions("first")
        leader = fleet.api.get(LEASE)["spec"]["holderIdentity"]
        put_version(fleet, "2")
        new = wait_for_some(plans, old)
        (one if leader == "one" else two).kill()
        killed_at = time.monotonic()
        (one if leader == "one" else two).wait()
        time.sleep(1)  # for the watch to show what was written before
        before, written_at = plans.having(("first", new)), plans.last_at
        assert 0 < before < NODES
        annotate(fleet, "second", nodes=str(PLACES))
        other = ({"one", "two"} - {leader}).pop()
        wait_until(lambda: fleet.api.get(LEASE)["spec"]["holderIdentity"] == other, 60, "the other leads")
        took = time.monotonic() - killed_at
        wait_until(lambda: plans.last_at > written_at, 60, "it writes")
        wrote = plans.last_at - killed_at
        wait_until(lambda: plans.having(("first", new)) == len(plans.told), 60, "all nodes have the new version")
        wait_until(lambda: plans.having(("second", new)) >= PLACES, 60, "the second endpoint is placed")
        time.sleep(2)  # for a write too many to show
        print(f"killed after {before} of {NODES} nodes; the other led {took:.1f} s and wrote {wrote:.1f} s later")
        assert took < TAKEOVER_SECONDS
    assert plans.having(("second", new)) == PLACES
    order = [{("first", old)}, {("first", new)}, {("first", new), ("second", new)}]
    for node, said in plans.told.items():
        assert [order.index(set(told)) for told in said] in ([0, 1], [0, 1, 2], [0, 2]), node


def wait_for_some(plans: Plans, old: str) -> str:
    """Ask without a pause, for publishing takes a second; return the version that some nodes have heard of beside `old`."""
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline, "the new version is not published"
        if (news := [v for v in plans.versions("first") if v != old]) and plans.having(("first", news[0])) >= SOME:
            return news[0]
        time.sleep(0.005)


@pytest.fixture
def punctual(product: Product) -> Iterator[str]:
    """A node whose agent begins seconds before a window, not an hour."""
    node = sorted(product.bed.nodes)[0]
    product.patch_settings(PREWARM_WARM_AHEAD="15s", PREWARM_EARLY="0s")
    restart(product, node)
    yield node
    product.patch_settings(PREWARM_WARM_AHEAD="1h", PREWARM_EARLY="6h")
    restart(product, node)


def restart(product: Product, node: str) -> None:
    before = product.agent_pod(node)["metadata"]
    product.bed.api.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{before['name']}")

    def back() -> bool:
        pod = product.agent_pod(node)
        return pod["metadata"]["uid"] != before["uid"] and condition(pod, "Ready") == "True"

    wait_until(back, 90, f"the agent on {node} is back")


def test_nodes_meet_the_windows_they_know_while_no_planner_lives(
    bed: Bed, punctual: str, namespace: str, tmp_path: Path
) -> None:
    schedule, opens = cron_in(timedelta(seconds=90))
    leads = {"first": 10, "second": 1}
    due = {name: opens - timedelta(seconds=lead) for name, lead in leads.items()}
    for name, lead in leads.items():
        put_model(bed, f"alone/{name}", 10_000_000, version=name, directory=tmp_path / name)
        written = {
            "models": f"llm=s3://models/alone/{name}/",
            "schedule": schedule,
            "lead": f"{lead}s",
            "images": "off",
        }
        made = deployment(name, {f"prewarm.dev/{k}": v for k, v in written.items()})
        made["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": punctual}
        bed.apply(made, namespace)
    labels = {name: endpoint_label(namespace, name) for name in due}
    wait_until(lambda: assigned(bed, namespace, punctual) == due.keys(), 30, "both are assigned")
    with no_planner(bed):
        assert not set(labels.values()) & node_labels(bed, punctual).keys()
        assert datetime.now(UTC) < due["first"] - timedelta(seconds=20), "too busy a machine: nothing is told by this"
        for name, at in due.items():
            left = at - datetime.now(UTC)
            wait_label(bed, punctual, labels[name], READY, round(left.total_seconds()) + 30)
            early = at - datetime.now(UTC)
            print(f"{name}: ready {early.total_seconds():.1f} s before it was due, and no planner")
            assert early > timedelta(0)
        assert not planners(bed)


def assigned(bed: Bed, namespace: str, node: str) -> set[str]:
    """The endpoints of a namespace that a node's NodeWarmup names."""
    found = [w for w in bed.api.get(WARMUPS)["items"] if w["metadata"]["name"] == node]
    return {e["name"] for w in found for e in w["spec"].get("endpoints", []) if e["namespace"] == namespace}
