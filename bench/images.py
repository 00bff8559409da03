"""How soon a pod runs whose image was warmed, on a real cluster with its registry at 400 Mbit/s; all starts alternate.

    python -m bench.images plain   an image of 1 GB: cold, warmed before, and there all along
    python -m bench.images lazy    eStargz whose entry point reads 50 MB: fetched whole, proved lazy, hydrated (the registry away), local

A start counts from the request that creates the pod until a watch shows it Running (`plain`) or Ready (`lazy`: its one probe is
answered when the entry point has read its file). Every pull of a cold start is the kubelet's own. Pulls of prewarm are those of
the agent's images room, run in this process on the node's containerd.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

from agent.config import Settings
from agent.core.inventory import ImageLevel
from bench.coldstart import forget_image
from bench.demo import told
from tests.bed import Bed, Event, needs
from tests.bed.api import condition
from tests.bed.bed import PROJECT
from tests.bed.layers import Compression, Layer
from tests.bed.registry import Registry
from tests.bed.settings import REGISTRY
from tests.cluster.imageroom import image_room
from tests.cluster.product import wait_until

NODE, PODS = "node-1", "/api/v1/namespaces/default/pods"
SETTLE_SECONDS = 2
READ_BYTES = 50_000_000  # by the entry point, before it serves
PARTS = 4  # layers that the rest of an image is in
PLAIN, LAZY = ("cold", "warmed", "there"), ("lazy warm", "whole", "local", "lazy", "hydrated")
OVER_THERE_SECONDS, TIMES_FASTER = 0.1, 10
LAZY_SECONDS, OF_WHOLE, OVER_LOCAL_SECONDS = 1.0, 0.5, 0.2

Samples = dict[str, list[float]]


def main() -> int:
    """Measure, add to what was measured before, print; 0 if all targets are met."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.images", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["plain", "lazy"])
    parser.add_argument("--rounds", type=int, help="default: 10, lazy 20")
    parser.add_argument("--megabytes", type=int, help="size of the image; default: 1000, lazy 250")
    parser.add_argument("--mbit", type=int, default=400, help="rate of the registry to the node")
    parser.add_argument("--json", type=Path, help="add the samples to those in this file, and report all")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    lazy = options.what == "lazy"
    rounds, size = options.rounds or (20 if lazy else 10), (options.megabytes or (250 if lazy else 1000)) * 1_000_000
    containerd = needs.newer("sid", "containerd")
    if (reason := needs.why_not("lazy")) or containerd is None:
        raise SystemExit(f"cannot measure: {reason or 'containerd 2.1 is not there: run provision --matrix'}")
    kept = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    samples: Samples = {start: kept.get(start, []) for start in (LAZY if lazy else PLAIN)}
    work = PROJECT / ".cache" / f"bed-bench-{os.getpid()}"
    with Bed(work, nodes=1, containerd=[containerd], lazy=lazy) as bed:
        for number, _ in enumerate((measure_lazy if lazy else measure_plain)(bed, options.mbit, rounds, size, samples)):
            print(f"round {number + 1}  " + "  ".join(f"{s} {v[-1]:6.2f} s" for s, v in samples.items()), flush=True)
            if options.json:
                options.json.write_text(json.dumps(samples))
    return (report_lazy if lazy else report_plain)(samples, size, options.mbit)


def measure_plain(bed: Bed, mbit: int, rounds: int, size_bytes: int, samples: Samples) -> Iterator[None]:
    """Yield after each of the rounds of cold, warmed and there all along, the last of these an image of the same shape and other bytes."""
    make_image(bed, "there", size_bytes, "gzip")
    make_image(bed, "bench", size_bytes, "gzip")
    warm(bed, "there")
    start(bed, "there")
    for number in range(rounds):
        for name in PLAIN[:: 1 if number % 2 else -1]:
            image = "there" if name == "there" else "bench"
            if name != "there":
                forget(bed, image)
            if name == "warmed":
                warm(bed, image)
            bed.shape(mbit)
            samples[name].append(start(bed, image)[0])
            bed.shape(None)
        yield


def measure_lazy(bed: Bed, mbit: int, rounds: int, size_bytes: int, samples: Samples) -> Iterator[None]:
    """Yield after each of the rounds of one image fetched whole, the same again, and its eStargz twin, new each time, before and after hydration."""
    make_image(bed, "whole", size_bytes, "gzip")
    for number in range(rounds):
        twin = f"lazy-{number}"
        make_image(bed, twin, size_bytes, "estargz")
        for kind in ("whole", "lazy")[:: 1 if number % 2 else -1]:
            bed.shape(mbit)
            if kind == "whole":
                forget(bed, "whole")
                samples["whole"].append(start(bed, "whole")[1])
                samples["local"].append(start(bed, "whole")[1])
            else:
                samples["lazy warm"].append(warm(bed, twin))
                samples["lazy"].append(start(bed, twin)[1])
                bed.shape(None)
                warm(bed, twin, hydrate=True)
                bed.kill_registry()
                samples["hydrated"].append(start(bed, twin)[1])
                bed.start_registry()
                forget(bed, twin)
        yield


