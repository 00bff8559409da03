"""Cold start on a real cluster: created -> first answer, cold against warmed against the floor, in alternating rounds.

cold   no prewarm: the image is absent, an init container downloads the weights with its own credentials (`prewarm wait
       --otherwise fetch` with no agent: as fast as the shaped line allows), then the server loads them
warm   the node prewarm made ready before: image unpacked, weights committed; the pod waits, links and loads, and has
       prewarm's head start: its weights are read into the page cache from the moment it is bound
floor  the same pod without prewarm on the same node: image there, weights in a directory of the same disk
init   that pod with an init container that does nothing: what the kubelet takes for having any

The page cache holds none of the weights when any but `cold` is created (prewarm writes past it); cold keeps what its own
download left there. `init` is measured on request only. Layers of the base image are on every node, as the agent's image shares them: that favours cold.
"""

from __future__ import annotations

import argparse
import http.client
import json
import mmap
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from agent.core.names import READY, endpoint_label
from agent.core.units import format_size
from agent.models.machine import read_machine
from bench.demo import drop_page_cache, told
from tests.bed import Bed, Event, Object
from tests.bed.bed import PROJECT
from tests.cluster import product as installed
from tests.cluster.product import Product, deployment, wait_label, wait_until

NAMESPACE = "bench"
SERVER = "registry.bed/bench-server:1"
STARTS = ("cold", "warm", "floor", "init")
COMPARED = ("cold", "warm", "floor")
FLOOR_DIRECTORY = "/var/lib/prewarm/bench-floor"  # on the same disk as the store
SETTLE_SECONDS = 3
TOUCHED = 2.5  # times the model's size: its page cache, the server's copy, and room
OVER_FLOOR_SECONDS = 0.7
TIMES_FASTER = 10


def main() -> int:
    """Measure and print; 0 if both targets are met."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.coldstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--image-megabytes", type=int, default=200)
    parser.add_argument("--mbit", type=int, default=400, help="rate of registry and S3 to each node")
    parser.add_argument(
        "--start",
        action="append",
        choices=STARTS,
        help=f"this one, and others so named (default: {', '.join(COMPARED)})",
    )
    parser.add_argument("--json", type=Path, help="also write the samples here")
    options = parser.parse_args()
    starts = [start for start in STARTS if start in (options.start or COMPARED)]
    with (
        Bed(PROJECT / ".cache" / f"bed-bench-{os.getpid()}") as bed,
        tempfile.TemporaryDirectory(dir=PROJECT / ".cache") as scratch,
    ):
        warm_node, cold_node = prepare(bed, options, Path(scratch))
        bed.shape(options.mbit)
        samples: dict[str, list[float]] = {start: [] for start in starts}
        for number in range(options.rounds):
            first = number % len(starts)  # each comes first in turn
            for start in (*starts[first:], *starts[:first]):
                make_start_state(bed, start, warm_node, cold_node)
                touch_free_memory(int(TOUCHED * options.gigabytes * 1e9))
                samples[start].append(seconds_to_first_answer(bed, start))
            print(f"round {number + 1}  " + "  ".join(f"{s} {samples[s][-1]:6.2f} s" for s in starts), flush=True)
    if options.json:
        options.json.write_text(json.dumps(samples))
    return report(samples, options)


def prepare(bed: Bed, options: argparse.Namespace, scratch: Path) -> tuple[str, str]:
    """Install prewarm, make the endpoint ready on one node and lay out the floor's weights there; returns both nodes."""
    product = Product(bed)
    product.install()
    size = int(options.gigabytes * 1e9)
    installed.push_server_image(bed, SERVER, padding_bytes=options.image_megabytes * 1_000_000)
    installed.put_model(bed, "bench", size, version="v1", directory=scratch / "model")
    bed.api.post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    annotations = {"prewarm.dev/models": "llm=s3://models/bench/", "prewarm.dev/schedule": "* * * * *"}
    bed.apply(deployment("warm", annotations, image=SERVER), NAMESPACE)
    label = endpoint_label(NAMESPACE, "warm")
    warm_node = wait_until(
        lambda: next((n for n in bed.nodes if installed.node_labels(bed, n).get(label) == READY), ""), 180, label
    )
    cold_node = next(n for n in bed.nodes if n != warm_node)
    floor = bed.disk(warm_node) / FLOOR_DIRECTORY.lstrip("/")
    shutil.copytree(scratch / "model", floor)
    for name in STARTS:
        if name != "warm":
            bed.apply(deployment(name, {}, image=SERVER), NAMESPACE)
        bed.kubectl(
            "-n", NAMESPACE, "patch", "deployment", name, "-p", json.dumps(patch_of(bed, name, warm_node, cold_node))
        )
    wait_label(bed, warm_node, label, READY)
    return warm_node, cold_node


def patch_of(bed: Bed, name: str, warm_node: str, cold_node: str) -> Object:
    """What makes a Deployment start the way its name says."""
    node = {"kubernetes.io/hostname": cold_node if name == "cold" else warm_node}
    image = bed.get("daemonset", "prewarm-agent", "prewarm")["spec"]["template"]["spec"]["containers"][0]["image"]
    if name in ("floor", "init"):
        volume = {"name": "weights", "hostPath": {"path": FLOOR_DIRECTORY}}
        server = {"name": "server", "volumeMounts": [{"name": "weights", "mountPath": "/models/llm"}]}
        spec: Object = {"nodeSelector": node, "containers": [server], "volumes": [volume]}
        if name == "init":
            nothing = ["/opt/prewarm/bin/python", "-S", "-c", "pass"]
            spec["initContainers"] = [{"name": "nothing", "image": image, "command": nothing}]
        return {"spec": {"template": {"spec": spec}}}
    command = [
        "affinity",
        f"{NAMESPACE}/{name}",
        "--wait",
        "--container",
        "server",
        "--image",
        image,
        "--patch",
        "--json",
    ]
    patch: Object = json.loads(installed.prewarm(*command))
    if name == "cold":
        make_cold(bed, patch)
        patch["spec"]["template"]["spec"]["nodeSelector"] = node
    return patch


