"""The files of one version as the memory tier holds them: how much of them is in the page cache, and letting go of that."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.core.refs import Digest
from agent.models.page_cache import drop, resident_bytes
from agent.models.paths import Tree
from agent.models.version import load_version


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldFiles:
    """The files below `root`, by relative path, with their inodes; hard links to them share their pages."""

    root: Path = Path("/nonexistent")
    names: tuple[str, ...] = ()
    inodes: frozenset[int] = frozenset()
    size_bytes: int = 0

    @property
    def count(self) -> int:
        """How many files."""
        return len(self.names)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files' full paths."""
        return tuple(self.root / name for name in self.names)


def files_of(directory: Callable[[Digest], Path]) -> Callable[[Digest], HeldFiles]:
    """Return a finder of a version's files, for a store whose versions lie where `directory` says.

    The finder raises Invalid where no such version is committed.
    """

    def find(digest: Digest) -> HeldFiles:
        version = load_version(directory(digest))
        return HeldFiles(
            root=directory(digest) / "files",
            names=tuple(f.path for f in version.files),
            inodes=frozenset(f.inode for f in version.files),
            size_bytes=version.manifest.size_bytes,
        )

    return find


def measure(files: HeldFiles) -> tuple[int, float]:
    """Return how many bytes are in the page cache, and the seconds it took to ask; a file that is gone holds none."""
    started, found, tree = time.monotonic(), 0, Tree(files.root)
    for name in files.names:
        with contextlib.suppress(OSError), _opened(tree, name) as fd:
            found += resident_bytes(fd)
    return found, time.monotonic() - started


def let_go(files: HeldFiles, others: Collection[int] = ()) -> None:
    """Let the kernel forget the files' pages, but for inodes among `others` and pages that a process has mapped.

    Pages that the disk is still filling cannot be forgotten: what is left is tried again, for half a second in all.
    """
    tree = Tree(files.root)
    for wait in (0.0, 0.1, 0.4):
        time.sleep(wait)
        left = 0
        for name in files.names:
            with contextlib.suppress(OSError), _opened(tree, name) as fd:
                if os.fstat(fd).st_ino not in others:
                    drop(fd)
                    left += resident_bytes(fd)
        if not left:
            return


@contextlib.contextmanager
def _opened(tree: Tree, name: str) -> Iterator[int]:
    fd = tree.open(name, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)
