"""The texts that the bed's programs are configured with. No file is written and nothing is asked here."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bed.settings import REGISTRY, REGISTRY_PORT, Addresses

PAUSE = f"{REGISTRY}/pause:1"
BASE_SPEC = Path("/etc/containerd/base-spec.json")
BOOT_ID_HOOK = Path("/run/prewarm-bed/hook")

_STARGZ_PLUGIN = """
[proxy_plugins.stargz]
  type = "snapshot"
  address = "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock"
  [proxy_plugins.stargz.exports]
    root = "/var/lib/containerd-stargz-grpc"
    enable_remote_snapshot_annotations = "true"
"""


def containerd(major: int, *, lazy: bool) -> str:
    """config.toml of containerd 1.x or 2.x.

    restrict_oom_score_adj: without CAP_SYS_RESOURCE nobody may lower a score, and every sandbox would fail.
    """
    snapshotter = 'snapshotter = "stargz"\n    disable_snapshot_annotations = false' if lazy else ""
    plugin = _STARGZ_PLUGIN if lazy else ""
    if major >= 2:
        return f"""version = 3
[plugins."io.containerd.cri.v1.images"]
    {snapshotter}
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{BASE_SPEC}"
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
{plugin}"""
    return f"""version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    {snapshotter}
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      base_runtime_spec = "{BASE_SPEC}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
{plugin}"""


def base_spec(default: str) -> str:
    """What every container starts from: containerd's own default (`ctr oci spec`) and our hook."""
    hook = {"path": str(BOOT_ID_HOOK), "args": [BOOT_ID_HOOK.name]}
    return json.dumps(json.loads(default) | {"hooks": {"createContainer": [hook]}})


def boot_id_hook(node_boot_id: Path) -> str:
    """Gives a container its node's boot id; run in its namespaces, before its root is changed.

    Every container has a /proc of its own, which shows the kernel's boot id, the same on all nodes and for ever; and
    runc allows no such mount in /proc.
    """
    return f"""#!/bin/sh -e
bundle=$(sed 's/.*"bundle": *"\\([^"]*\\)".*/\\1/')
exec mount --bind {node_boot_id} "$bundle/rootfs/proc/sys/kernel/random/boot_id"
"""


def registry_hosts(addresses: Addresses) -> str:
    """certs.d/registry.bed/hosts.toml: pulls go through a mirror entry, as in the field."""
    url = f"http://{addresses.control}:{REGISTRY_PORT}"
    return f'server = "{url}"\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n'


def stargz(addresses: Addresses) -> str:
    """config.toml of the stargz snapshotter."""
    return f'[[resolver.host."{REGISTRY}".mirrors]]\nhost = "{addresses.control}:{REGISTRY_PORT}"\ninsecure = true\n'


def pod_network(subnet: str) -> str:
    """The CNI configuration list of one node: a bridge, plainly routed, no NAT."""
    address_management = {
        "type": "host-local",
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": address_management,
    }
    # No portmap: nothing here uses a hostPort outside the host's network, and each plugin is a process for each pod.
    return json.dumps({"cniVersion": "0.4.0", "name": "bed", "plugins": [bridge]})


def kubelet(pki: Path, node: str, cgroup_root: str, *, fast_eviction: bool, hungry: bool = False) -> str:
    """KubeletConfiguration; the rest are flags."""
    least = "99%" if hungry else "1%"
    return f"""apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {pki}/ca.crt}}}}
authorization: {{mode: Webhook}}
tlsCertFile: {pki}/{node}.crt
tlsPrivateKeyFile: {pki}/{node}.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
failCgroupV1: false                # version 1 is refused by default since 1.35, and some machines still have it
cgroupDriver: cgroupfs
cgroupRoot: {cgroup_root}
enforceNodeAllocatable: []
failSwapOn: false
resolvConf: ""
evictionHard: {{nodefs.available: "{least}", imagefs.available: "{least}", memory.available: 100Mi}}
imageGCHighThresholdPercent: 100   # the machine's disk is not this bed's business
imageMinimumGCAge: {"1s" if hungry else "2m"}
serializeImagePulls: false
nodeStatusUpdateFrequency: {"2s" if fast_eviction else "10s"}
nodeLeaseDurationSeconds: {"8" if fast_eviction else "40"}
"""


def kubeconfig(pki: Path, name: str, addresses: Addresses) -> str:
    """Client configuration of the identity `name`."""
    cluster = f'server: "https://{addresses.control}:443", certificate-authority: {pki}/ca.crt'
    return f"""apiVersion: v1
kind: Config
clusters: [{{name: bed, cluster: {{{cluster}}}}}]
users: [{{name: me, user: {{client-certificate: {pki}/{name}.crt, client-key: {pki}/{name}.key}}}}]
contexts: [{{name: bed, context: {{cluster: bed, user: me}}}}]
current-context: bed
"""


def registry(directory: Path) -> str:
    """docker-registry's configuration: its store, and every request in its log."""
    return f"""version: 0.1
log: {{level: warn, accesslog: {{disabled: false}}}}
storage: {{filesystem: {{rootdirectory: {directory}}}, delete: {{enabled: true}}}}
http: {{addr: ":{REGISTRY_PORT}"}}
"""
