"""Opens files below one directory by relative path, and never follows a symbolic link on the way: no path leaves the store."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

_FRESH = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Tree:
    """One directory and the files below it, named by relative paths with `/` (checked by `manifest.safe_path`)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """Open the file at `path`; the caller closes it.

        Raises:
            OSError: ELOOP or ENOTDIR where a link or a file stands in the way.
        """
        *above, name = path.split("/")
        parent = self._parent(above)
        try:
            return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=parent)
        finally:
            os.close(parent)

    def open_directory(self, path: str, *, make: bool = False) -> int:
        """Open the directory at `path` ("": the root), which is made if it shall be; the caller closes it.

        Raises:
            OSError: as `open`.
        """
        return self._parent(path.split("/") if path else [], make=make)

    def stat(self, path: str) -> os.stat_result:
        """Stat the file at `path` itself, never what a link points to."""
        *above, name = path.split("/")
        parent = self._parent(above)
        try:
            return os.stat(name, dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)

    def stat_each(self, paths: Iterable[str]) -> Iterator[os.stat_result | OSError]:
        """Stat files as `stat` does, in order, or yield why one cannot be."""
        with SideBySide(self) as files:
            for path in paths:
                try:
                    at, name = files.find(path)
                    found: os.stat_result | OSError = os.stat(name, dir_fd=at, follow_symlinks=False)
                except OSError as error:
                    found = error
                yield found

    def make_parents(self, path: str) -> None:
        """Make the directories above `path`."""
        os.close(self._parent(path.split("/")[:-1], make=True))

    def make_names_durable(self, paths: Iterable[str]) -> None:
        """Fsync every directory from the root down to the files at `paths`."""
        for above in {tuple(parts[:n]) for path in paths for parts in [path.split("/")] for n in range(len(parts))}:
            at = self._parent(list(above))
            try:
                os.fsync(at)
            finally:
                os.close(at)

    def unlink(self, path: str) -> None:
        """Remove the file at `path`."""
        *above, name = path.split("/")
        parent = self._parent(above)
        try:
            os.unlink(name, dir_fd=parent)
        finally:
            os.close(parent)

    def move_into(self, path: str, other: Tree) -> None:
        """Move the file at `path` to the same path below `other`, replacing a file there."""
        *above, name = path.split("/")
        source, target = self._parent(above), other._parent(above, make=True)
        try:
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        finally:
            os.close(source)
            os.close(target)

    def move_each(self, paths: Iterable[str], other: Tree) -> Iterator[str]:
        """Move files as `move_into` does, in order; each path is yielded before its file moves."""
        with SideBySide(self) as sources, SideBySide(other, make=True) as targets:
            for path in paths:
                yield path
                (source, name), (target, _) = sources.find(path), targets.find(path)
                os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)

    def link_into(self, path: str, other: Tree, to: str = "") -> None:
        """Make a hard link to the file at `path` at `to` (default: the same path) below `other`."""
        *above, name = path.split("/")
        *above_to, name_to = (to or path).split("/")
        source, target = self._parent(above), other._parent(above_to, make=True)
        try:
            os.link(name, name_to, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(source)
            os.close(target)

    def _parent(self, parts: list[str], *, make: bool = False) -> int:
        at = os.open(self.root, _DIRECTORY)
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=at)
                below = os.open(part, _DIRECTORY, dir_fd=at)
                os.close(at)
                at = below
        except BaseException:
            os.close(at)
            raise
        return at


class SideBySide:
    """Finds files of a tree one after the other; a directory stays open while the next file lies in it too. For one thread."""

    def __init__(self, tree: Tree, *, make: bool = False) -> None:
        self._tree, self._make = tree, make
        self._at, self._above = -1, ""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def find(self, path: str) -> tuple[int, str]:
        """Return the descriptor of a file's directory, good until the next call, and its name in there.

        Raises:
            OSError: as `Tree.open`.
        """
        above, _, name = path.rpartition("/")
        if self._at < 0 or above != self._above:
            self._close()
            self._at, self._above = self._tree.open_directory(above, make=self._make), above
        return self._at, name

    def __exit__(self, *_: object) -> None:
        """Close the directory."""
        self._close()

    def _close(self) -> None:
        at, self._at = self._at, -1
        if at >= 0:
            os.close(at)


def fsync_directory(path: Path) -> None:
    """Make the names in one directory durable."""
    at = os.open(path, _DIRECTORY)
    try:
        os.fsync(at)
    finally:
        os.close(at)


def fsync_directories(root: Path) -> None:
    """Make the names in a directory and all below it durable, deepest first."""
    for directory, _, _ in os.walk(root, topdown=False):
        fsync_directory(Path(directory))


def sync_file_system(path: Path) -> None:
    """Make everything durable that was written to the file system of `path`, whoever wrote it (syncfs(2), Linux 2.6.39).

    Raises:
        OSError: some of it could not be written (told since Linux 5.8).
    """
    library = ctypes.CDLL(None, use_errno=True)
    at = os.open(path, _DIRECTORY)
    try:
        if library.syncfs(at):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(at)


def remove_tree(path: Path) -> None:
    """Delete a directory and all below it, read-only directories too; absent is well. Links are removed, not followed."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        path.chmod(0o700)
        for directory, below, _ in os.walk(path):
            for name in below:
                if not (Path(directory) / name).is_symlink():
                    (Path(directory) / name).chmod(0o700)
        shutil.rmtree(path)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file as a whole: temporary name, fsync, rename, fsync of the directory.

    Others may write to the directory: what stands at the temporary name is removed, and never written through.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    remove_tree(temporary)
    with os.fdopen(os.open(temporary, _FRESH, 0o644), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_directory(path.parent)
