"""Checksums: what a source states for a whole object, what is computed while bytes are hot, and whether they agree.

Every range gets a CRC64NVME (ours, kept for later checks); where the source states another CRC, that too. CRCs of ranges
are joined without reading again. SHA-256, SHA-1 and MD5 cannot be joined: such a file is read once more, in order.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.core.errors import Permanent
from agent.models.manifest import FULL_OBJECT, ObjectEntry

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeSums:
    """Checksums of one range: CRC64NVME, and the source's own CRC where it states a 32-bit one (else 0)."""

    offset: int
    length: int
    crc64: int
    other: int = 0


def stated_checksum(head: Mapping[str, Any], etag: str) -> tuple[str, str]:
    """Return (`algorithm:value`, type) for the best whole-object checksum in a HEAD answer, or ("", "").

    Composite checksums (of parts, "-N") do not cover the object's bytes and are left out. A single-part ETag is an MD5
    unless the object is encrypted with KMS (AWS, "Common response headers").
    """
    kind = head.get("ChecksumType")
    for algorithm, field in STATED:
        value = head.get(field)
        if not value or "-" in value or kind == "COMPOSITE":
            continue
        if kind is None and algorithm != "crc64nvme" and "-" in etag:
            continue  # a server that tells no type: the sum of a multipart upload may be composite
        return f"{algorithm}:{value}", FULL_OBJECT
    digest = etag.strip('"').lower()
    plain = len(digest) == 32 and all(c in "0123456789abcdef" for c in digest)
    if plain and not str(head.get("ServerSideEncryption", "")).startswith("aws:kms"):
        if head.get("SSECustomerAlgorithm"):
            return "", ""
        return f"md5:{digest}", ETAG
    return "", ""


def algorithm_of(entry: ObjectEntry) -> str:
    """Return the algorithm of the source's checksum, "" for none."""
    return entry.checksum.partition(":")[0]


def sum_range(entry: ObjectEntry, offset: int, view: memoryview) -> RangeSums:
    """Checksum one range while it is hot; releases the GIL."""
    from awscrt import checksums

    algorithm = algorithm_of(entry)
    other = 0
    if algorithm in ("crc32c", "crc32"):
        other = getattr(checksums, algorithm)(view)
    return RangeSums(offset=offset, length=len(view), crc64=checksums.crc64nvme(view), other=other)


def whole_crc64(sums: Iterable[RangeSums]) -> int:
    """Join the CRC64NVME of ranges that follow each other from offset 0."""
    from awscrt import checksums

    return _join(((s.crc64, s.length) for s in sums), checksums.combine_crc64nvme)


def _join(parts: Iterable[tuple[int, int]], combine: Callable[[int, int, int], int]) -> int:
    whole = 0
    for crc, length in parts:
        whole = combine(whole, crc, length)
    return whole


def check_whole(entry: ObjectEntry, sums: Iterable[RangeSums], reread: Callable[[Any], None]) -> str:
    """Compare one complete file with what the source states, and return how it was proved.

    Args:
        entry: the object.
        sums: its ranges in order, without gaps.
        reread: feeds the file's bytes in order to `hash.update`, for algorithms that cannot be joined.

    Raises:
        Permanent: they differ.
    """
    from awscrt import checksums

    algorithm, _, stated = entry.checksum.partition(":")
    in_order = list(sums)
    match algorithm:
        case "crc64nvme":
            agree = _same(stated, whole_crc64(in_order), algorithm)
        case "crc32c" | "crc32":
            combine = getattr(checksums, f"combine_{algorithm}")
            agree = _same(stated, _join(((s.other, s.length) for s in in_order), combine), algorithm)
        case "sha256" | "sha1" | "md5":
            hasher = hashlib.new(algorithm, usedforsecurity=False)
            reread(hasher)
            found = hasher.hexdigest() if algorithm == "md5" else base64.b64encode(hasher.digest()).decode()
            agree = found == stated
        case _:
            return UNPROVED
    if not agree:
        raise Permanent(f"{ascii(entry.key)[:200]} arrived whole but its {algorithm} differs from the source's")
    return algorithm


def _same(stated: str, crc: int, algorithm: str) -> bool:
    try:
        return base64.b64decode(stated, validate=True) == crc.to_bytes(_WIDTH[algorithm], "big")
    except (binascii.Error, ValueError):
        return False


def proof_of(proofs: Iterable[str]) -> str:
    """Say in one word how a version was proved: the algorithms, or that a file's source states nothing to prove it by."""
    found = sorted(set(proofs))
    return UNPROVED if UNPROVED in found else ", ".join(found)
