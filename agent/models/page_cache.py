"""The kernel's page cache: how much of a file it holds, and letting go of it. All calls block; none maps a file's content in.

Hard links share their inode's pages: letting go of one name lets go of all. Pages that a process has mapped stay.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct

PAGE = mmap.PAGESIZE
_CACHESTAT = 451  # the same number on every architecture that has it; Linux 6.5
_WINDOW = 256 << 20  # mincore answers a byte a page: 64 KiB of answers at a time
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_long,
)
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def resident_bytes(fd: int) -> int:
    """Return how many bytes of an open file are in the page cache: by cachestat(2), else by mincore(2).

    Raises:
        OSError: neither answers.
    """
    size = os.fstat(fd).st_size
    pages = _by_cachestat(fd)
    if pages is None:
        pages = by_mincore(fd, size)
    return min(size, pages * PAGE)


def drop(fd: int) -> None:
    """Let the kernel forget a clean file's pages, but for those a process has mapped."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _by_cachestat(fd: int) -> int | None:
    """Return pages; None where the kernel is too old or a seccomp profile does not know the call."""
    whole, found = struct.pack("QQ", 0, 0), ctypes.create_string_buffer(40)
    if _LIBC.syscall(_CACHESTAT, fd, ctypes.c_char_p(whole), found, 0) == 0:
        return int(struct.unpack_from("Q", found.raw)[0])
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP):
        return None
    raise OSError(number, os.strerror(number))


def by_mincore(fd: int, size: int) -> int:
    """Return pages as mincore(2) tells them; it tells the truth only to who may write to the file, or owns it."""
    pages = 0
    for offset in range(0, size, _WINDOW):
        length = min(_WINDOW, size - offset)
        at = _LIBC.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
        if at == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        answers = ctypes.create_string_buffer(-(-length // PAGE))
        failed = _LIBC.mincore(at, length, answers)
        number = ctypes.get_errno()
        _LIBC.munmap(at, length)
        if failed:
            raise OSError(number, os.strerror(number))
        pages += sum(byte & 1 for byte in answers.raw)
    return pages
