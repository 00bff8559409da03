"""The scrub: reads committed files back, slowly, in turns, past the page cache, and tells of a part that is not as it was.

A turn through everything takes as long as the rate allows, and begins at most once a day; the first one some minutes after the
start, when others want the disk. It starts at a random file, so that
agents which restart often come by all of them too.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import structlog

from agent.core.clock import Clock
from agent.core.refs import Digest
from agent.models.checksum import RangeSums
from agent.models.disk import RangeFiles
from agent.models.parts import aligned
from agent.models.paths import Tree
from agent.models.shelf import Shelf
from agent.models.threads import in_thread
from agent.models.verify import read_on
from agent.models.version import FileRecord, why_broken

SLICE_BYTES = 4 << 20  # read at a time: at 5 MB/s one short look at the disk a second
TURN_SECONDS = 86400.0
FIRST_SECONDS = 600.0
_QUIET_SECONDS = 5.0  # how often it looks whether others still need the disk
_LEAST_SECONDS = 0.01  # between two reads, however small

log = structlog.get_logger(__name__)


class _NoDirectReads(Exception):
    """The file system would fill the page cache."""


class Scrub:
    """Reads at `rate` bytes a second while `busy()` is false; awaits `condemn(inode, what)` for a file gone bad."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        clock: Clock,
        rate: int,
        busy: Callable[[], bool],
        condemn: Callable[[int, str], Awaitable[None]],
        rng: random.Random,
    ) -> None:
        self._shelf, self._clock, self._rate, self._busy, self._condemn = shelf, clock, rate, busy, condemn
        self._rng = rng
        self.read_bytes = self.bad_parts = 0
        self.turned_at: float | None = None  # monotonic: when everything was last read back

    async def run(self) -> None:
        """Scrub until cancelled; return where the file system has no direct reads."""
        try:
            await self._clock.sleep(FIRST_SECONDS)
            while True:
                started = self._clock.monotonic()
                await self._turn()
                self.turned_at = self._clock.monotonic()
                spent = self._clock.monotonic() - started
                await self._clock.sleep(max(_LEAST_SECONDS, TURN_SECONDS - spent))
        except _NoDirectReads:
            log.warning(
                "the store is not scrubbed: its file system has no direct reads", root=str(self._shelf.store.root)
            )

    async def _turn(self) -> None:
        files = {r.inode: (v.digest, r) for v in self._shelf.versions.values() for r in v.files if r.size}
        order = list(files.values())
        start = self._rng.randrange(len(order)) if order else 0
        with aligned(SLICE_BYTES) as buffer:
            for digest, record in order[start:] + order[:start]:
                await self._read_back(digest, record, buffer)

    async def _read_back(self, digest: Digest, record: FileRecord, buffer: memoryview) -> None:
        tree = Tree(self._shelf.store.directory(digest) / "files")
        files = RangeFiles(tree)
        for part in record.sums.ranges(record.size, record.crc64):
            if await self._is_good(files, record.path, part, buffer):
                continue
            if digest not in self._shelf.versions or await in_thread(_differs, record, tree):
                return  # removed or changed meanwhile: the quick proof's business
            if not await self._is_good(files, record.path, part, buffer):
                end = part.offset + part.length
                self.bad_parts += 1
                await self._condemn(record.inode, f"is damaged between byte {part.offset} and byte {end}")
                return

    async def _is_good(self, files: RangeFiles, path: str, part: RangeSums, buffer: memoryview) -> bool:
        crc, end = 0, part.offset + part.length
        for offset in range(part.offset, end, SLICE_BYTES):
            length = min(SLICE_BYTES, end - offset)
            await self._pace(length)
            found = await in_thread(read_on, files, path, buffer, offset, length, crc)
            if not files.direct:
                raise _NoDirectReads
            if found is None:
                return False
            crc = found
            self.read_bytes += length
        return crc == part.crc64

    async def _pace(self, size_bytes: int) -> None:
        await self._clock.sleep(max(_LEAST_SECONDS, size_bytes / self._rate))
        while self._busy():
            await self._clock.sleep(_QUIET_SECONDS)


def _differs(record: FileRecord, tree: Tree) -> bool:
    return bool(why_broken(record, tree))
