"""How much of the disk the store takes. A file that several versions share is there once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from agent.core.inventory import CacheUse
from agent.core.refs import Digest
from agent.models.capacity import space_of
from agent.models.kept import FILES, SALVAGE, kept_records
from agent.models.version import Version


def cache_use(root: Path, versions: Collection[Version]) -> CacheUse:
    """Return how full store and file system are."""
    space = space_of(root)
    sizes = {r.inode: r.size for v in versions for r in v.files}
    staged = sum(allocated_bytes(d / name) for d in _staged(root) for name in (FILES, SALVAGE))
    return CacheUse(
        used_bytes=sum(sizes.values()) + staged, free_bytes=space.free_bytes, capacity_bytes=space.capacity_bytes
    )


def own_bytes(root: Path, versions: Collection[Version]) -> dict[Digest, int]:
    """Return, by version, the bytes that nothing else in the store shares: what its removal frees."""
    users = Counter(r.inode for v in versions for r in v.files)
    users.update(r.inode for d in _staged(root) for r in kept_records(d).values())
    return {v.digest: sum(r.size for r in v.files if users[r.inode] == 1) for v in versions}


def allocated_bytes(directory: Path) -> int:
    """Return the bytes of all blocks below a directory; 0 where there is none."""
    total = 0
    for at, _, names in os.walk(directory):
        total += sum(os.lstat(os.path.join(at, name)).st_blocks * 512 for name in names)
    return total


def _staged(root: Path) -> list[Path]:
    staging = root / "staging"
    return list(staging.iterdir()) if staging.is_dir() else []
