"""The first process of a node: private mounts, then containerd, kubelet and what else was chosen, then reap for ever.

Run as `python -m tests.bed.node WORK node-N` in fresh mount, PID, UTS and IPC namespaces and the node's network
namespace; nowhere else, since it mounts over /run and /var/lib.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.bed import config
from tests.bed.process import ENVIRONMENT, BedError, run, start, wait_until
from tests.bed.settings import REGISTRY, Settings

# Directories that a node must not share with its neighbours, bound from WORK/<node>/.
DIRECTORIES = (
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/lib/prewarm",
    "/var/lib/containerd-stargz-grpc",
    "/var/log/pods",
    "/var/log/containers",
    "/etc/containerd",
    "/etc/cni/net.d",
    "/etc/containerd-stargz-grpc",
)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Node:
    """One node as seen from within."""

    def __init__(self, work: Path, name: str) -> None:
        settings = Settings.load(work)
        if settings is None:
            raise SystemExit(f"no bed in {work}")
        self.settings, self.work, self.name = settings, work, name
        self.disk = work / name
        self.containerd = settings.containerd_of(name)

    def boot(self) -> None:
        """Mount, configure, start; returns when kubelet has been started."""
        self._mount()
        self._new_boot_id()
        self._configure()
        run(["hostname", self.name])
        if self.settings.lazy:
            stargz = [f"{self.work}/bin/containerd-stargz-grpc", "--config=/etc/containerd-stargz-grpc/config.toml"]
            self._start("stargz", stargz)
            _wait_for("/run/containerd-stargz-grpc/containerd-stargz-grpc.sock")
        self._start("containerd", [f"{self.containerd}/containerd"])
        _wait_for("/run/containerd/containerd.sock")
        self._start_kubelet()

    def _mount(self) -> None:
        # Inherited copies of network namespaces, other beds' too, would keep those alive after their end.
        for target in _namespaces():
            with suppress(BedError):  # whoever removes a namespace elsewhere unmounts it here
                run(["umount", target])
        if left := _namespaces():
            raise BedError(f"cannot unmount {', '.join(left)}")
        run(["mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run"])
        for directory in ("netns", "containerd-stargz-grpc", "prewarm-bed"):
            Path("/run", directory).mkdir()
        for target in DIRECTORIES:
            source = self.disk / target.strip("/")
            source.mkdir(parents=True, exist_ok=True)
            Path(target).mkdir(parents=True, exist_ok=True)
            run(["mount", "--bind", str(source), target])
        run(["mount", "--make-rshared", "/"])  # pods may ask for Bidirectional propagation

    def _new_boot_id(self) -> None:
        """All nodes share a kernel, hence a boot id; each start of a node gets its own, from `Bed.start_node`."""
        file = self.disk / "boot_id"
        run(["mount", "--bind", str(file), str(BOOT_ID)])
        hook = config.BOOT_ID_HOOK  # for the containers
        hook.write_text(config.boot_id_hook(file))
        hook.chmod(0o755)

    def _configure(self) -> None:
        addresses = self.settings.addresses
        hosts = Path("/etc/containerd/certs.d", REGISTRY, "hosts.toml")
        hosts.parent.mkdir(parents=True, exist_ok=True)
        hosts.write_text(config.registry_hosts(addresses))
        containerd = config.containerd(self._containerd_major(), lazy=self.settings.lazy)
        Path("/etc/containerd/config.toml").write_text(containerd)
        config.BASE_SPEC.write_text(config.base_spec(run([f"{self.containerd}/ctr", "oci", "spec"])))
        Path("/etc/containerd-stargz-grpc/config.toml").write_text(config.stargz(addresses))
        Path("/etc/cni/net.d/10-bed.conflist").write_text(config.pod_network(addresses.node_pods(self.name)))
        cgroup_root = f"/{self.settings.name}/{self.name}"
        quick, hungry = self.settings.fast_eviction, self.settings.hungry
        kubelet = config.kubelet(self.work / "pki", self.name, cgroup_root, fast_eviction=quick, hungry=hungry)
        (self.disk / "kubelet.yaml").write_text(kubelet)

    def _containerd_major(self) -> int:
        told = run([f"{self.containerd}/containerd", "--version"])
        found = re.search(r"v?(\d+)\.\d+\.\d+", told)
        if found is None:
            raise SystemExit(f"cannot tell containerd's version from {told!r}")
        return int(found[1])

    def _start_kubelet(self) -> None:
        pki = self.work / "pki"
        kubelet = [
            f"{self.work}/bin/kubelet",
            f"--config={self.disk}/kubelet.yaml",
            f"--kubeconfig={pki}/{self.name}.conf",
            f"--hostname-override={self.name}",
            f"--node-ip={self.settings.addresses.node(self.name)}",
            "--v=2",
        ]
        if self.settings.taint:
            kubelet.append("--register-with-taints=prewarm.dev/not-ready=:NoSchedule")
        self._start("kubelet", kubelet)
        if self.settings.proxy:
            proxy = [
                f"{self.work}/bin/kube-proxy",
                f"--kubeconfig={pki}/proxy.conf",
                "--proxy-mode=iptables",
                f"--hostname-override={self.name}",
                f"--cluster-cidr={self.settings.addresses.pods}",
                "--conntrack-max-per-core=0",
            ]
            self._start("kube-proxy", proxy)

    def _start(self, name: str, command: list[str]) -> None:
        path = f"{self.containerd}:{ENVIRONMENT['PATH']}"  # containerd finds its own shim first
        start(command, self.work / "log" / f"{self.name}-{name}.log", ENVIRONMENT | {"PATH": path})


def _namespaces() -> list[str]:
    """Where namespaces are mounted."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if " - nsfs " in line]


def _wait_for(socket: str) -> None:
    wait_until(Path(socket).exists, 60, f"{socket} appears", every=0.02)


def _reap_for_ever() -> None:
    while True:
        with suppress(ChildProcessError):
            os.wait()  # shims are reparented to us
            continue
        time.sleep(0.5)


if __name__ == "__main__":
    if os.getpid() != 1:
        raise SystemExit("this is the first process of a node; run `python -m tests.bed up`")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    Node(Path(sys.argv[1]), sys.argv[2]).boot()
    _reap_for_ever()
