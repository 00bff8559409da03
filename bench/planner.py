"""The whole planner on a large fleet, against a real API server and S3: seconds of its plans, its peak of memory, what it writes.

`bench.fleet` takes the plan alone. Here `prewarm planner` lists 5,000 Nodes of a kubelet's size and 1,000 Deployments, resolves
their 1,000 models, publishes, and plans again after one node has left. Nobody stands behind the Nodes. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bed import Bed, Object
from tests.bed.api import ApiError
from tests.bed.bed import PROJECT
from tests.cluster.product import NAMESPACE, deployment

PUBLISH_SECONDS = 1200.0  # 731 measured for all on two cores
WARMUPS = "/apis/prewarm.dev/v1alpha1/nodewarmups"
PLANNED = re.compile(r"planned .*endpoints=(\d+) .*?seconds=([\d.]+)")


def main() -> int:
    """Build the fleet, run the planner, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--endpoints", type=int, default=1000)
    options = parser.parse_args()
    with Bed(PROJECT / ".cache" / f"bed-bench-{os.getpid()}", nodes=1, fast_eviction=False) as bed:
        bed.kubectl("apply", "-f", str(PROJECT / "deploy/crd.yaml"))
        bed.kubectl("wait", "--for=condition=Established", "crd/nodewarmups.prewarm.dev", "--timeout=30s")
        bed.api.post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        bed.s3.make_bucket("models")  # here, for several at once would race
        for service in ("kcm", "scheduler"):
            bed.kill_service(service)  # no kubelet beats for these nodes, and nothing is to be rolled out
        wait_for(lambda: answers(bed), 60, "the API server serves the new kind")
        at_once(lambda n: add_node(bed, n), range(options.nodes))
        at_once(lambda n: add_endpoint(bed, n), range(options.endpoints))
        print(json.dumps(measure(bed, options.endpoints)))
    return 0


def at_once(work: Callable[[int], None], items: Iterable[int]) -> None:
    """Do it for all, eight at a time."""
    with ThreadPoolExecutor(8) as several:
        list(several.map(work, items))


def add_node(bed: Bed, n: int) -> None:
    """Add a Node as large as a kubelet's: forty images, and labels as clouds set them."""
    name = f"ip-10-{n // 256}-{n % 256}.ec2.internal"
    labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": f"eu-{'abc'[n % 3]}", "pool": f"p{n % 4}"}
    labels |= {f"label-{k}.example.com/key": f"value-{n % 7}-{k}" for k in range(15)}
    images = [{"names": [f"registry.example.com/team/{n}-{k}@sha256:{k:064x}"], "sizeBytes": 10**9} for k in range(40)]
    bed.api.post("/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
    ready = {"type": "Ready", "status": "True", "reason": "Bench"}
    capacity = {"nvidia.com/gpu": "8", "cpu": "96", "memory": "1024Gi"}
    status = {"conditions": [ready], "images": images, "capacity": capacity, "allocatable": capacity}
    bed.api.patch(f"/api/v1/nodes/{name}/status", {"status": status})
    bed.api.patch(
        f"/api/v1/nodes/{name}", {"spec": {"taints": []}}
    )  # every Node is born with node.kubernetes.io/not-ready


def add_endpoint(bed: Bed, n: int) -> None:
    """Add a Deployment with a model of its own, for one to ten nodes of a quarter of the fleet."""
    bed.s3.put("models", f"bench/{n}/model.safetensors", f"model {n}".encode())
    annotations = {
        "prewarm.dev/models": f"s3://models/bench/{n}/",
        "prewarm.dev/schedule": f"{n % 60} {n % 24} * * MON-FRI; 30 20 * * *",
        "prewarm.dev/timezone": ("Europe/Berlin", "America/New_York", "Asia/Tokyo")[n % 3],
        "prewarm.dev/nodes": str(1 + n % 10),
        "prewarm.dev/images": "off",
    }
    made = deployment(f"endpoint-{n}", annotations, gpus=1 + n % 8)
    made["spec"]["template"]["spec"] |= {"tolerations": [{"operator": "Exists"}], "nodeSelector": {"pool": f"p{n % 4}"}}
    bed.api.post("/apis/apps/v1/namespaces/default/deployments", made)


def measure(bed: Bed, endpoints: int) -> dict[str, object]:
    """Run the planner until everything is published, take a node away, and wait for what that moves."""
    places = sum(1 + n % 10 for n in range(endpoints))
    settings = {
        "POD_NAME": "bench",
        "PREWARM_KUBECONFIG": str(bed.kubeconfig),
        "PREWARM_HTTP_ADDRESS": "127.0.0.1:0",
        "PREWARM_SOURCES": "*=s3://models/",
        "PREWARM_LOG_LEVEL": "debug",
        "AWS_ENDPOINT_URL": bed.s3.url,
        "AWS_REGION": bed.s3.region,
        "AWS_ACCESS_KEY_ID": bed.s3.access_key,
        "AWS_SECRET_ACCESS_KEY": bed.s3.secret_key,
    }
    with (PROJECT / ".cache" / "bench-planner.log").open("w+b") as log:
        command = [str(Path(sys.executable).parent / "prewarm"), "planner"]
        process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
        try:
            began = time.monotonic()
            wait_for(
                lambda: all_published(bed, places, began), PUBLISH_SECONDS, f"everything is published; see {log.name}"
            )
            published = time.monotonic() - began
            before = assigned(bed)
            gone = max(before, key=lambda name: before[name])
            bed.api.delete(f"/api/v1/nodes/{gone}")
            rest = {name: count for name, count in before.items() if name != gone}
            wait_for(lambda: moved(rest, assigned(bed)) >= before[gone], 60, "what was on it is elsewhere")
            status = Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.terminate()
            process.wait()
        plans = [(int(n), float(s)) for n, s in PLANNED.findall(Path(log.name).read_text())]
    whole = [seconds for count, seconds in plans if count == endpoints]
    return {
        "endpoints": endpoints,
        "places": places,
        "nodes_with_endpoints": len(before),
        "published_seconds": round(published),
        "plans": len(whole),
        "longest_plan_seconds": max(whole),
        "last_plan_seconds": whole[-1],
        "had": before[gone],
        "moved": moved(rest, assigned(bed)),
        "peak_mb": kilobytes(status, "VmHWM") // 1024,
        "now_mb": kilobytes(status, "VmRSS") // 1024,
    }


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Ask every few seconds: each question is a list of thousands of NodeWarmups."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(5)


def all_published(bed: Bed, places: int, began: float) -> bool:
    """Say whether every endpoint is on all its nodes, and on stderr how far that is."""
    done = sum(assigned(bed).values())
    print(f"{time.monotonic() - began:.0f} s: {done} of {places} published", file=sys.stderr, flush=True)
    return done == places


def answers(bed: Bed) -> bool:
    """Say whether NodeWarmups can be listed; those of a kind just made cannot be for a moment."""
    try:
        bed.api.get(WARMUPS)
    except ApiError:
        return False
    return True


def assigned(bed: Bed) -> dict[str, int]:
    """Return how many endpoints each node has."""
    items: list[Object] = bed.api.get(WARMUPS)["items"]
    return {w["metadata"]["name"]: len(w["spec"].get("endpoints", [])) for w in items}


def moved(before: dict[str, int], after: dict[str, int]) -> int:
    """Return how many endpoints nodes have got, at least."""
    return sum(max(0, after.get(name, 0) - before.get(name, 0)) for name in {*before, *after})


def kilobytes(status: str, name: str) -> int:
    """Read a line of /proc/PID/status."""
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{name}:")))


if __name__ == "__main__":
    sys.exit(main())
