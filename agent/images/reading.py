"""Reads lazy layers through, so that their bytes are here before a pod asks for them; a file that it starts with goes first.

No pod, no snapshot and no mount is made for it: a remote snapshotter mounts each layer once, and what is read there it keeps.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent.images.lazy import STATES

_STEP_BYTES = 1 << 20


def read_layers(layers: Sequence[Path], first: Sequence[str], stopped: Callable[[], bool]) -> int:
    """Read every file of every layer once; return the bytes read. Blocks for as long as the registry takes.

    Args:
        layers: where their files are, the top one first.
        first: paths inside the image that are read before all else.
        stopped: asked between two steps; True ends it.

    Raises:
        OSError: a file cannot be read: the registry or the snapshotter is away.
    """
    step, total = bytearray(_STEP_BYTES), 0
    for file in _in_order(layers, first):
        if stopped():
            break
        total += _read(file, step, stopped)
    return total


def _in_order(layers: Sequence[Path], first: Sequence[str]) -> Iterator[Path]:
    for name in first:
        top = next((f for layer in layers if _is_inside(f := layer / name.lstrip("/"), layer)), None)
        if top:
            yield top
    for layer in layers:
        for directory, below, files in os.walk(layer):  # does not follow links: they lead out of the layer
            below[:] = [name for name in below if name not in STATES]
            yield from (f for name in sorted(files) if _is_file(f := Path(directory, name)))


def _is_inside(path: Path, layer: Path) -> bool:
    """Say whether it is a regular file of the layer: no directory on the way is a link, which could lead to this machine's own."""
    try:
        linked = any(p.is_symlink() for p in path.parents if p != layer and p.is_relative_to(layer))
    except OSError:
        return False
    return not linked and _is_file(path)


def _is_file(path: Path) -> bool:
    """Say whether it is a regular file, without following a link to one of this machine's own."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _read(path: Path, step: bytearray, stopped: Callable[[], bool]) -> int:
    total = 0
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while not stopped() and (count := os.readv(handle, [step])):
            total += count
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)  # the bytes are on disk; memory is not asked for
    finally:
        os.close(handle)
    return total
