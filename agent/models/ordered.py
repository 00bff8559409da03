"""SHA-256, SHA-1 or MD5 of a file whose parts arrive out of order: hashed in order, while they are in memory.

These cannot be joined from parts. A thread whose part is not next holds it for a moment, until those before it have come;
one that would have to wait for longer leaves its part on disk, and that part is read back, past the page cache, when its
turn comes. So memory is bounded by the threads' own buffers, and nothing waits for a connection that hangs.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise

from agent.models.checksum import cuts, hash_of
from agent.models.manifest import ObjectEntry

HOLD_SECONDS = 1.0


class OrderedHash:
    """The hash of one file; with `part_ends`, of each of the parts it was uploaded in. Shared by threads."""

    def __init__(self, algorithm: str, part_ends: tuple[int, ...] = ()) -> None:
        self._algorithm = algorithm
        self._ends = part_ends
        self._now, self._digests = _new(algorithm), b""
        self._parts = 0  # how many of the uploaded parts are hashed
        self._next = 0  # the offset that is to be hashed next
        self._on_disk: dict[int, int] = {}  # parts that came too early: their lengths by offset
        self._turn = threading.Condition()

    def feed(self, offset: int, view: memoryview, read_back: Callable[[int, int], Iterator[memoryview]]) -> None:
        """Hash a part, which is on disk already, or leave it for the thread that brings what is missing before it.

        `read_back(offset, length)` yields the bytes of a part from disk.
        """
        with self._turn:
            if not self._turn.wait_for(lambda: self._next == offset, HOLD_SECONDS):
                self._on_disk[offset] = len(view)
                return
        self._update(offset, view)
        at = self._moved_to(offset + len(view))
        while at is not None:
            offset, length = at
            done = offset
            for piece in read_back(offset, length):
                self._update(done, piece)
                done += len(piece)
            at = self._moved_to(offset + length)

    def _moved_to(self, offset: int) -> tuple[int, int] | None:
        """Let the next part have its turn; returns it where it lies on disk only."""
        with self._turn:
            self._next = offset
            self._turn.notify_all()
            length = self._on_disk.pop(offset, None)
            return None if length is None else (offset, length)

    def _update(self, offset: int, view: memoryview) -> None:
        if not self._ends:
            self._now.update(view)
            return
        edges = [0, *cuts(self._ends, offset, len(view))]
        for start, end in pairwise(edges):
            self._now.update(view[start:end])
            if offset + end == self._ends[self._parts]:
                self._digests += self._now.digest()
                self._now = _new(self._algorithm)
                self._parts += 1

    def digest(self) -> bytes:
        """Return the digest of the file, or the digest of its parts' digests. Only once every part was fed."""
        if not self._ends:
            return self._now.digest()
        whole = _new(self._algorithm)
        whole.update(self._digests)
        return whole.digest()


def _new(algorithm: str) -> hashlib._Hash:
    return hashlib.new(algorithm, usedforsecurity=False)


def hash_of_nothing(entry: ObjectEntry) -> bytes:
    """Return the digest that proves an object without bytes."""
    algorithm, _ = hash_of(entry)
    return OrderedHash(algorithm).digest() if algorithm else b""
