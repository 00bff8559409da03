"""What about a node's containerd keeps images from being warmed as well as they could be, and how to mend it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from agent.core.units import format_size
from agent.images.daemon import Daemon, DaemonConfig
from agent.images.disk import Disk
from agent.images.lazy import LOCAL_SNAPSHOTTERS, SERVERS, lazy_format, whole_layers

_PINS_SINCE = {(1, 6): 22, (1, 7): 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing to mend, and how; `unseen` where it could not be looked at. Without a cure it is told for information."""

    about: str
    message: str
    cure: str = ""
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
    if snapshotter not in LOCAL_SNAPSHOTTERS and not _annotated(config, snapshotter):
        yield Check(about=f"snapshotter {snapshotter}", message="it is not told which layer it unpacks: every image is fetched whole",
                    cure=_annotations_cure(snapshotter))  # fmt: skip
    if snapshotter != "overlayfs" and daemon.number >= (2, 1, 0) and snapshotter not in config.unpacks:
        yield Check(about=f"snapshotter {snapshotter}", message="the transfer service, by which the CRI pulls, cannot unpack into it",
                    cure='add an unpack_config for it to plugins."io.containerd.transfer.v1.local"')  # fmt: skip


def check_image(image: str, manifest: Mapping[str, object], daemon: Daemon, snapshotter: str) -> Iterator[Check]:
    """Yield whether an image will be lazy here, and if not, what keeps it from that.

    Args:
        image: its name.
        manifest: the manifest of this machine's platform.
        daemon: this node's containerd.
        snapshotter: where images are unpacked.
    """
    kind, whole = lazy_format(manifest), whole_layers(manifest)
    if not kind:
        yield Check(about=image, message="it will be fetched whole: it is in no lazy format")
    elif snapshotter != SERVERS[kind]:
        yield Check(about=image, message=f"it is {kind}, but will be fetched whole: {snapshotter} does not serve that lazily",
                    cure=f"let the runtime use the {SERVERS[kind]} snapshotter, and set PREWARM_SNAPSHOTTER to it")  # fmt: skip
    elif daemon.snapshotters.get(snapshotter, "absent"):
        yield Check(about=image, message=f"it is {kind}, and cannot be pulled: snapshotter {snapshotter} is not loaded",
                    cure="start the snapshotter and name it in containerd's proxy_plugins")  # fmt: skip
    elif daemon.config and not _annotated(daemon.config, snapshotter):
        yield Check(about=image, message=f"it is {kind}, but will be fetched whole: {snapshotter} is not told which layer it unpacks",
                    cure=_annotations_cure(snapshotter))  # fmt: skip
    elif whole:
        yield Check(about=image, message=f"{whole} of its layers are not in the {kind} format: those will be fetched whole, and it is not lazy",
                    cure=f"convert the whole image, its base too, to {kind}")  # fmt: skip
    else:
        seen = "" if daemon.config else ", if its annotations are switched on, which cannot be seen from here"
        yield Check(about=image, message=f"it is {kind} and will be lazy in {snapshotter}{seen}")


def check_endpoint(endpoint: str, socket: str, snapshotter: str) -> Iterator[Check]:
    """Yield what the kubelet's image endpoint means for lazy images of private registries; "" where no kubelet is seen."""
    if not endpoint or snapshotter in LOCAL_SNAPSHOTTERS:
        return
    if PurePosixPath(endpoint).name == PurePosixPath(socket).name:
        yield Check(about="the kubelet", message=f"it pulls through containerd: {snapshotter} learns no credentials from it, so lazy images of private "
                    "registries need them in its own keychain")  # fmt: skip
    else:
        yield Check(about="the kubelet", message=f"it pulls through {endpoint}, which learns credentials for lazy images; prewarm pulls through {socket}",
                    cure=f"give {snapshotter} credentials of its own too (its docker or Kubernetes keychain)")  # fmt: skip


def _annotated(config: DaemonConfig, snapshotter: str) -> bool:
    return config.annotates_snapshots or snapshotter in config.annotated


def _annotations_cure(snapshotter: str) -> str:
    cure = f'set enable_remote_snapshot_annotations = "true" in proxy_plugins.{snapshotter}.exports and '
    return f"{cure}disable_snapshot_annotations = false for the CRI"


def check_disk(disk: Disk | None, watermark: float) -> Iterator[Check]:
    """Yield that nothing can be pulled ahead of windows because the disk is full."""
    if disk and disk.free_bytes <= (1 - watermark) * disk.capacity_bytes:
        used = 1 - disk.free_bytes / disk.capacity_bytes
        yield Check(about="containerd's disk", message=f"{used:.0%} of {format_size(disk.capacity_bytes)} is used: no image is pulled "
                    "ahead of a window", cure="remove images, or raise image_watermark")  # fmt: skip
