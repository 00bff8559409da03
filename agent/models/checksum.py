"""Checksums: what a source states for an object, what is computed while bytes are hot, and whether they agree.

Every range gets a CRC64NVME (ours, kept for later checks); where the source states another CRC, that too. CRCs of ranges
are joined without reading again. SHA-256, SHA-1 and MD5 cannot be joined: `agent.models.ordered` hashes such a file.

A composite checksum ("-N") is the checksum of the checksums of the N parts in which an object was uploaded. Its parts need
not be our ranges: a range that reaches over the end of a part is summed in pieces.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

from agent.core.errors import Permanent
from agent.models.manifest import COMPOSITE, FULL_OBJECT, ObjectEntry

UNPROVED = "source unproved"
ETAG = "ETAG"  # checksum_type of an MD5 that is the object's ETag
# Best first: joinable ones, then by strength.
STATED = (
    ("crc64nvme", "ChecksumCRC64NVME"),
    ("crc32c", "ChecksumCRC32C"),
    ("crc32", "ChecksumCRC32"),
    ("sha256", "ChecksumSHA256"),
    ("sha1", "ChecksumSHA1"),
)
_WIDTH = {"crc64nvme": 8, "crc32c": 4, "crc32": 4}
HASHES = ("sha256", "sha1", "md5")


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeSums:
    """Checksums of one range: CRC64NVME, and the source's own CRC where it states a 32-bit one (else 0).

    `pieces`: for a composite checksum, length and CRC of each piece that lies in one uploaded part.
    """

    offset: int
    length: int
    crc64: int
    other: int = 0
    pieces: tuple[tuple[int, int], ...] = field(default=(), compare=False)


def stated_checksum(head: Mapping[str, Any], etag: str) -> tuple[str, str]:
    """Return (`algorithm:value`, type) for the best checksum in a HEAD answer, or ("", "").

    The best covers the whole object; a composite one comes after an MD5. A single-part ETag is an MD5 unless the object is
    encrypted with KMS (AWS, "Common response headers").
    """
    kind = head.get("ChecksumType")
    composite = ("", "")
    for algorithm, name in STATED if kind in (None, FULL_OBJECT, COMPOSITE) else ():
        value = head.get(name)
        if not value:
            continue
        if kind == COMPOSITE or "-" in value:
            if not composite[0] and "-" in value:
                composite = (f"{algorithm}:{value}", COMPOSITE)
            continue
        if kind is None and algorithm != "crc64nvme" and "-" in etag:
            continue  # a server that tells no type: the sum of a multipart upload may be composite
        return f"{algorithm}:{value}", FULL_OBJECT
    digest = etag.strip('"').lower()
    plain = len(digest) == 32 and all(c in "0123456789abcdef" for c in digest)
    secret = str(head.get("ServerSideEncryption", "")).startswith("aws:kms") or head.get("SSECustomerAlgorithm")
    return (f"md5:{digest}", ETAG) if plain and not secret else composite


def part_count(checksum: str) -> int:
    """Return in how many parts an object with this composite checksum was uploaded; 0 if it does not say."""
    count = checksum.rpartition("-")[2]
    return int(count) if count.isascii() and count.isdigit() and len(count) <= 5 else 0


def algorithm_of(entry: ObjectEntry) -> str:
    """Return the algorithm of the source's checksum, "" for none, or for one that cannot be compared."""
    known = entry.checksum_type != COMPOSITE or entry.part_sizes
    return entry.checksum.partition(":")[0] if known else ""


def hash_of(entry: ObjectEntry) -> tuple[str, tuple[int, ...]]:
    """Return the algorithm that proves a file by a hash in order, and where its parts end; ("", ()) where none is needed.

    A SHA-256 listed beside an object counts instead of the source's own hash: one is enough, and it is no weaker.
    """
    if entry.sha256:
        return "sha256", ()
    algorithm = algorithm_of(entry)
    return (algorithm, entry.part_ends) if algorithm in HASHES else ("", ())


def cuts(ends: tuple[int, ...], offset: int, length: int) -> list[int]:
    """Return where a range is to be cut, from its own start, so that no piece lies in two parts; the last is `length`."""
    first = bisect_right(ends, offset)
    inner = []
    for end in ends[first:]:
        if end >= offset + length:
            break
        inner.append(end - offset)
    return [*inner, length]


