"""Nothing claims more than was proved: how soon a label goes once what it rests on is gone, and what never makes it go."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest

from agent.core.names import ANNOTATION_BOOT_ID, LABEL_GPU, READY, endpoint_label
from tests.bed import Bed, BedError
from tests.bed.process import words
from tests.cluster import product as installed
from tests.cluster.product import NAMESPACE, Product, deployment, node_labels, wait_label, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

IMAGE = "registry.bed/truth-server:1"
GPUS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """An endpoint that is ready on one node."""

    bed: Bed
    product: Product
    node: str
    label: str

    def wait_ready(self, seconds: int = 90) -> None:
        """Wait until the label stands (again)."""
        try:
            wait_until(
                lambda: any(node_labels(self.bed, n).get(self.label) == READY for n in self.bed.nodes),
                seconds,
                f"{self.label} on a node again",  # which one: a node that was sick for a while may have lost its place
            )
        except BedError:
            print({node: node_labels(self.bed, node) for node in self.bed.nodes})
            print(self.bed.kubectl("get", "nw", "-o", "yaml"))
            print(self.product.agent_log(self.node)[-6000:])
            raise

    def seconds_until_gone(self, since: float, within: int) -> float:
        """How long after `since` (monotonic) the label was seen gone."""
        try:
            gone = wait_label(self.bed, self.node, self.label, None, within + 5)
        except BedError:
            for pod in planners(self.bed):
                print(self.bed.kubectl("-n", NAMESPACE, "logs", "--timestamps", pod))
            print(self.bed.kubectl("-n", NAMESPACE, "get", "pods", "-o", "wide"))
            raise
        print(f"{self.label}: gone after {gone.at - since:.2f} s")
        return gone.at - since


@pytest.fixture(scope="module")
def endpoint(bed: Bed, product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Namespace and name of an endpoint with a GPU, an image, a model and a window that is always open."""
    bed.shape(None)
    for node in bed.nodes:
        bed.give_gpus(node, GPUS)
    installed.push_server_image(bed, IMAGE, padding_bytes=2_000_000)
    installed.put_model(bed, "truth/v1", 20_000_000, version="v1", directory=tmp_path_factory.mktemp("truth"))
    namespace = f"truth-{os.getpid()}"
    bed.api.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
    annotations = {"prewarm.dev/models": "llm=s3://models/truth/v1/", "prewarm.dev/schedule": "* * * * *"}
    bed.apply(deployment("truth", annotations, image=IMAGE, gpus=1), namespace)
    yield namespace, "truth"
    bed.api.delete(f"/api/v1/namespaces/{namespace}")


@pytest.fixture
def warm(bed: Bed, product: Product, endpoint: tuple[str, str]) -> Iterator[Warm]:
    """The endpoint, ready; what a test broke is mended afterwards."""
    label = endpoint_label(*endpoint)
    holder = wait_until(lambda: settled(bed, endpoint, label), 180, f"{label} where it is assigned, all GPUs healthy")
    yield Warm(bed=bed, product=product, node=holder[0], label=label)
    for control in product.gpus.values():
        control.clear(gpus=GPUS)


def test_an_xid_takes_the_label_within_two_seconds(warm: Warm) -> None:
    since = time.monotonic()
    warm.product.gpus[warm.node].xid(0, 79)

    assert warm.seconds_until_gone(since, 2) <= 2
    assert node_labels(warm.bed, warm.node)["prewarm.dev/gpu"] == "unhealthy"


def test_an_xid_in_the_kernel_log_takes_the_label_within_two_seconds(warm: Warm) -> None:
    since = time.monotonic()
    warm.product.kernel_says(warm.node, "NVRM: Xid (PCI:0000:11:00): 119, pid=1, name=python, Timeout waiting for RPC")

    assert warm.seconds_until_gone(since, 2) <= 2
    wait_label(warm.bed, warm.node, LABEL_GPU, "healthy", 120)  # once the active test has passed on the idle GPU


def test_a_polled_gpu_fault_takes_the_label_within_twelve_seconds(warm: Warm) -> None:
    since = time.monotonic()
    warm.product.gpus[warm.node].recovery(1, 2)  # the driver asks for a reboot

    assert warm.seconds_until_gone(since, 12) <= 12


def test_a_deleted_image_takes_the_label_within_two_seconds(warm: Warm) -> None:
    since = time.monotonic()
    warm.bed.exec(warm.node, ["ctr", "-n", "k8s.io", "images", "rm", IMAGE])

    assert warm.seconds_until_gone(since, 2) <= 2
    warm.wait_ready()  # it is pulled again


def test_a_truncated_model_file_takes_the_label_within_one_proof_cycle(warm: Warm) -> None:
    spec = warm.bed.api.get(f"/apis/prewarm.dev/v1alpha1/nodewarmups/{warm.node}")["spec"]
    digest = next(e["models"][0]["digest"] for e in spec["endpoints"] if e["name"] == "truth")
    store = warm.bed.disk(warm.node) / "var/lib/prewarm/store" / digest
    file = max(store.rglob("*.safetensors"), key=lambda p: p.stat().st_size)
    file.chmod(0o644)
    since = time.monotonic()
    os.truncate(file, 1000)

    assert warm.seconds_until_gone(since, 30) <= 30
    warm.wait_ready()  # it is fetched again
    assert all(p.stat().st_size != 1000 for p in store.rglob("*.safetensors"))


