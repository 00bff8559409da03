"""What about a node's containerd keeps images from being warmed as well as they could be, and how to mend it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.core.units import format_size
from agent.images.daemon import Daemon, DaemonConfig
from agent.images.disk import Disk
from agent.images.lazy import LOCAL_SNAPSHOTTERS

_PINS_SINCE = {(1, 6): 22, (1, 7): 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing to mend, and how; `unseen` where it could not be looked at."""

    about: str
    message: str
    cure: str
    unseen: bool = False


def check_daemon(daemon: Daemon, snapshotter: str) -> Iterator[Check]:
    """Yield what is to be mended for images that are warmed in `snapshotter`."""
    about = f"containerd {daemon.version}"
    if not daemon.transfer:
        yield Check(about=about, message="it has no transfer service: a pull that breaks off begins anew",
                    cure="upgrade to containerd 1.7 or later")  # fmt: skip
    if daemon.number[2] < _PINS_SINCE.get(daemon.number[:2], 0):
        yield Check(about=about, message="it ignores pins: the kubelet's garbage collection may take warm images",
                    cure="upgrade to containerd 1.6.22, 1.7.3 or later")  # fmt: skip
    yield from _check_snapshotter(daemon, snapshotter)
    if daemon.config is None:
        yield Check(about=about, message="its configuration could not be read, so pulls go by the CRI and do not resume",
                    cure="run where its process is to be seen: as root, in the node's PID namespace (hostPID)", unseen=True)  # fmt: skip
    else:
        yield from _check_config(about, daemon, daemon.config, snapshotter)


def _check_snapshotter(daemon: Daemon, snapshotter: str) -> Iterator[Check]:
    about = f"snapshotter {snapshotter}"
    if snapshotter not in daemon.snapshotters:
        yield Check(about=about, message=f"containerd has none of that name, but {', '.join(sorted(daemon.snapshotters)) or 'none'}",
                    cure="set snapshotter (PREWARM_SNAPSHOTTER) to the one that the runtime uses")  # fmt: skip
    elif why := daemon.snapshotters[snapshotter]:
        yield Check(about=about, message=f"it did not load: {why}", cure="see containerd's log")


def _check_config(about: str, daemon: Daemon, config: DaemonConfig, snapshotter: str) -> Iterator[Check]:
    if config.snapshotter != snapshotter:
        yield Check(about=about, message=f"the runtime unpacks into {config.snapshotter}, prewarm proves {snapshotter}",
                    cure=f"set snapshotter (PREWARM_SNAPSHOTTER) to {config.snapshotter}")  # fmt: skip
    if config.legacy_registries:
        yield Check(about=about, message="registries are configured by mirrors, configs or auths: pulls do not resume",
                    cure="name them in hosts.toml files below config_path")  # fmt: skip
    if config.roots is not None and len(config.roots) > 1:
        yield Check(about=about, message=f"config_path names several directories ({', '.join(config.roots)}): a registry with a "
                    "hosts.toml in two of them is pulled by the CRI and does not resume",
                    cure="name one directory")  # fmt: skip
    if config.discards_layers:
        yield Check(about=about, message="discard_unpacked_layers is on: no other node can be served, and no other snapshotter later",
                    cure="set discard_unpacked_layers = false where mirrors between nodes are used")  # fmt: skip
    if snapshotter not in LOCAL_SNAPSHOTTERS and not config.annotates_snapshots and snapshotter not in config.annotated:
        cure = f'set enable_remote_snapshot_annotations = "true" in proxy_plugins.{snapshotter}.exports and '
        yield Check(about=f"snapshotter {snapshotter}", message="it is not told which layer it unpacks: every image is fetched whole",
                    cure=f"{cure}disable_snapshot_annotations = false for the CRI")  # fmt: skip
    if snapshotter != "overlayfs" and daemon.number >= (2, 1, 0) and snapshotter not in config.unpacks:
        yield Check(about=f"snapshotter {snapshotter}", message="the transfer service, by which the CRI pulls, cannot unpack into it",
                    cure='add an unpack_config for it to plugins."io.containerd.transfer.v1.local"')  # fmt: skip


def check_disk(disk: Disk | None, watermark: float) -> Iterator[Check]:
    """Yield that nothing can be pulled ahead of windows because the disk is full."""
    if disk and disk.free_bytes <= (1 - watermark) * disk.capacity_bytes:
        used = 1 - disk.free_bytes / disk.capacity_bytes
        yield Check(about="containerd's disk", message=f"{used:.0%} of {format_size(disk.capacity_bytes)} is used: no image is pulled "
                    "ahead of a window", cure="remove images, or raise image_watermark")  # fmt: skip