def make_image(bed: Bed, name: str, size_bytes: int, compression: Compression) -> None:
    """Push an image whose entry point reads one file before it serves."""
    program = needs.compiled("reader")
    read = Layer(size_bytes=READ_BYTES, seed=f"{name}-read", compression=compression, program=program)
    part = (size_bytes - READ_BYTES) // PARTS
    rest = [Layer(size_bytes=part, seed=f"{name}-{n}", compression=compression) for n in range(PARTS)]
    entry = ["/reader", f"/padding/{read.seed}/0"]
    Registry(bed.registry_address).make_image(name, "1", [*rest, read], entrypoint=entry)


def warm(bed: Bed, name: str, *, hydrate: bool = False) -> float:
    """Let prewarm make the image warm; returns the seconds from the plan that names it to the proof."""

    async def run() -> float:
        async with image_room(bed, NODE, settings_of(bed)) as room:
            began = time.monotonic()
            ref = room.want(f"{REGISTRY}/{name}:1", window=hydrate)
            levels = (ImageLevel.HYDRATED,) if hydrate else wanted_levels(bed)
            await room.until(ref, lambda state: state.level in levels, 300)
            return time.monotonic() - began

    return asyncio.run(run())


def settings_of(bed: Bed) -> Settings:
    """The agent's, for the snapshotter that this bed's runtime uses."""
    snapshotter = "stargz" if bed.settings.lazy else "overlayfs"
    return Settings(snapshotter=snapshotter, image_watermark=1.0, proof_interval_seconds=1.0)


def wanted_levels(bed: Bed) -> Sequence[ImageLevel]:
    """What the proof must say: an image that was fetched whole though it should be lazy is no success."""
    return (ImageLevel.LAZY,) if bed.settings.lazy else (ImageLevel.UNPACKED,)


def forget(bed: Bed, name: str) -> None:
    """Remove the image with all that was fetched for it."""
    forget_image(bed, NODE, f"{REGISTRY}/{name}")


def start(bed: Bed, name: str) -> tuple[float, float]:
    """Run a pod of the image; returns the seconds until it was Running and until it was Ready, and removes it."""
    os.sync()  # what the step before wrote is not written while this one is timed
    time.sleep(SETTLE_SECONDS)
    running: list[float] = []

    def ready(event: Event) -> bool:
        if event.object["status"].get("phase") == "Running" and not running:
            running.append(event.at)
        return condition(event.object, "Ready") == "True"

    began = time.monotonic()
    bed.api.post(PODS, pod(name))
    done = bed.api.until(f"{PODS}?fieldSelector=metadata.name%3D{name}", ready, 300)
    bed.api.delete(f"{PODS}/{name}")
    clear(bed)
    return running[0] - began, done.at - began


def clear(bed: Bed) -> None:
    """Return when nothing runs on the node, and remove what has run: the kubelet does so once a minute only."""
    ctr = ["ctr", "-n", "k8s.io"]
    wait_until(lambda: "RUNNING" not in bed.exec(NODE, [*ctr, "tasks", "ls"]), 60, "nothing runs any more")
    time.sleep(1)  # until the kubelet has seen it
    for name in bed.exec(NODE, [*ctr, "containers", "ls", "-q"]).split():
        subprocess.run(bed.inside(NODE, [*ctr, "containers", "rm", name]), capture_output=True, check=False)


def pod(name: str) -> dict[str, object]:
    """Probed without end from the moment it runs: the first probe is answered when it serves."""
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 300}
    container = {"name": "main", "image": f"{REGISTRY}/{name}:1", "readinessProbe": probe}
    spec = {"terminationGracePeriodSeconds": 0, "dnsPolicy": "Default", "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def report_plain(samples: Samples, size_bytes: int, mbit: int) -> int:
    """Print medians with ranges, and whether the targets are met."""
    print_all(samples, f"created -> Running, image of {size_bytes / 1e6:.0f} MB, registry at {mbit} Mbit/s")
    median = {start: statistics.median(values) for start, values in samples.items()}
    over, times = median["warmed"] - median["there"], median["cold"] / median["warmed"]
    print(f"warmed is {over:.3f} s over there all along (target: at most {OVER_THERE_SECONDS})")
    print(f"warmed is {times:.1f} x faster than cold (target: at least {TIMES_FASTER})")
    return 0 if over <= OVER_THERE_SECONDS and times >= TIMES_FASTER else 1


def report_lazy(samples: Samples, size_bytes: int, mbit: int) -> int:
    """Print medians with ranges, and whether the targets are met."""
    what = f"created -> Ready, image of {size_bytes / 1e6:.0f} MB of which {READ_BYTES / 1e6:.0f} MB are read first"
    print_all(samples, f"{what}, registry at {mbit} Mbit/s")
    median = {start: statistics.median(values) for start, values in samples.items()}
    share, over = median["lazy"] / median["whole"], median["hydrated"] - median["local"]
    print(f"proved lazy after {median['lazy warm']:.2f} s (target: below {LAZY_SECONDS})")
    print(f"lazy takes {share:.2f} of the start that fetches all (target: at most {OF_WHOLE})")
    print(f"hydrated, with the registry away, is {over:.2f} s over fully local (target: at most {OVER_LOCAL_SECONDS})")
    return 0 if median["lazy warm"] < LAZY_SECONDS and share <= OF_WHOLE and over <= OVER_LOCAL_SECONDS else 1


def print_all(samples: Samples, what: str) -> None:
    """Print each start's median and range."""
    count = min(map(len, samples.values()))
    print(f"\n{what}; seconds, median of {count} (range)")
    for name, values in samples.items():
        print(f"  {name:9} {told(values):>22}")


if __name__ == "__main__":
    sys.exit(main())
