"""Paths of another process's file system, which is seen below `/proc/<pid>/root`: links there mean its root, not ours."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_MOST_LINKS = 40  # as the kernel
_NO_LINK = (errno.EINVAL, errno.ENOENT, errno.ENOTDIR)


def inside(root: Path, path: str) -> Path:
    """Return where a path of the file system below `root` really lies, without links, and never outside. Reads links.

    Args:
        root: that file system as seen from here.
        path: absolute, as that file system has it; there need be nothing.

    Raises:
        OSError: a part of it cannot be looked at, or its links go in circles.
    """
    at: list[str] = []
    left, links = path.split("/")[::-1], 0
    while left:
        part = left.pop()
        if part == "..":
            del at[-1:]
        elif part not in ("", "."):
            target = _link(root.joinpath(*at, part))
            if target is None:
                at.append(part)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            at = [] if target.startswith("/") else at
            left += target.split("/")[::-1]
    return root.joinpath(*at)


def _link(path: Path) -> str | None:
    """Return where a link points to, None where there is nothing, or no link."""
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno in _NO_LINK:
            return None
        raise
