"""Reading committed files back: every byte of a version at once, for a person who asks; the scrub does it slowly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent.core.errors import cut
from agent.models.checksum import RangeSums
from agent.models.disk import RangeFiles
from agent.models.parts import aligned
from agent.models.paths import Tree
from agent.models.version import Version, broken_file

BUFFER_BYTES = 1 << 20


def verify_version(version: Version, directory: Path, before_slice: Callable[[int], None] = lambda _size: None) -> str:
    """Read every byte of a committed version back from its directory in the store; "" if it is as it was, else one sentence.

    Past the page cache where the file system can. Changes nothing: also beside a running agent. `before_slice` hears how many
    bytes are read next, and may raise to end it.
    """
    if why := broken_file(version, directory / "files"):
        return why
    files = RangeFiles(Tree(directory / "files"))
    with aligned(BUFFER_BYTES) as buffer:
        for record in version.files:
            for part in record.sums.ranges(record.size, record.crc64):
                if not _is_good(files, record.path, part, buffer, before_slice):
                    name, end = cut(ascii(record.path), 200), part.offset + part.length
                    return f"{name} is damaged between byte {part.offset} and byte {end}"
    return ""


def read_on(files: RangeFiles, path: str, buffer: memoryview, offset: int, length: int, crc: int) -> int | None:
    """Read one slice and go on with its part's CRC64NVME; None where the disk will not give it."""
    from awscrt import checksums

    if not files.read(path, buffer, offset, length):
        return None
    return int(checksums.crc64nvme(buffer[:length], crc))


def _is_good(
    files: RangeFiles, path: str, part: RangeSums, buffer: memoryview, before_slice: Callable[[int], None]
) -> bool:
    crc = 0
    for offset in range(part.offset, part.offset + part.length, len(buffer)):
        length = min(len(buffer), part.offset + part.length - offset)
        before_slice(length)
        found = read_on(files, path, buffer, offset, length, crc)
        if found is None:
            return False
        crc = found
    return crc == part.crc64
