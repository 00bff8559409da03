"""Who has a file open or mapped: a look through `/proc`, as far as it may be seen (the agent runs in the node's PID namespace)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path


def open_inodes(proc: Path, inodes: Collection[int], root: Path) -> frozenset[int]:
    """Return the pids that hold any of these inodes of `root`'s file system by descriptor or mapping.

    Best effort: processes that end meanwhile, or may not be looked at, are passed over.
    """
    device = root.stat().st_dev
    found = set()
    for entry in proc.iterdir():
        if entry.name.isdigit() and (_has_open(entry, inodes, device) or _has_mapped(entry, inodes, device)):
            found.add(int(entry.name))
    return frozenset(found)


def _has_open(process: Path, inodes: Collection[int], device: int) -> bool:
    with contextlib.suppress(OSError), os.scandir(process / "fd") as descriptors:
        for fd in descriptors:
            with contextlib.suppress(OSError):
                at = fd.stat()
                if at.st_ino in inodes and at.st_dev == device:
                    return True
    return False


def _has_mapped(process: Path, inodes: Collection[int], device: int) -> bool:
    # The device in `maps` differs from stat's on btrfs and overlayfs: so what has the inode is looked at by its link in `map_files`.
    with contextlib.suppress(OSError), (process / "maps").open() as lines:
        for line in lines:
            words = line.split(maxsplit=5)
            if len(words) > 5 and words[4] != "0" and int(words[4]) in inodes and _is_on(device, process, words[0]):
                return True
    return False


def _is_on(device: int, process: Path, addresses: str) -> bool:
    """Say whether a mapped file is of this device; who may not look (it takes CAP_SYS_ADMIN) says yes: at worst a version stays."""
    try:
        return (process / "map_files" / addresses).stat().st_dev == device
    except FileNotFoundError:  # unmapped meanwhile
        return False
    except OSError:
        return True
