"""How much of its file system the store may take: the arithmetic of admission, and the watermark where none is set.

A kubelet collects images above 85 % and evicts pods below 15 % free for images (its defaults: `imageGCHighThresholdPercent`,
`evictionHard`, Kubernetes 1.37), and neither frees a byte of the store. So where the store shares a file system with kubelet
or containerd, models stop well below, and images have the rest to grow in.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import structlog

from agent.core.errors import Permanent
from agent.core.units import format_size

log = structlog.get_logger(__name__)

KUBELET_ACTS_AT = 0.85
SAFE_WATERMARK = 0.80  # where the kubelet stops collecting (`imageGCLowThresholdPercent`)
SHARED_WATERMARK = 0.75
OWN_WATERMARK = 0.95  # ext4 and XFS grow slow when fuller
_NEIGHBOURS = ("var/lib/kubelet", "var/lib/containerd")
HOST = Path("/proc/1/root")  # the agent shares the node's PID namespace


class NoRoom(Permanent):
    """A version does not fit now; it does as soon as `short_bytes` more are free."""

    def __init__(self, message: str, *, needed_bytes: int, short_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes, self.short_bytes = needed_bytes, short_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A file system: its size, and what one without privileges may still take of it."""

    capacity_bytes: int
    free_bytes: int

    def room_bytes(self, high_watermark: float, reserved_bytes: int = 0) -> int:
        """Return what models may still take, `reserved_bytes` being spoken for."""
        below = self.free_bytes - (self.capacity_bytes - int(high_watermark * self.capacity_bytes))
        return max(0, min(self.free_bytes, below) - reserved_bytes)

    def check(self, needed_bytes: int, high_watermark: float, reserved_bytes: int = 0) -> None:
        """Check that this much fits.

        Raises:
            NoRoom: it does not, with numbers.
        """
        room = self.room_bytes(high_watermark, reserved_bytes)
        if needed_bytes <= room:
            return
        spoken = f", {format_size(reserved_bytes)} are spoken for by other downloads" if reserved_bytes else ""
        raise NoRoom(
            f"needs {format_size(needed_bytes)} but only {format_size(room)} may be used: the store's file system "
            f"has {format_size(self.free_bytes)} free of {format_size(self.capacity_bytes)} and is filled to "
            f"{high_watermark:.0%} at most{spoken}",
            needed_bytes=needed_bytes,
            short_bytes=needed_bytes - room,
        )


def space_of(root: Path) -> Space:
    """Ask the file system under `root`."""
    found = os.statvfs(root)
    return Space(capacity_bytes=found.f_blocks * found.f_frsize, free_bytes=found.f_bavail * found.f_frsize)


def watermark_of(setting: float | None, root: Path, host: Path = HOST) -> float:
    """Return the watermark to keep: what is set, else by whether the store shares a file system with kubelet or containerd."""
    shared = _is_shared(root, host)
    if setting is None:
        return SHARED_WATERMARK if shared else OWN_WATERMARK
    if shared and setting > SAFE_WATERMARK:
        log.warning(
            "models may fill the file system up to where the kubelet collects images and evicts pods, unless its thresholds differ",
            high_watermark=setting,
            kubelet_acts_at=KUBELET_ACTS_AT,
        )
    return setting


def _is_shared(root: Path, host: Path) -> bool:
    """Say whether kubelet or containerd is on the same file system; where neither can be looked at, they are taken to be."""
    while not root.exists() and root != root.parent:
        root = root.parent
    try:
        mine = root.stat().st_dev
    except OSError:
        return True
    seen = []
    for name in _NEIGHBOURS:
        try:
            seen.append((host / name).stat().st_dev)
        except OSError:
            continue
    return mine in seen or not seen
