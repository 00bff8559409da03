"""On a real cluster: what the planner saw of replicas is written, shown, and outlives the leader that saw it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed import Bed, Object
from tests.bed.process import words
from tests.cluster.product import NAMESPACE, Product, deployment, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/prewarm-planner"


@pytest.fixture
def often(bed: Bed, product: Product) -> Iterator[None]:
    """Histories are written every five seconds, not every hour."""
    planner = ("-n", NAMESPACE, "set", "env", "deployment/prewarm-planner")
    bed.kubectl(*planner, "PREWARM_HISTORY_SECONDS=5s")
    product.wait_until_running()
    yield
    bed.kubectl(*planner, "PREWARM_HISTORY_SECONDS-")
    product.wait_until_running()


def test_what_a_leader_saw_of_replicas_outlives_it(bed: Bed, often: None, namespace: str) -> None:
    run_one(bed, namespace, "first")
    seen = wait_until(lambda: active(bed, namespace, "first"), 60, "first has a history")
    kill_leader(bed)
    bed.kubectl("-n", namespace, "scale", "deployment/first", "--replicas=0")
    run_one(bed, namespace, "second")
    wait_until(lambda: active(bed, namespace, "second"), 60, "second has a history, by the next leader")
    assert seen <= active(bed, namespace, "first")
    assert "█" in history(bed, f"{namespace}/first")
    advised = json.loads(prewarm(bed, "recommend", f"{namespace}/first", "--json").stdout)
    assert [(r["name"], r["pods"]) for r in advised["recommendations"]] == [("first", 0)], "its history is minutes old"


def run_one(bed: Bed, namespace: str, name: str) -> None:
    """Create an endpoint with nothing to warm and one pod."""
    made = deployment(name, {"prewarm.dev/schedule": "0 0 1 1 *", "prewarm.dev/images": "off"})
    made["spec"]["replicas"] = 1
    made["spec"]["template"]["spec"]["containers"] = [{"name": "server", "image": "registry.bed/pause:1"}]
    bed.apply(made, namespace)


def active(bed: Bed, namespace: str, name: str) -> set[tuple[str, int]]:
    """The slots in which it was active, by date and number; empty while there is no history of it."""
    told = history(bed, f"{namespace}/{name}", "--json")
    days: list[Object] = json.loads(told)["days"] if told else []
    return {(day["date"], n) for day in days for n, state in enumerate(day["slots"]) if state == "1"}


def history(bed: Bed, *arguments: str) -> str:
    """What `prewarm history` prints; "" where nothing is known."""
    done = prewarm(bed, "history", *arguments)
    assert done.returncode == 0 or "nothing is known of" in done.stderr, done.stderr
    return done.stdout


def prewarm(bed: Bed, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "prewarm"), *arguments]
    return subprocess.run([*command, f"--kubeconfig={bed.kubeconfig}"], capture_output=True, text=True, check=False)


def kill_leader(bed: Bed) -> None:
    """Without a goodbye: it cannot write once more, and its Lease is not released."""
    leader: str = bed.api.get(LEASE)["spec"]["holderIdentity"]
    node = bed.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods/{leader}")["spec"]["nodeName"]
    pids = [p for p in bed.node_pids(node, "prewarm") if f"HOSTNAME={leader}" in words(p, "environ")]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    bed.api.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{leader}?gracePeriodSeconds=0")
