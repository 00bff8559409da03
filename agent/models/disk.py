"""Files that are written by ranges from many threads: preallocated, O_DIRECT where the file system takes it, then closed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from agent.core.errors import Permanent, Transient, cut
from agent.core.units import format_size
from agent.models.paths import Tree
from agent.models.ranges import padded


def disk_error(error: OSError, what: str) -> Permanent | Transient:
    """Turn an error of the disk into one sentence: a full disk is Permanent, all else may pass."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Permanent(f"{what}: no space left on the store's file system")
    return Transient(f"{what}: {cut(os.strerror(error.errno) if error.errno else error, 100)}")


class RangeFiles:
    """Writes and reads ranges of files below a tree. Threads share it; each call opens and closes its own descriptor."""

    def __init__(self, tree: Tree, *, direct: bool = True) -> None:
        self._tree = tree
        self.direct = direct  # turns False, for good, where O_DIRECT is refused

    def prepare(self, sizes: dict[str, int]) -> None:
        """Make each file and reserve its blocks, so that a full disk shows before the download.

        Raises:
            Permanent: the files do not fit.
        """
        free = os.statvfs(self._tree.root)
        missing = sum(max(0, padded(size) - self._allocated(path)) for path, size in sizes.items())
        if missing > free.f_bavail * free.f_frsize:
            raise Permanent(f"needs {format_size(missing)} but {format_size(free.f_bavail * free.f_frsize)} are free")
        for path, size in sizes.items():
            self._tree.make_parents(path)
            fd = self._open_to_write(path)
            try:
                if size:
                    self._allocate(fd, padded(size))
            finally:
                os.close(fd)

    def _open_to_write(self, path: str) -> int:
        try:
            return self._tree.open(path, os.O_RDWR | os.O_CREAT)
        except PermissionError:  # finished before, and made read-only, by a run that was then killed
            fd = self._tree.open(path, os.O_RDONLY)
            try:
                os.fchmod(fd, 0o600)
            finally:
                os.close(fd)
            return self._tree.open(path, os.O_RDWR)

    def _allocated(self, path: str) -> int:
        try:
            return self._tree.stat(path).st_blocks * 512
        except OSError:
            return 0

    @staticmethod
    def _allocate(fd: int, size: int) -> None:
        before = os.fstat(fd).st_size
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            os.ftruncate(fd, before)  # ext4 leaves the file grown over all free space
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise disk_error(error, "cannot reserve space") from error

    def write(self, path: str, buffer: memoryview, offset: int, length: int) -> None:
        """Write `length` bytes of a page-aligned buffer; with O_DIRECT the last block is padded with what follows there.

        Raises:
            Permanent: the disk is full.
            Transient: any other error of the disk.
        """
        try:
            self._transfer(path, os.O_WRONLY, buffer, offset, length)
        except OSError as error:
            raise disk_error(error, "cannot write to the store") from error

    def read(self, path: str, buffer: memoryview, offset: int, length: int) -> bool:
        """Read `length` bytes into a page-aligned buffer; False where the file is shorter or cannot be read."""
        try:
            self._transfer(path, os.O_RDONLY, buffer, offset, length)
        except OSError:
            return False
        return True

    def _transfer(self, path: str, flags: int, buffer: memoryview, offset: int, length: int) -> None:
        while True:
            direct = self.direct
            try:
                fd = self._tree.open(path, flags | (os.O_DIRECT if direct else 0))
                try:
                    view = buffer[: padded(length) if direct else length]
                    if flags == os.O_WRONLY:
                        _repeat(os.pwrite, fd, view, offset, len(view))
                    else:
                        _repeat(_pread, fd, view, offset, length)
                finally:
                    os.close(fd)
            except OSError as error:
                if not direct or error.errno != errno.EINVAL:
                    raise
                self.direct = False
            else:
                return

    def hash(self, path: str, buffer: memoryview, size: int, hasher: Any) -> None:
        """Feed a whole file in order to `hasher.update`.

        Raises:
            Transient: it cannot be read.
        """
        step = len(buffer) - len(buffer) % 4096
        for offset in range(0, size, step):
            n = min(step, size - offset)
            if not self.read(path, buffer, offset, n):
                raise Transient("cannot read back what was written to the store")
            hasher.update(buffer[:n])

    def finish(self, path: str, size: int) -> None:
        """Cut the padding off and make the file durable.

        Raises:
            Transient: the disk refuses.
        """
        try:
            fd = self._tree.open(path, os.O_RDWR)
            try:
                os.ftruncate(fd, size)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise disk_error(error, "cannot finish a file of the store") from error


def _pread(fd: int, view: memoryview, offset: int) -> int:
    return os.preadv(fd, [view], offset)


def _repeat(move: Callable[[int, memoryview, int], int], fd: int, view: memoryview, offset: int, need: int) -> None:
    done = 0
    while done < need:
        moved = move(fd, view[done:], offset + done)
        if moved <= 0:
            raise OSError(errno.EIO, "the file is shorter than it should be")
        done += moved
