"""Which DaemonSets a node born with the start-up taint needs, and which of them it would wait for in vain."""

from __future__ import annotations

import pytest

from agent.advise.tolerations import TOLERATION, role, untolerating
from agent.kube.objects import DaemonSetView, Toleration

KUBELET = "/var/lib/kubelet"
ALL = Toleration(operator="Exists")
OURS = Toleration(key="prewarm.dev/not-ready", operator="Exists", effect="NoSchedule")


def daemonset(name: str, *images: str, paths: tuple[str, ...] = (), **other: object) -> DaemonSetView:
    view = {"namespace": "gpu", "name": name, "images": images, "host_paths": paths} | other
    return DaemonSetView(**view)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "needed_as"),
    [
        (daemonset("any", paths=(f"{KUBELET}/device-plugins",)), "device plugin"),
        (daemonset("any", paths=("/var/snap/microk8s/common/var/lib/kubelet/device-plugins/",)), "device plugin"),
        (daemonset("ebs-csi-node", paths=(f"{KUBELET}/plugins_registry/",)), "CSI or DRA driver"),
        (daemonset("cni", paths=("/opt/cni/bin", "/etc/cni/net.d")), "network plugin"),
        (daemonset("nvidia-driver-daemonset-5.15.0-x", "nvcr.io/nvidia/driver:570"), "GPU driver"),
        (daemonset("installer", "gcr.io/cos-nvidia-installer@sha256:0"), "GPU driver"),
        (daemonset("nvidia-driver-installer", "gke.gcr.io/pause:1"), "GPU driver"),
        (daemonset("x", "nvcr.io/nvidia/k8s/container-toolkit:v1.17.8"), "container toolkit"),
        (daemonset("nvidia-operator-validator", "nvcr.io/nvidia/gpu-operator:v25"), "GPU operator's validator"),
        (daemonset("dcgm-exporter", "nvcr.io/nvidia/k8s/dcgm-exporter:4", paths=("/run/nvidia",)), ""),
        (daemonset("gpu-feature-discovery", "nvcr.io/nvidia/k8s-device-plugin:v0.17", paths=("/sys",)), ""),
        (daemonset("logs", "fluent-bit:3", paths=("/var/log",)), ""),
    ],
    ids=lambda x: x.name if isinstance(x, DaemonSetView) else "",
)
def test_what_a_node_needs_a_daemonset_for(found: DaemonSetView, needed_as: str) -> None:
    assert role(found) == needed_as


@pytest.mark.parametrize(
    ("toleration", "enough"),
    [
        (ALL, True),
        (OURS, True),
        (Toleration(key="prewarm.dev/not-ready", operator="Exists"), True),
        (Toleration(key="prewarm.dev/not-ready", operator="Equal"), True),
        (Toleration(operator="Exists", effect="NoExecute"), False),
        (Toleration(key="prewarm.dev/not-ready", operator="Equal", value="x"), False),
        (Toleration(key="nvidia.com/gpu", operator="Exists"), False),
    ],
)
def test_what_tolerates_the_taint_is_left_alone(toleration: Toleration, enough: bool) -> None:
    plugin = daemonset("plugin", paths=(f"{KUBELET}/device-plugins",), tolerations=(toleration,))
    assert list(untolerating([plugin])) == ([] if enough else list(untolerating([plugin])))
    assert bool(list(untolerating([plugin]))) is not enough


def test_the_advice_names_the_toleration_and_where_it_belongs() -> None:
    plain = daemonset("b", paths=(f"{KUBELET}/device-plugins",))
    owned = daemonset("a", "nvcr.io/nvidia/driver:570", owner="ClusterPolicy/cluster-policy")
    first, second = untolerating([plain, owned, daemonset("logs")])
    assert (first.about, second.about) == ("daemonset gpu/a", "daemonset gpu/b")
    assert TOLERATION == "{key: prewarm.dev/not-ready, operator: Exists, effect: NoSchedule}"
    assert first.cure.endswith(f"what makes it (ClusterPolicy/cluster-policy): {TOLERATION}")
    assert "its pod template" in second.cure
    assert "this GPU driver does not tolerate prewarm.dev/not-ready:NoSchedule" in first.message
