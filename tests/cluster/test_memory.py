"""`prewarm.dev/memory: "on"` on a real cluster: the weights are in the page cache, charged to nobody's pod, and a start counts as such."""

from __future__ import annotations

import contextlib
import os
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from agent.core.names import READY, endpoint_label
from agent.models.memory_group import MemoryGroup, group_name
from agent.models.page_cache import resident_bytes
from bench.demo import drop_page_cache
from tests.bed import Bed, Object
from tests.cluster import product as installed
from tests.cluster.product import Product, cron_in, deployment, wait_label, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

MODEL_BYTES = 100_000_000
NAME = "in-memory"


@pytest.fixture
def weights(bed: Bed, product: Product, tmp_path: Path) -> Iterator[str]:
    """A model of the test's own, and the cgroups of both nodes' memory tiers away afterwards."""
    if not Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists():
        pytest.skip("needs memory cgroups of version 1")
    installed.push_server_image(bed)
    installed.put_model(bed, "memory/v1", MODEL_BYTES, version="v1", directory=tmp_path)
    yield "s3://models/memory/v1/"
    for node in bed.nodes:
        group = group_of(node)
        for digest in group.held():
            group.remove(digest)
        with contextlib.suppress(OSError):
            group.path.rmdir()


def test_weights_are_resident_before_the_window_and_a_start_counts_as_one_from_memory(
    bed: Bed, weights: str, namespace: str
) -> None:
    cron, _ = cron_in(timedelta(minutes=3))
    annotations = {
        "prewarm.dev/models": f"llm={weights}",
        "prewarm.dev/schedule": cron,
        "prewarm.dev/lead": "10s",
        "prewarm.dev/memory": "on",
    }
    bed.apply(deployment(NAME, annotations), namespace)
    node = wait_until(
        lambda: next((n for n in bed.nodes if item(bed, n, weights).get("level") == "resident"), None), 90, "resident"
    )
    found = item(bed, node, weights)
    assert found["resident"] >= 0.95 * found["total"] >= 0.95 * MODEL_BYTES
    assert group_of(node).used_bytes() >= 0.95 * MODEL_BYTES  # charged beside the pods, not to the agent's
    assert "budget" in bed.api.get(f"/apis/prewarm.dev/v1alpha1/nodewarmups/{node}")["status"]["memory"]
    wait_label(bed, node, endpoint_label(namespace, NAME), READY)

    patch = installed.prewarm(
        "affinity", f"{namespace}/{NAME}", "--wait", "--container", "server", "--image", image(bed), "--patch"
    )
    bed.kubectl("-n", namespace, "patch", "deployment", NAME, "-p", patch)
    bed.kubectl("-n", namespace, "scale", "deployment", NAME, "--replicas=1")
    wait_until(lambda: starts_from_memory(bed, node) >= 1, 60, "a start with warm=memory")

    bed.kubectl("-n", namespace, "delete", "deployment", NAME)
    wait_until(lambda: not group_of(node).held(), 60, "it is let go")


def test_weights_of_a_pod_that_starts_are_read_before_its_server_runs(
    bed: Bed, weights: str, namespace: str, tmp_path: Path
) -> None:
    installed.put_model(bed, "memory/v2", MODEL_BYTES, version="v2", directory=tmp_path / "v2")  # that nobody has read
    annotations = {"prewarm.dev/models": "llm=s3://models/memory/v2/", "prewarm.dev/schedule": "* * * * *"}
    stuck = deployment("starts", annotations)
    spec = stuck["spec"]["template"]["spec"]
    spec["initContainers"] = [{"name": "slow", "image": image(bed), "command": ["/opt/prewarm/bin/python", "-c"]}]
    spec["initContainers"][0]["command"].append("import time; time.sleep(600)")
    bed.apply(stuck, namespace)
    label = endpoint_label(namespace, "starts")
    node = wait_until(
        lambda: next((n for n in bed.nodes if installed.node_labels(bed, n).get(label) == READY), None), 90, label
    )
    files = bed.disk(node) / "var/lib/prewarm/views" / namespace / "starts"
    drop_page_cache(files)
    assert resident_share(files) < 0.05
    spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    stuck["spec"]["replicas"] = 1
    bed.apply(stuck, namespace)
    wait_until(lambda: resident_share(files) >= 0.95, 30, "the weights are in the page cache")
    pods = bed.api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    assert [p["status"]["phase"] for p in pods] == ["Pending"]  # nobody else has read them
    assert not group_of(node).held()  # and nothing is held


def resident_share(directory: Path) -> float:
    """How much of the files below a directory is in the page cache."""
    found = [path.open("rb") for path in directory.rglob("*") if path.is_file()]
    with contextlib.ExitStack() as closing:
        for file in found:
            closing.enter_context(file)
        size = sum(os.fstat(file.fileno()).st_size for file in found)
        return sum(resident_bytes(file.fileno()) for file in found) / size


def item(bed: Bed, node: str, uri: str) -> Object:
    """What the node's NodeWarmup says of a model."""
    warmups = bed.api.get("/apis/prewarm.dev/v1alpha1/nodewarmups")["items"]
    items = (i for w in warmups if w["metadata"]["name"] == node for i in w.get("status", {}).get("items", []))
    found: Object = next((i for i in items if i["ref"].startswith(uri)), {})
    return found


def group_of(node: str) -> MemoryGroup:
    """The cgroup of a node's memory tier, as this machine sees it."""
    return MemoryGroup(Path("/sys/fs/cgroup"), group_name(node, Path("/")))


def image(bed: Bed) -> str:
    """The image the agents run."""
    found: str = bed.get("daemonset", "prewarm-agent", "prewarm")["spec"]["template"]["spec"]["containers"][0]["image"]
    return found


def starts_from_memory(bed: Bed, node: str) -> int:
    """How many starts of the endpoint the node's agent has counted as from memory."""
    with urllib.request.urlopen(f"http://{bed.settings.addresses.node(node)}:9808/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    mine = [
        v
        for v in lines
        if v.startswith("model_load_seconds_count{") and f'endpoint="{NAME}"' in v and 'warm="memory"' in v
    ]
    return sum(int(float(v.rpartition(" ")[2])) for v in mine)