def make_cold(bed: Bed, patch: Object) -> None:
    """Point the init container at no agent, and give it credentials of its own."""
    template = patch["spec"]["template"]
    spec, s3 = template["spec"], bed.s3
    spec.pop("affinity", None)
    template.setdefault("metadata", {}).setdefault("annotations", {})["prewarm.dev/models"] = "llm=s3://models/bench/"
    for volume in spec["volumes"]:
        if volume.get("hostPath", {}).get("path") == "/run/prewarm":
            volume["hostPath"]["path"] = "/run/nobody-home"
    credentials = {
        "AWS_ENDPOINT_URL": s3.url,
        "AWS_REGION": s3.region,
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
    }
    spec["initContainers"][0].setdefault("env", []).extend({"name": k, "value": v} for k, v in credentials.items())


def make_start_state(bed: Bed, start: str, warm_node: str, cold_node: str) -> None:
    """Bring about what the start's name promises, and nothing of the start before."""
    if start == "cold":
        forget_image(bed, cold_node, SERVER.partition(":")[0])
        return
    os.sync()  # what the start before wrote and deleted is not written while this one reads
    time.sleep(SETTLE_SECONDS)
    root = bed.disk(warm_node) / "var/lib/prewarm"
    for directory in (root / "store", root / "bench-floor"):
        drop_page_cache(directory)


def touch_free_memory(size_bytes: int) -> None:
    """Use this much memory once and give it back, so that a start need not wait for the hypervisor to provide it.

    A virtual machine with free page reporting gives what is free back to its host, some every two seconds, and zeroes such pages
    at 0.3 GB/s instead of several (measured): whichever start came after an idle moment paid for all.

    Raises:
        SystemExit: it has not twice as much.
    """
    if size_bytes * 2 > read_machine().available_bytes:
        raise SystemExit(f"{format_size(size_bytes)} of memory are too much for this machine: lower --gigabytes")
    mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def forget_image(bed: Bed, node: str, repository: str) -> None:
    """Remove an image from a node under all its names, and return when its layers are gone too."""
    references = bed.exec(node, ["ctr", "-n", "k8s.io", "images", "ls"]).splitlines()
    digests = {line.split()[2] for line in references if line.startswith((f"{repository}:", f"{repository}@"))}
    names = [line.split()[0] for line in references if line.split()[2] in digests]
    if names:
        bed.exec(node, ["ctr", "-n", "k8s.io", "images", "rm", "--sync", *names])
        time.sleep(2)  # containerd's collector runs a moment later; a "cold" pull would find the layers


def seconds_to_first_answer(bed: Bed, name: str) -> float:
    """Scale to one pod; returns the seconds from its creation (seen by watch) to its first completion, and scales back."""
    found: dict[str, float] = {}

    def has_address(event: Event) -> bool:
        pod = event.object
        if pod["metadata"]["labels"].get("app") != name or "deletionTimestamp" in pod["metadata"]:
            return False
        found.setdefault(pod["metadata"]["name"], event.at)
        return bool(pod["status"].get("podIP"))

    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    bed.kubectl("-n", NAMESPACE, "scale", "deployment", name, "--replicas=1")
    pod = bed.api.until(path, has_address, 120).object
    answered = first_answer(pod["status"]["podIP"])
    bed.kubectl("-n", NAMESPACE, "scale", "deployment", name, "--replicas=0")
    selector = f"{path}?labelSelector=app%3D{name}"
    wait_until(lambda: not bed.api.get(selector)["items"], 60, f"pods of {name} are gone")
    return answered - found[pod["metadata"]["name"]]


def first_answer(address: str, within_seconds: float = 240) -> float:
    """Ask until a completion comes; returns the monotonic time of it."""
    body = json.dumps({"prompt": "good morning", "max_tokens": 1})
    deadline = time.monotonic() + within_seconds
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(address, 8000, timeout=30)
        try:
            connection.request("POST", "/v1/completions", body)
            if connection.getresponse().status == 200:
                return time.monotonic()
        except OSError:
            pass  # nobody listens yet
        finally:
            connection.close()
        time.sleep(0.02)
    raise SystemExit(f"no answer from {address} in {within_seconds} s")


def report(samples: dict[str, list[float]], options: argparse.Namespace) -> int:
    """Print medians with ranges and whether the targets are met."""
    median = {start: statistics.median(values) for start, values in samples.items()}
    print(f"\ncreated -> first answer, seconds, median of {options.rounds} (range)")
    print(
        f"model {format_size(options.gigabytes * 1e9)}, image {options.image_megabytes} MB, registry and S3 at {options.mbit} Mbit/s"
    )
    for start, values in samples.items():
        print(f"  {start:6} {told(values):>20}")
    met = True
    if "warm" in median and "floor" in median:
        over = median["warm"] - median["floor"]
        met = over <= OVER_FLOOR_SECONDS
        print(f"warm is {over:.2f} s over the floor (target: at most {OVER_FLOOR_SECONDS})")
    if "init" in median and "floor" in median:
        print(f"init is {median['init'] - median['floor']:.2f} s over the floor (no target)")
    if "warm" in median and "cold" in median:
        times = median["cold"] / median["warm"]
        met = met and times >= TIMES_FASTER
        print(f"warm is {times:.1f} x faster than cold (target: at least {TIMES_FASTER})")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
