"""The disk under containerd's images, and what a pull will take of it. Pure, but for one statvfs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agent.core.refs import ImageRef
from agent.core.units import format_size
from agent.images.faults import Fault, TransientFault
from agent.images.rooted import inside

# Bytes on disk for one compressed byte: the blob itself, and unpacked about twice of it. A judgement for serving images (CUDA and
# Python libraries in gzip); too much is the safe side.
DISK_FACTOR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A file system: its size, and what is left of it, in bytes as the kubelet counts them."""

    capacity_bytes: int
    free_bytes: int


def read_disk(root: Path, directory: str) -> Disk | None:
    """Return the file system of a directory below another `root`, None where it is not there."""
    try:
        found = os.statvfs(inside(root, directory))
    except OSError:
        return None
    return Disk(capacity_bytes=found.f_blocks * found.f_frsize, free_bytes=found.f_bavail * found.f_frsize)


def check_room(ref: ImageRef, disk: Disk, missing_bytes: int, watermark: float) -> None:
    """Refuse a pull that would fill the disk beyond the watermark.

    Args:
        ref: the image.
        disk: as it is now.
        missing_bytes: compressed bytes that are still to come; 0 if that is not known yet.
        watermark: the share that may be used.

    Raises:
        TransientFault: with the numbers.
    """
    room = disk.free_bytes - int((1 - watermark) * disk.capacity_bytes)
    need = missing_bytes * DISK_FACTOR
    if need <= room and room > 0:
        return
    raise TransientFault(
        f"cannot pull {ref}: it needs some {format_size(need)} and containerd's disk has {format_size(max(0, room))} left below "
        f"{watermark:.0%} of {format_size(disk.capacity_bytes)}: remove images or raise image_watermark",
        Fault.NO_SPACE,
    )
