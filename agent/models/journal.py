"""The journal of a partial download: which ranges are on disk, with their checksums. Append-only, one line a range.

It is a hint, never a proof: after a restart every range it names is read back and checked before it counts, so a line
needs no fsync of its own. A line that is torn or altered fails its own CRC and ends the reading.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.core.refs import Digest
from agent.models.checksum import RangeSums
from agent.models.disk import disk_error
from agent.models.ranges import ALIGN, Part

FORMAT = 1
MAX_PART_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Journaled:
    """What a journal says: the version, the range size it was cut by, and the ranges by (file, offset)."""

    digest: Digest
    part_bytes: int
    sums: Mapping[tuple[int, int], RangeSums]

    @property
    def done_bytes(self) -> int:
        """Bytes that were on disk when the journal ended."""
        return sum(s.length for s in self.sums.values())


class Journal:
    """An open journal; `append` may be called from any thread.

    Raises:
        Permanent, Transient: an error of the disk, as ours.
    """

    def __init__(self, path: Path, digest: Digest, part_bytes: int, *, fresh: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_TRUNC if fresh else 0)
        self._fd = os.open(path, flags, 0o600)
        try:
            if fresh:
                self._write(json.dumps({"format": FORMAT, "digest": digest, "part_bytes": part_bytes}))
            else:
                self._write("resumed")  # ends a line that a crash left torn
        except BaseException:
            self.close()
            raise

    def append(self, part: Part, sums: RangeSums) -> None:
        """Note that a range is on disk."""
        self._write(f"{part.file} {part.offset} {sums.length} {sums.crc64:016x} {sums.other:08x}")

    def _write(self, text: str) -> None:
        line = f"{text} {zlib.crc32(text.encode()):08x}\n".encode()
        try:
            os.write(self._fd, (b"\n" if text == "resumed" else b"") + line)  # O_APPEND: the kernel keeps lines apart
        except OSError as error:
            raise disk_error(error, "cannot note what is on disk") from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def read_journal(path: Path) -> Journaled | None:
    """Read a journal; None if there is none, or its format is not ours."""
    try:
        lines = path.read_bytes().decode("ascii", "replace").split("\n")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    texts = [text for line in lines if (text := _checked(line)) is not None]
    try:
        header = json.loads(texts[0])
        digest, part_bytes = Digest(str(header["digest"])), int(header["part_bytes"])
        known = header["format"] == FORMAT and 0 < part_bytes <= MAX_PART_BYTES and part_bytes % ALIGN == 0
    except (IndexError, ValueError, KeyError, TypeError):
        return None
    if not known:
        return None
    sums = {key: each for key, each in map(_record, texts[1:]) if each is not None}
    return Journaled(digest=digest, part_bytes=part_bytes, sums=sums)


def _checked(line: str) -> str | None:
    text, _, crc = line.rpartition(" ")
    return text if text and crc == f"{zlib.crc32(text.encode()):08x}" else None


def _record(text: str) -> tuple[tuple[int, int], RangeSums | None]:
    words = text.split(" ")
    if len(words) != 5:
        return (0, 0), None
    file, offset, length = (int(w) for w in words[:3])
    return (file, offset), RangeSums(offset=offset, length=length, crc64=int(words[3], 16), other=int(words[4], 16))
