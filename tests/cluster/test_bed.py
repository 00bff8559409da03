"""The bed does what the other cluster tests take for granted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bed import Bed, BedError, Object, cgroup, needs, network, seed
from tests.bed.bed import PROJECT
from tests.bed.process import words
from tests.bed.settings import Settings
from tests.cluster.product import wait_until

pytestmark = pytest.mark.cluster


def pod(name: str, node: str, image: str = "registry.bed/pause:1") -> Object:
    """The smallest pod there is, on one node."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 0,
            "dnsPolicy": "Default",
            "containers": [{"name": "main", "image": image}],
        },
    }


def start_pod(bed: Bed, namespace: str, manifest: Object) -> Object:
    """Create a pod and wait until it runs."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    bed.api.post(path, manifest)
    wanted = manifest["metadata"]["name"]
    running = bed.api.until(
        path,
        lambda event: event.object["metadata"]["name"] == wanted and event.object["status"]["phase"] == "Running",
        60,
    )
    return running.object


def test_a_pod_from_a_pushed_image_runs_on_each_node(bed: Bed, namespace: str) -> None:
    digest = seed.push_program(bed.registry_address, "sleeper", "1", needs.compiled("pause"))

    for node in bed.nodes:
        started = start_pod(bed, namespace, pod(f"on-{node}", node, "registry.bed/sleeper:1"))

        assert started["spec"]["nodeName"] == node
        assert started["status"]["containerStatuses"][0]["imageID"] == f"registry.bed/sleeper@{digest}"
        assert "registry.bed/sleeper:1" in bed.exec(node, ["ctr", "-n", "k8s.io", "images", "ls", "-q"])


def test_pods_are_reached_from_the_machine(bed: Bed, namespace: str) -> None:
    started = start_pod(bed, namespace, pod("target", "node-2"))

    with pytest.raises(ConnectionRefusedError):  # by the pod, where nothing listens: not a timeout, not "no route"
        socket.create_connection((started["status"]["podIP"], 9), timeout=5)


def test_kubectl_raises_with_what_it_said(bed: Bed) -> None:
    with pytest.raises(BedError, match='nodes "node-99" not found'):
        bed.kubectl("get", "node", "node-99")


def test_applied_objects_can_be_read_back(bed: Bed, namespace: str) -> None:
    content = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"key": "value"}}

    bed.apply([content, content | {"metadata": {"name": "two"}}], namespace)

    assert bed.get("configmap", "two", namespace)["data"] == {"key": "value"}


def test_s3_stores_what_was_put_and_logs_who_asked(bed: Bed, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w" * 100_000)

    bed.s3.put("bed-bucket", "a dir/weights", tmp_path / "weights")

    stored = bed.work / "s3" / "data" / "bed-bucket" / "a dir" / "weights"
    assert stored.read_bytes() == b"w" * 100_000
    (put,) = [line for line in bed.s3.access_log() if line.key == "a dir/weights"]
    assert (put.operation, put.bucket, put.status) == ("s3_PutObject", "bed-bucket", 200)
    assert put.remote == bed.settings.addresses.host


def test_a_power_cut_makes_the_node_not_ready_and_it_returns_in_a_new_boot(bed: Bed, namespace: str) -> None:
    started = start_pod(bed, namespace, pod("witness", "node-1"))
    before = bed.boot_id("node-1")
    kubelets = bed.node_pids("node-1", "kubelet")
    assert boot_id_in_container(bed, started) == before

    cut = time.monotonic()
    bed.stop_node("node-1")
    assert not [pid for pid in kubelets if Path(f"/proc/{pid}").exists()]
    not_ready = bed.wait_ready("node-1", 30, ready=False)
    bed.start_node("node-1")
    ready = bed.wait_ready("node-1", 60)

    assert not_ready.at - cut <= 15
    assert bed.boot_id("node-1") != before
    assert ready.object["status"]["nodeInfo"]["bootID"] == bed.boot_id("node-1")
    assert ready.object["status"]["nodeInfo"]["bootID"] != bed.get("node", "node-2")["status"]["nodeInfo"]["bootID"]
    restarted = bed.api.until(
        f"/api/v1/namespaces/{namespace}/pods",
        lambda event: is_running(event.object) and event.object["status"]["containerStatuses"][0]["restartCount"] == 1,
        60,
    )
    assert restarted.object["metadata"]["uid"] == started["metadata"]["uid"]
    assert boot_id_in_container(bed, restarted.object) == bed.boot_id("node-1")


def is_running(pod: Object) -> bool:
    """Whether its container runs now."""
    statuses = pod["status"].get("containerStatuses", [])
    return bool(statuses) and "running" in statuses[0]["state"]


def boot_id_in_container(bed: Bed, pod: Object) -> str:
    """What the pod's container reads as the boot id."""
    container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")

    def found() -> list[int]:  # a process whose parent ends while it is looked for can be missed
        pids = bed.node_pids(pod["spec"]["nodeName"], "pause")
        return [pid for pid in pids if container in "".join(words(pid, "cgroup"))]

    (pid,) = wait_until(found, 10, f"the process of {container}")
    return Path(f"/proc/{pid}/root/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.mark.parametrize("service", ["api_server", "s3", "registry"])
def test_a_killed_service_refuses_and_returns_with_what_it_had(bed: Bed, service: str) -> None:
    probes: dict[str, Callable[[], bool]] = {
        "api_server": bed.api.answers,
        "s3": bed.s3.answers,
        "registry": lambda: registry_has_pause(bed),
    }
    answers = probes[service]
    assert answers()

    getattr(bed, f"kill_{service}")()
    assert not answers()
    getattr(bed, f"start_{service}")()

    assert answers()


def registry_has_pause(bed: Bed) -> bool:
    """Whether the registry serves the image that was pushed at `up`."""
    asked = ["curl", "-fs", f"http://{bed.registry_address}/v2/pause/tags/list"]
    return subprocess.run(asked, capture_output=True, check=False).stdout == b'{"name":"pause","tags":["1"]}\n'


def test_shaping_limits_what_goes_to_a_node(bed: Bed) -> None:
    size = 8_000_000
    bed.s3.put("bed-bucket", "large", os.urandom(size))
    file = bed.work / "s3" / "data" / "bed-bucket" / "large"
    fetch = fetch_on_node(bed, file)

    bed.shape(100)
    try:
        shaped = fetch()
    finally:
        bed.shape(None)

    assert shaped >= 0.8 * (size - 1_000_000) * 8 / 100e6  # the bucket lets the first MB through at once
    assert fetch() < shaped / 2


def fetch_on_node(bed: Bed, file: Path) -> Callable[[], float]:
    """A function that carries the file from the control plane to node-1 and returns the seconds it took."""

    def fetch() -> float:
        server = subprocess.Popen(
            bed.inside("cp", [sys.executable, "-m", "http.server", "8099", "--bind", bed.control_address]),
            cwd=file.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url = f"http://{bed.control_address}:8099/{file.name}"
            options = ["--retry", "50", "--retry-connrefused", "--retry-delay", "0", "-fso", "/dev/null"]
            return float(bed.exec("node-1", ["curl", *options, "-w", "%{time_total}", url]))
        finally:
            server.kill()
            server.wait()

    return fetch


def test_given_gpus_can_be_requested(bed: Bed) -> None:
    bed.give_gpus("node-2", 4)

    assert bed.get("node", "node-2")["status"]["allocatable"]["nvidia.com/gpu"] == "4"


@pytest.fixture
def own_work() -> Path:
    """The directory of a bed of the test's own."""
    return PROJECT / ".cache" / f"bed-own-{os.getpid()}"


def remains(bed: Bed) -> list[str]:
    """Whatever of a bed still exists on this machine."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if bed.name in line]
    mounts += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(bed.work) in line]
    namespaces = [str(path) for path in Path("/run/netns").glob(f"{bed.name}*")]
    commands = [
        f"{path.parent.name}: {text.replace(chr(0), ' ')}"
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(bed.work) in (text := read(path))
    ]
    groups = [str(group) for group in cgroup.remains(bed.name)]
    links = [name for name, holder in network.links().items() if holder == bed.name]
    return mounts + namespaces + commands + groups + links + ([str(bed.work)] if bed.work.exists() else [])


def read(path: Path) -> str:
    """A file that may vanish while it is read."""
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_second_bed_has_its_own_addresses_and_leaves_nothing_behind(bed: Bed, own_work: Path) -> None:
    own = Bed(own_work, nodes=1)

    own.up()
    try:
        assert own.control_address != bed.control_address
        assert own.api.answers()
        started = start_pod(own, "default", pod("one", "node-1"))
        assert started["status"]["phase"] == "Running"
        assert remains(own)  # or the check below proves nothing
        with pytest.raises(BedError, match="in use"):
            Bed(own_work).up()
    finally:
        own.down()

    assert remains(own) == []
    assert bed.api.answers()


def test_a_bed_whose_owner_was_killed_is_swept(bed: Bed, own_work: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from tests.bed import Bed;"
        "Bed(Path(sys.argv[1]), nodes=1).up(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(own_work)], cwd=PROJECT, check=False, timeout=60)
    left = Bed(own_work)
    assert killed.returncode == -signal.SIGKILL
    assert left.api.answers()

    swept = Bed.sweep(own_work.parent)

    assert swept == [own_work]
    assert remains(left) == []
    assert bed.api.answers()


def test_settings_refuse_a_bed_without_nodes() -> None:
    with pytest.raises(ValueError, match="nodes must be 1 to 15, not 0"):
        Settings(nodes=0)