def test_a_stopped_agent_loses_its_labels_within_sixty_seconds(warm: Warm) -> None:
    pids = agent_pids(warm)
    assert pids
    since = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert warm.seconds_until_gone(since, 60) <= 60
    finally:
        go_on(warm, pids)
    warm.wait_ready(150)


def test_a_crash_looping_agent_loses_its_labels_within_sixty_seconds(warm: Warm) -> None:
    with agent_arguments(warm.bed, ["agent", "--no-such-flag"]):
        replaced = warm.product.agent_pod(warm.node)["metadata"]["name"]  # a rollout would stop at the first node's
        warm.bed.api.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{replaced}")
        crashed = wait_until(lambda: is_crashing(warm.bed, warm.node) and time.monotonic(), 120, "the agent crashes")
        assert warm.seconds_until_gone(crashed, 60) <= 60
    warm.product.wait_until_running(180)
    warm.wait_ready(150)


def test_deleted_agents_lose_their_labels_within_sixty_seconds(warm: Warm) -> None:
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets"
    found = warm.bed.api.get(f"{path}/prewarm-agent")
    since = time.monotonic()
    warm.bed.kubectl("-n", NAMESPACE, "delete", "daemonset/prewarm-agent")
    try:
        assert warm.seconds_until_gone(since, 60) <= 60
    finally:
        kept = {k: v for k, v in found["metadata"].items() if k in ("name", "namespace", "labels", "annotations")}
        warm.bed.api.post(path, {"metadata": kept, "spec": found["spec"]})
    warm.product.wait_until_running(180)
    warm.wait_ready(150)


def test_a_stopped_kubelet_takes_the_label_within_ten_seconds_and_gives_it_back(warm: Warm) -> None:
    kubelets = warm.bed.node_pids(warm.node, "kubelet")
    assert kubelets
    for pid in kubelets:
        os.kill(pid, signal.SIGSTOP)
    try:
        down = warm.bed.wait_ready(warm.node, 60, ready=False).at
        assert warm.seconds_until_gone(down, 10) <= 10
        with pytest.raises(BedError):  # its agent lives and could prove all of it, and yet claims nothing
            wait_label(warm.bed, warm.node, warm.label, READY, 12)
    finally:
        for pid in kubelets:
            os.kill(pid, signal.SIGCONT)
    warm.bed.wait_ready(warm.node, 60)
    warm.wait_ready(60)


def test_the_planner_alone_withdraws_what_is_of_another_boot(warm: Warm) -> None:
    pids = agent_pids(warm)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        since = time.monotonic()
        annotations = {"metadata": {"annotations": {ANNOTATION_BOOT_ID: "an-earlier-boot"}}}
        warm.bed.api.patch(f"/api/v1/nodes/{warm.node}", annotations)
        assert warm.seconds_until_gone(since, 5) <= 5  # long before it would miss the agent
    finally:
        go_on(warm, pids)
    warm.wait_ready(150)


def test_a_rolling_update_withdraws_nothing(warm: Warm) -> None:
    lost: list[str] = []
    until = time.monotonic() + 60
    warm.bed.kubectl("-n", NAMESPACE, "rollout", "restart", "daemonset/prewarm-agent")
    deadline = time.monotonic() + 180
    for event in warm.bed.api.watch(f"/api/v1/nodes?fieldSelector=metadata.name={warm.node}", 60):
        if event.object["metadata"]["labels"].get(warm.label) != READY:
            lost.append(event.object["metadata"]["resourceVersion"])
        if time.monotonic() > until:
            break
    warm.product.wait_until_running(max(1, int(deadline - time.monotonic())))
    assert lost == []
    assert node_labels(warm.bed, warm.node)[warm.label] == READY


def test_with_the_planner_down_a_dead_agents_claims_go_when_it_returns(warm: Warm) -> None:
    pids = agent_pids(warm)
    try:
        with no_planner(warm.bed):
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            with pytest.raises(BedError):  # nobody is there to withdraw it: the design states this gap
                wait_label(warm.bed, warm.node, warm.label, None, 40)
        assert warm.seconds_until_gone(time.monotonic(), 60) <= 60
    finally:
        go_on(warm, pids)
    warm.wait_ready(150)


