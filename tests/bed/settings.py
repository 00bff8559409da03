"""What one bed is: the choices made at `up`, and the addresses that follow from its slot."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

REGISTRY = "registry.bed"  # image names are registry.bed/NAME:TAG; containerd is told where that is
REGISTRY_PORT = 5000
S3_PORT = 7070
SERVICE_IP = "10.96.0.1"  # what KUBERNETES_SERVICE_HOST says inside pods
SLOTS = 16  # beds at a time on one machine
NODES = 15  # in one bed: a slot has 16 pod subnets
S3_ACCESS_KEY = "bed-access-key"
S3_SECRET_KEY = "bed-secret-key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where everything of one bed is. A slot is a number that no other bed on this machine has: 0 when it is alone."""

    slot: int

    @property
    def control(self) -> str:
        """API server (443), registry (5000), S3 (7070); also the nodes' default route."""
        return f"10.77.{self.slot}.1"

    @property
    def host(self) -> str:
        """The machine's own leg into the bed."""
        return f"10.77.{self.slot}.254"

    @property
    def pods(self) -> str:
        """The subnet of all pods of this bed, reachable from the machine."""
        return f"10.78.{self.slot * 16}.0/20"

    def node(self, node: str) -> str:
        """A node's address."""
        return f"10.77.{self.slot}.{10 + number(node)}"

    def node_pods(self, node: str) -> str:
        """The subnet of one node's pods."""
        return f"10.78.{self.slot * 16 + number(node)}.0/24"

    @property
    def link(self) -> str:
        """The machine's network interface into the bed. Its existence is the claim on the slot."""
        return f"pwbed{self.slot}"


def number(node: str) -> int:
    """3 for node-3."""
    return int(node.removeprefix("node-"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The choices made at `up`; kept in WORK/bed.json until `down`.

    Attributes:
        nodes: how many nodes, 1 to 15.
        containerd: a directory with containerd's programs for each node, the last repeats; empty: the system's.
        lazy: use the stargz snapshotter (containerd 1.7 and later).
        taint: nodes are born with prewarm.dev/not-ready:NoSchedule.
        proxy: run kube-proxy on every node, for tests that use a Service.
        fast_eviction: a dead node is NotReady after 8 s, not 50 s.
        hungry: the kubelet finds its disk too full all the time, and collects every image that it may, each 10 s.
        registry: a docker-registry directory to start from.
        owner: `pid start-time` of the process without which this bed is a leftover; empty: it stays until `down`.
        slot: see Addresses; chosen by `up`.
        name: of its network namespaces and cgroups.
    """

    nodes: int = 2
    containerd: tuple[str, ...] = ()
    lazy: bool = False
    taint: bool = False
    proxy: bool = False
    fast_eviction: bool = True
    hungry: bool = False
    registry: str = ""
    owner: str = ""
    slot: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= NODES:
            raise ValueError(f"nodes must be 1 to {NODES}, not {self.nodes}")

    @property
    def names(self) -> list[str]:
        """node-1, node-2, …"""
        return [f"node-{n}" for n in range(1, self.nodes + 1)]

    @property
    def addresses(self) -> Addresses:
        """Where everything is."""
        return Addresses(slot=self.slot)

    def containerd_of(self, node: str) -> Path:
        """The directory of this node's containerd."""
        chosen = self.containerd or ("/usr/bin",)
        return Path(chosen[min(number(node), len(chosen)) - 1])

    def save(self, work: Path) -> None:
        """Write WORK/bed.json."""
        (work / "bed.json").write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @staticmethod
    def load(work: Path) -> Settings | None:
        """Read WORK/bed.json; None where no bed is."""
        try:
            saved = json.loads((work / "bed.json").read_text())
        except FileNotFoundError:
            return None
        return Settings(**(saved | {"containerd": tuple(saved["containerd"])}))
