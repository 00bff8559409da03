"""Cuts a version into ranges and puts them in the order they are fetched. Pure.

Parts of several files are interleaved: one stored object serves about 10 Gbit/s, whatever the number of connections
(aws-c-s3, `s3_util.c`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from agent.models.manifest import Manifest

ALIGN = 4096  # O_DIRECT wants buffer, offset and length in multiples of the device's block; no device in use has larger
FILES_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Part:
    """One range of one object: `file` is its place in the manifest; `offset` is a multiple of ALIGN."""

    file: int
    offset: int
    length: int


def parts_of(manifest: Manifest, part_bytes: int) -> list[Part]:
    """Return all ranges in the order to fetch them; each byte is in exactly one. Empty objects have none."""
    if part_bytes <= 0 or part_bytes % ALIGN:
        raise ValueError(f"part_bytes must be a positive multiple of {ALIGN}, not {part_bytes}")
    files = deque(_cut(n, o.size, part_bytes) for n, o in enumerate(manifest.objects) if o.size)
    open_files: deque[Iterator[Part]] = deque()
    order = []
    while files or open_files:
        while files and len(open_files) < FILES_AT_ONCE:
            open_files.append(files.popleft())
        current = open_files.popleft()
        part = next(current, None)
        if part is not None:
            order.append(part)
            open_files.append(current)
    return order


def _cut(file: int, size: int, part_bytes: int) -> Iterator[Part]:
    for offset in range(0, size, part_bytes):
        yield Part(file=file, offset=offset, length=min(part_bytes, size - offset))


def padded(length: int) -> int:
    """Return `length` rounded up to a multiple of ALIGN."""
    return -(-length // ALIGN) * ALIGN