def sum_range(entry: ObjectEntry, offset: int, view: memoryview) -> RangeSums:
    """Checksum one range while it is hot; releases the GIL."""
    algorithm = algorithm_of(entry)
    other, pieces = 0, []
    if algorithm in ("crc32c", "crc32"):
        crc = _sums()[algorithm]
        if entry.checksum_type == COMPOSITE:
            edges = [0, *cuts(entry.part_ends, offset, len(view))]
            pieces = [(end - start, crc(view[start:end])) for start, end in pairwise(edges)]
        else:
            other = crc(view)
    return RangeSums(
        offset=offset, length=len(view), crc64=_sums()["crc64nvme"](view), other=other, pieces=tuple(pieces)
    )


@cache
def _sums() -> Mapping[str, Callable[[memoryview], int]]:
    """Return what sums by each CRC at tens of GB/s, the GIL free; imported when it is needed first."""
    from awscrt import checksums
    from isal import isal_zlib

    return {"crc64nvme": checksums.crc64nvme, "crc32c": checksums.crc32c, "crc32": isal_zlib.crc32}


def whole_crc64(sums: Iterable[RangeSums]) -> int:
    """Join the CRC64NVME of ranges that follow each other from offset 0."""
    return _join([(s.crc64, s.length) for s in sums], "crc64nvme")


def _join(parts: list[tuple[int, int]], algorithm: str) -> int:
    (whole, _), *others = parts or [(0, 0)]
    for crc, length in others:
        whole = _combine(algorithm)(whole, crc, length)
    return whole


@cache
def _combine(algorithm: str) -> Callable[[int, int, int], int]:
    from awscrt import checksums

    combine: Callable[[int, int, int], int] = getattr(checksums, f"combine_{algorithm}")
    return combine


def check_whole(entry: ObjectEntry, sums: Iterable[RangeSums], hashed: bytes = b"") -> str:
    """Compare one complete file with what the source states, and return how it was proved.

    Args:
        entry: the object.
        sums: its ranges in order, without gaps.
        hashed: its digest, where `hash_of` asks for one.

    Raises:
        Permanent: they differ.
    """
    algorithm, proofs = algorithm_of(entry), []
    if entry.sha256:
        if hashed.hex() != entry.sha256:
            raise _differs(entry, "sha256", "what SHA256SUMS states")
        proofs.append("sha256")
        algorithm = "" if algorithm in HASHES else algorithm
    if algorithm:
        _check_stated(entry, algorithm, list(sums), hashed)
        proofs.insert(0, algorithm)
    return ", ".join(proofs) or UNPROVED


def _check_stated(entry: ObjectEntry, algorithm: str, in_order: list[RangeSums], hashed: bytes) -> None:
    stated = entry.checksum.partition(":")[2]
    if algorithm in HASHES:
        found = hashed
    elif algorithm == "crc64nvme":
        found = _bytes(whole_crc64(in_order), algorithm)
    elif entry.checksum_type == COMPOSITE:
        found = _crc_of_crcs(entry, algorithm, in_order)
    else:
        found = _bytes(_join([(s.other, s.length) for s in in_order], algorithm), algorithm)
    if entry.checksum_type == COMPOSITE:
        stated = stated.rpartition("-")[0]
    if not _same(stated, found, algorithm):
        raise _differs(entry, algorithm, "the source's")


def _differs(entry: ObjectEntry, algorithm: str, whose: str) -> Permanent:
    return Permanent(f"{ascii(entry.key)[:200]} arrived whole but its {algorithm} differs from {whose}")


def _bytes(crc: int, algorithm: str) -> bytes:
    return crc.to_bytes(_WIDTH[algorithm], "big")


def _crc_of_crcs(entry: ObjectEntry, algorithm: str, sums: Iterable[RangeSums]) -> bytes:
    combine = _combine(algorithm)
    pieces = iter([piece for each in sums for piece in each.pieces])
    of_parts = b""
    for size in entry.part_sizes:
        crc = done = 0
        while done < size:
            length, other = next(pieces)
            crc, done = combine(crc, other, length), done + length
        of_parts += _bytes(crc, algorithm)
    return _bytes(_sums()[algorithm](memoryview(of_parts)), algorithm)


def _same(stated: str, found: bytes, algorithm: str) -> bool:
    if algorithm == "md5":
        return found.hex() == stated
    try:
        return base64.b64decode(stated, validate=True) == found
    except (binascii.Error, ValueError):
        return False


def proof_of(proofs: Iterable[str]) -> str:
    """Say in one word how a version was proved: the algorithms, or that a file's source states nothing to prove it by."""
    found = sorted({one for each in proofs for one in each.split(", ")})
    return UNPROVED if UNPROVED in found else ", ".join(found)
