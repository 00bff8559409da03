"""Which DaemonSets a node born with the start-up taint would wait for in vain. Pure.

The taint goes when the GPUs have proved healthy, and they cannot before driver, toolkit, device plugin and what else brings the
node up have run there: each of these must tolerate it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from agent.advise.advice import Advice
from agent.core.names import TAINT_EFFECT, TAINT_NOT_READY
from agent.kube.objects import DaemonSetView, Taint

TAINT = Taint(key=TAINT_NOT_READY, effect=TAINT_EFFECT)
TOLERATION = f"{{key: {TAINT_NOT_READY}, operator: Exists, effect: {TAINT_EFFECT}}}"

# By what it mounts of the node: the kubelet's sockets and CNI's directories are where they are, whatever made the DaemonSet.
_BY_PATH = (
    (re.compile(r"/device-plugins(/|$)"), "device plugin"),
    (re.compile(r"/plugins_registry(/|$)"), "CSI or DRA driver"),
    (re.compile(r"^/(etc/cni/net\.d|opt/cni/bin)(/|$)"), "network plugin"),
)
# By name, as the GPU operator, GKE and the images of NVIDIA call theirs.
_BY_NAME = (
    (re.compile(r"operator-validator"), "GPU operator's validator"),
    (re.compile(r"container-toolkit|nvidia-toolkit"), "container toolkit"),
    (re.compile(r"nvidia[/-](gpu-)?driver|gpu-driver|nvidia-installer|driver-installer"), "GPU driver"),
)


def role(daemonset: DaemonSetView) -> str:
    """Return what a node needs this DaemonSet for before its GPUs can prove healthy; "" for all others."""
    names = (daemonset.name, *(image.partition("@")[0] for image in daemonset.images))
    by_path = (told for pattern, told in _BY_PATH if any(pattern.search(path) for path in daemonset.host_paths))
    by_name = (told for pattern, told in _BY_NAME if any(pattern.search(name) for name in names))
    return next(by_path, "") or next(by_name, "")


def untolerating(daemonsets: Iterable[DaemonSetView]) -> Iterator[Advice]:
    """Yield advice for each DaemonSet that a node needs and that does not tolerate the start-up taint."""
    for found in sorted(daemonsets, key=lambda d: (d.namespace, d.name)):
        needed_as = role(found)
        if not needed_as or any(t.tolerates(TAINT) for t in found.tolerations):
            continue
        where = (
            f"what makes it ({found.owner})" if found.owner else "its pod template (or the chart that it comes from)"
        )
        yield Advice(
            about=f"daemonset {found.namespace}/{found.name}",
            message=f"this {needed_as} does not tolerate {TAINT_NOT_READY}:{TAINT_EFFECT}, so a node born with that taint never opens",
            cure=f"add to the tolerations of {where}: {TOLERATION}",
        )