def test_after_a_power_cut_claims_go_and_a_new_boot_claims_nothing_before_its_proof(warm: Warm) -> None:
    bed, node = warm.bed, f"/api/v1/nodes/{warm.node}"
    before = bed.boot_id(warm.node)
    bed.stop_node(warm.node)
    down = bed.wait_ready(warm.node, 60, ready=False).at
    assert warm.seconds_until_gone(down, 10) <= 10

    # Now as if no planner had been there: the claim of the earlier boot stands, and the agent alone has to take it back. S3 is
    # away and a file is cut, so that the proof after the boot cannot succeed before it has been fetched again.
    store = bed.disk(warm.node) / "var/lib/prewarm/store"
    file = max(store.rglob("*.safetensors"), key=lambda p: p.stat().st_size)
    file.chmod(0o644)
    os.truncate(file, 1000)
    with no_planner(bed, dead=warm.node):
        claim = {"labels": {warm.label: READY}, "annotations": {ANNOTATION_BOOT_ID: before}}
        bed.api.patch(node, {"metadata": claim})
        bed.kill_s3()
        try:
            bed.start_node(warm.node)
            spoken = bed.api.until(
                f"/api/v1/nodes?fieldSelector=metadata.name={warm.node}",
                lambda event: event.object["metadata"]["annotations"][ANNOTATION_BOOT_ID] != before,
                120,
            )
            assert warm.label not in spoken.object["metadata"]["labels"]  # from the agent's first word on
            bed.wait_ready(warm.node, 120)
            assert warm.label not in node_labels(bed, warm.node)
        finally:
            bed.start_s3()
    warm.wait_ready(180)
    assert bed.api.get(node)["metadata"]["annotations"][ANNOTATION_BOOT_ID] != before


@contextmanager
def no_planner(bed: Bed, dead: str = "") -> Iterator[None]:
    """Let no planner run for a while; nobody else would say of pods on a `dead` node that they are gone."""
    scale = ["-n", NAMESPACE, "scale", "deployment/prewarm-planner"]
    bed.kubectl(*scale, "--replicas=0")
    for pod in planners(bed, on=dead) if dead else ():
        bed.api.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}?gracePeriodSeconds=0")
    wait_until(lambda: not planners(bed), 60, "no planner runs")
    try:
        yield
    finally:
        bed.kubectl(*scale, "--replicas=2")


def settled(bed: Bed, endpoint: tuple[str, str], label: str) -> list[str]:
    """The node that is assigned the endpoint and claims it; nothing while a GPU is sick: the endpoint moves then, and back."""
    if any(node_labels(bed, n).get("prewarm.dev/gpu") != "healthy" for n in bed.nodes):
        return []
    warmups = bed.api.get("/apis/prewarm.dev/v1alpha1/nodewarmups")["items"]
    assigned = [
        w["metadata"]["name"]
        for w in warmups
        if any((e["namespace"], e["name"]) == endpoint for e in w["spec"].get("endpoints", []))
    ]
    return [n for n in assigned if node_labels(bed, n).get(label) == READY] if len(assigned) == 1 else []


@contextmanager
def agent_arguments(bed: Bed, arguments: list[str]) -> Iterator[None]:
    """Give the agents another command line for a while."""
    path, patch = (
        f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/prewarm-agent",
        "/spec/template/spec/containers/0/args",
    )
    before = bed.api.get(path)["spec"]["template"]["spec"]["containers"][0]["args"]

    def change(value: list[str]) -> str:
        return json.dumps([{"op": "replace", "path": patch, "value": value}])

    command = ["-n", NAMESPACE, "patch", "daemonset/prewarm-agent", "--type=json", "-p"]
    bed.kubectl(*command, change(arguments))
    try:
        yield
    finally:
        bed.kubectl(*command, change(before))
        for pod in bed.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/component=agent")[
            "items"
        ]:
            if pod["spec"]["containers"][0]["args"] == arguments:
                bed.api.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}")


def agent_pids(warm: Warm) -> list[int]:
    """Pids of the agent on the warm node, as this machine counts them; not the planner's, which is the same program."""
    found = warm.bed.node_pids(warm.node, "prewarm")
    return [pid for pid in found if "agent" in words(pid, "cmdline")]


def go_on(warm: Warm, pids: list[int]) -> None:
    """Let a stopped agent go on, then replace its pod: the kubelet still counts the probes it missed."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    name = warm.product.agent_pod(warm.node)["metadata"]["name"]
    warm.bed.kubectl("-n", NAMESPACE, "delete", "pod", name, "--wait=true")
    warm.product.wait_until_running(180)


def is_crashing(bed: Bed, node: str) -> bool:
    """Whether the agent on a node has exited with an error."""
    pods = bed.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/component=agent")["items"]
    return any(
        status.get("restartCount", 0) > 0
        or "terminated" in status.get("state", {})
        or "waiting" in status.get("state", {})
        for pod in pods
        if pod["spec"].get("nodeName") == node and "deletionTimestamp" not in pod["metadata"]
        for status in pod["status"].get("containerStatuses", [])
        if "--no-such-flag" in pod["spec"]["containers"][0]["args"]
    )


def planners(bed: Bed, on: str = "") -> list[str]:
    """Names of the planner's pods, all or those on one node."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/component=planner"
    found = bed.api.get(path + (f"&fieldSelector=spec.nodeName={on}" if on else ""))["items"]
    return [pod["metadata"]["name"] for pod in found]
