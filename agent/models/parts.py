"""Checksums of a file's parts, kept in its version's record: they tell which part has gone bad, not only that the file has."""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.models.checksum import RangeSums, whole_crc64
from agent.models.journal import read_journal
from agent.models.manifest import Manifest
from agent.models.ranges import padded


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSums:
    """CRC64NVME of each `part_bytes` of a file, 8 bytes each, big-endian. `part_bytes` 0: not known."""

    part_bytes: int = 0
    crcs: bytes = b""

    def ranges(self, size: int, crc64: int) -> list[RangeSums]:
        """Return the parts of a file of `size` bytes, in order; all of it as one part where they do not join to `crc64`."""
        if self.part_bytes > 0 and len(self.crcs) == 8 * -(-size // self.part_bytes):
            parts = [
                RangeSums(offset=offset, length=min(self.part_bytes, size - offset), crc64=crc)
                for offset, (crc,) in zip(
                    range(0, size, self.part_bytes), struct.iter_unpack(">Q", self.crcs), strict=True
                )
            ]
            if whole_crc64(parts) == crc64:
                return parts
        return [RangeSums(offset=0, length=size, crc64=crc64)]


UNKNOWN = PartSums()


def journaled_sums(journal: Path, manifest: Manifest) -> Mapping[str, PartSums]:
    """Return, by path, the sums of the parts that a download noted: of files it noted wholly, others are left out."""
    found = read_journal(journal)
    if found is None:
        return {}
    by_file: dict[int, list[RangeSums]] = {}
    for (file, _), sums in sorted(found.sums.items()):
        by_file.setdefault(file, []).append(sums)
    return {
        manifest.objects[file].path: PartSums(part_bytes=found.part_bytes, crcs=_packed(sums))
        for file, sums in by_file.items()
        if 0 <= file < len(manifest.objects) and _covers(sums, manifest.objects[file].size, found.part_bytes)
    }


def _packed(sums: Iterable[RangeSums]) -> bytes:
    return b"".join(struct.pack(">Q", s.crc64) for s in sums)


def _covers(sums: Iterable[RangeSums], size: int, part_bytes: int) -> bool:
    expected = [(offset, min(part_bytes, size - offset)) for offset in range(0, size, part_bytes)]
    return [(s.offset, s.length) for s in sums] == expected


@contextmanager
def aligned(size_bytes: int) -> Iterator[memoryview]:
    """Lend a page-aligned buffer, with room for the padding of a direct write."""
    pages = mmap.mmap(-1, padded(size_bytes))
    view = memoryview(pages)
    try:
        yield view
    finally:
        view.release()
        with contextlib.suppress(BufferError):  # the traceback of an error still holds a slice
            pages.close()
