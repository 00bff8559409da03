"""Files that are written by ranges from many threads: preallocated, O_DIRECT where the file system takes it, then closed."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Collection
from typing import Any

from agent.core.errors import Permanent, Transient, cut
from agent.core.units import format_size
from agent.models.paths import Tree, sync_file_system
from agent.models.ranges import padded

FLUSH_BYTES = 64 << 20  # what the disk may hold in its own cache before it is told to flush it
FEW_FILES = (
    32  # so many are made durable one by one; more by one order to their file system, which has others' files too
)
MOST_HELD = 64  # directories whose descriptors are kept while files are made in them


def disk_error(error: OSError, what: str) -> Permanent | Transient:
    """Turn an error of the disk into one sentence: a full disk is Permanent, all else may pass."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Permanent(f"{what}: no space left on the store's file system")
    return Transient(f"{what}: {cut(os.strerror(error.errno) if error.errno else error, 100)}")


class RangeFiles:
    """Writes and reads ranges of files below a tree. Threads share it; each call opens and closes its own descriptor.

    Directories in which whole files are made stay open until `close`.
    """

    def __init__(self, tree: Tree, *, direct: bool = True) -> None:
        self._tree = tree
        self.direct = direct  # turns False, for good, where O_DIRECT is refused
        self._not_durable: list[str] = []
        self._unflushed, self._flushing = 0, threading.Lock()
        self._held: dict[str, int] = {}
        self._holding = threading.Lock()

    def prepare(self, sizes: dict[str, int], whole: Collection[str] = ()) -> None:
        """Make each file and reserve its blocks, so that a full disk shows before the download.

        Those in `whole` will be written at once, by `write_whole`, and need only their directories.

        Raises:
            Permanent: the files do not fit.
        """
        free = os.statvfs(self._tree.root)
        missing = sum(max(0, padded(size) - self._allocated(path)) for path, size in sizes.items())
        if missing > free.f_bavail * free.f_frsize:
            raise Permanent(f"needs {format_size(missing)} but {format_size(free.f_bavail * free.f_frsize)} are free")
        for path in {path.rpartition("/")[0]: path for path in sizes}.values():
            self._tree.make_parents(path)
        for path, size in sizes.items():
            if path in whole:
                continue
            fd = self._open_to_write(path)
            try:
                if size:
                    self._allocate(fd, padded(size))
            finally:
                os.close(fd)

    def _open_to_write(self, path: str, flags: int = 0) -> int:
        flags |= os.O_RDWR
        try:
            return self._tree.open(path, flags | os.O_CREAT)
        except PermissionError:  # finished before, and made read-only, by a run that was then killed
            fd = self._tree.open(path, os.O_RDONLY)
            try:
                os.fchmod(fd, 0o600)
            finally:
                os.close(fd)
            return self._tree.open(path, flags)

    def _make_whole(self, path: str, flags: int) -> int:
        above, _, name = path.rpartition("/")
        at = self._held.get(above)
        if at is None:
            at = self._hold(above)
        if at is None:
            return self._open_to_write(path, flags)
        try:
            return os.open(name, flags | os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=at)
        except PermissionError:
            return self._open_to_write(path, flags)

    def _hold(self, above: str) -> int | None:
        with self._holding:
            if above not in self._held and len(self._held) < MOST_HELD:
                self._held[above] = self._tree.open_directory(above)
            return self._held.get(above)

    def close(self) -> None:
        """Close the directories that are open. Only once no thread makes files any more."""
        with self._holding:
            while self._held:
                os.close(self._held.popitem()[1])

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

        Now and then one caller has the disk flush its own cache too, while the others go on: else all of that is left for
        the end, when nothing comes from the network meanwhile.

        Raises:
            Permanent: the disk is full.
            Transient: any other error of the disk.
        """

        def move(direct: int) -> None:
            fd = self._tree.open(path, os.O_WRONLY | direct)
            try:
                view = buffer[: padded(length) if direct else length]
                _repeat(os.pwrite, fd, view, offset, len(view))
                self._flush(fd, len(view))
            finally:
                os.close(fd)

        try:
            self._direct_or_not(move)
        except OSError as error:
            raise disk_error(error, "cannot write to the store") from error

    def _flush(self, fd: int, written: int) -> None:
        self._unflushed += written  # two threads at once may lose one's bytes: the next flush comes a little later
        if self._unflushed >= FLUSH_BYTES and self._flushing.acquire(blocking=False):
            try:
                self._unflushed = 0
                os.fdatasync(fd)
            finally:
                self._flushing.release()

    def write_whole(self, path: str, buffer: memoryview, size: int) -> None:
        """Make a file of the `size` first bytes of a page-aligned buffer, in the place of any that is there.

        It is durable after `make_durable`.

        Raises:
            Permanent: the disk is full.
            Transient: any other error of the disk.
        """

        def move(direct: int) -> None:
            fd = self._make_whole(path, os.O_TRUNC | direct)
            try:
                view = buffer[: padded(size) if direct else size]
                _repeat(os.pwrite, fd, view, 0, len(view))
                if len(view) > size:
                    os.ftruncate(fd, size)
            finally:
                os.close(fd)

        try:
            self._direct_or_not(move)
        except OSError as error:
            raise disk_error(error, "cannot write to the store") from error
        self._not_durable.append(path)

    def read(self, path: str, buffer: memoryview, offset: int, length: int) -> bool:
        """Read `length` bytes into a page-aligned buffer; False where the file is shorter or cannot be read."""

        def move(direct: int) -> None:
            fd = self._tree.open(path, os.O_RDONLY | direct)
            try:
                _repeat(_pread, fd, buffer[: padded(length) if direct else length], offset, length)
            finally:
                os.close(fd)

        try:
            self._direct_or_not(move)
        except OSError:
            return False
        return True

    def _direct_or_not(self, move: Callable[[int], None]) -> None:
        """Call `move` with O_DIRECT, or 0 where the file system refuses that."""
        if self.direct:
            try:
                return move(os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            self.direct = False
        return move(0)

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

    def finish(self, path: str, size: int, *, durably: bool = True) -> None:
        """Cut the padding off and make the file durable, now or by `make_durable`.

        Raises:
            Transient: the disk refuses.
        """
        try:
            fd = self._tree.open(path, os.O_RDWR)
            try:
                os.ftruncate(fd, size)
                if durably:
                    os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise disk_error(error, "cannot finish a file of the store") from error
        if not durably:
            self._not_durable.append(path)

    def make_durable(self) -> None:
        """Make durable what is not yet.

        Raises:
            Transient: the disk refuses.
        """
        paths, self._not_durable = self._not_durable, []
        try:
            if len(paths) > FEW_FILES:
                sync_file_system(self._tree.root)
                return
            for path in paths:
                fd = self._tree.open(path, os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
        except OSError as error:
            raise disk_error(error, "cannot make the files of the store durable") from error


def _pread(fd: int, view: memoryview, offset: int) -> int:
    return os.preadv(fd, [view], offset)


def _repeat(move: Callable[[int, memoryview, int], int], fd: int, view: memoryview, offset: int, need: int) -> None:
    done = 0
    while done < need:
        moved = move(fd, view[done:], offset + done)
        if moved <= 0:
            raise OSError(errno.EIO, "the file is shorter than it should be")
        done += moved
