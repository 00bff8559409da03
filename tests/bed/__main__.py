"""The bed from a terminal.

python -m tests.bed up --nodes 2          until every node is Ready; it stays until `down`
python -m tests.bed kubectl get pods -A   as cluster administrator
python -m tests.bed in node-1 ctr -n k8s.io images ls
python -m tests.bed stop node-1           its power is cut; `start node-1` brings it back in a new boot
python -m tests.bed shape 400             Mbit/s to each node; `shape off`
python -m tests.bed rss                   what every process costs
python -m tests.bed down                  ends all of it
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tests.bed.bed import PROJECT, Bed
from tests.bed.process import BedError


def main() -> int:
    """Run one command; 1 where it failed, in one line."""
    options = _parser().parse_args()
    try:
        return _run(options)
    except BedError as failed:
        print(f"bed: {failed}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    bed = Bed(options.work)
    if options.command not in ("up", "down") and not (bed.work / "bed.json").exists():
        raise BedError(f"no bed in {bed.work}: `python -m tests.bed --work {options.work} up` first")
    match options.command:
        case "up":
            _up(options)
        case "down":
            bed.down()
        case "kubectl":
            return subprocess.call(bed.kubectl_command(*options.arguments))
        case "in":
            return subprocess.call(bed.inside(options.place, options.arguments))
        case "stop":
            bed.stop_node(options.node)
        case "start":
            bed.start_node(options.node)
        case "shape":
            bed.shape(options.rate)
        case "rss":
            _print_rss(bed)
    return 0


def _up(options: argparse.Namespace) -> None:
    started = time.monotonic()
    bed = Bed(
        options.work,
        options.nodes,
        containerd=options.containerd,
        lazy=options.lazy,
        taint=options.taint,
        proxy=options.proxy,
        fast_eviction=not options.slow_eviction,
        registry=options.registry,
    )
    bed.up(keep=True)
    print(f"{options.nodes} nodes Ready after {time.monotonic() - started:.1f} s")
    print(f"API https://{bed.control_address}  registry {bed.registry_address}  S3 {bed.s3.url}")


def _print_rss(bed: Bed) -> None:
    rows = bed.rss()
    for size, part, command in rows:
        print(f"{size / 2**20:8.0f} MiB  {part:10} {command}")
    print(f"{sum(size for size, _, _ in rows) / 2**20:8.0f} MiB  total")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=PROJECT / ".cache" / "bed", help="the bed's directory")
    commands = parser.add_subparsers(required=True, dest="command")
    up = commands.add_parser("up")
    up.add_argument("--nodes", type=int, default=2)
    up.add_argument(
        "--containerd", type=Path, action="append", default=[], help="directory of its programs, a node each"
    )
    up.add_argument("--lazy", action="store_true", help="use the stargz snapshotter (containerd 1.7 and later)")
    up.add_argument("--taint", action="store_true", help="nodes are born with prewarm.dev/not-ready:NoSchedule")
    up.add_argument("--proxy", action="store_true", help="run kube-proxy (iptables mode) on every node")
    up.add_argument("--slow-eviction", action="store_true", help="a dead node is NotReady after 50 s, not 8 s")
    up.add_argument("--registry", type=Path, help="a docker-registry directory to start from")
    for name in ("down", "rss"):
        commands.add_parser(name)
    for name in ("start", "stop"):
        commands.add_parser(name).add_argument("node")
    commands.add_parser("shape").add_argument("rate", type=_rate, help="Mbit/s, or off")
    kubectl = commands.add_parser("kubectl", prefix_chars="\0", add_help=False)  # its options are not ours
    kubectl.add_argument("arguments", nargs=argparse.REMAINDER)
    within = commands.add_parser("in", prefix_chars="\0", add_help=False)
    within.add_argument("place", help="cp or node-N")
    within.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def _rate(text: str) -> int | None:
    return None if text == "off" else int(text)


if __name__ == "__main__":
    sys.exit(main())
