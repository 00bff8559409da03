"""Which checksum of a HEAD answer covers the object whole."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

import pytest

from agent.core.errors import Permanent
from agent.models.checksum import (
    UNPROVED,
    check_whole,
    cuts,
    hash_of,
    part_count,
    proof_of,
    stated_checksum,
    sum_range,
)
from agent.models.manifest import COMPOSITE, ObjectEntry
from agent.models.ordered import OrderedHash

MD5 = '"d41d8cd98f00b204e9800998ecf8427e"'
PARTS = '"d41d8cd98f00b204e9800998ecf8427e-3"'


@pytest.mark.parametrize(
    ("head", "etag", "stated"),
    [
        ({"ChecksumCRC64NVME": "AA==", "ChecksumType": "FULL_OBJECT"}, PARTS, ("crc64nvme:AA==", "FULL_OBJECT")),
        ({"ChecksumCRC32C": "BB==", "ChecksumType": "FULL_OBJECT"}, PARTS, ("crc32c:BB==", "FULL_OBJECT")),
        ({"ChecksumCRC32C": "BB==-3", "ChecksumType": "COMPOSITE"}, PARTS, ("crc32c:BB==-3", "COMPOSITE")),
        ({"ChecksumSHA256": "CC==", "ChecksumType": "COMPOSITE"}, PARTS, ("", "")),
        ({"ChecksumSHA256": "CC=="}, PARTS, ("", "")),  # no type told, several parts: it may be composite
        ({"ChecksumSHA256": "CC=="}, MD5, ("sha256:CC==", "FULL_OBJECT")),
        ({"ChecksumCRC64NVME": "AA=="}, PARTS, ("crc64nvme:AA==", "FULL_OBJECT")),  # never composite
        ({}, MD5, ("md5:d41d8cd98f00b204e9800998ecf8427e", "ETAG")),
        ({"ServerSideEncryption": "AES256"}, MD5, ("md5:d41d8cd98f00b204e9800998ecf8427e", "ETAG")),
        ({"ServerSideEncryption": "aws:kms"}, MD5, ("", "")),
        ({"SSECustomerAlgorithm": "AES256"}, MD5, ("", "")),
        ({"ChecksumCRC64NVME": "AA==", "ChecksumType": "NEW_KIND"}, PARTS, ("", "")),
        ({}, PARTS, ("", "")),
        ({}, '"opaque"', ("", "")),
    ],
)
def test_stated_checksum(head: dict[str, str], etag: str, stated: tuple[str, str]) -> None:
    assert stated_checksum(head, etag) == stated


def test_one_unproved_file_makes_the_version_unproved() -> None:
    assert proof_of(["crc64nvme", UNPROVED]) == UNPROVED
    assert proof_of(["sha256", "crc64nvme", "sha256"]) == "crc64nvme, sha256"
    assert proof_of(["crc64nvme, sha256", "crc64nvme"]) == "crc64nvme, sha256"


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 4, [4]), (0, 5, [5]), (0, 6, [5, 6]), (4, 8, [1, 8]), (5, 7, [7]), (0, 15, [5, 12, 15]), (12, 3, [3])],
)
def test_a_range_is_cut_where_uploaded_parts_end(offset: int, length: int, expected: list[int]) -> None:
    assert cuts((5, 12, 15), offset, length) == expected


@pytest.mark.parametrize(("checksum", "count"), [("crc32c:AA==-12", 12), ("crc32c:AA==", 0), ("x-1234567", 0), ("", 0)])
def test_part_count(checksum: str, count: int) -> None:
    assert part_count(checksum) == count


DATA = b"a model's weights"
BARE = ObjectEntry(key="k", path="k", size=len(DATA), etag=PARTS)


def check(entry: ObjectEntry) -> str:
    """Prove a file as a download does."""
    algorithm, part_ends = hash_of(entry)
    hashing = OrderedHash(algorithm, part_ends) if algorithm else None
    if hashing:
        hashing.feed(0, memoryview(DATA), lambda _offset, _length: iter(()))
    return check_whole(entry, [sum_range(entry, 0, memoryview(DATA))], hashing.digest() if hashing else b"")


@pytest.mark.parametrize(
    ("entry", "proof"),
    [
        (BARE, "sha256"),
        (replace(BARE, checksum="md5:00"), "sha256"),  # the stronger is enough
        (replace(BARE, checksum="sha1:AA==-2", checksum_type=COMPOSITE, part_sizes=(1, len(DATA) - 1)), "sha256"),
        (replace(BARE, checksum="crc32c:AA==-2", checksum_type=COMPOSITE), "sha256"),  # its parts are not told
        (replace(BARE, checksum="crc64nvme:CRC"), "crc64nvme, sha256"),
    ],
    ids=["nothing stated", "md5", "sha1 of parts", "crc of unknown parts", "crc"],
)
def test_a_listed_digest_proves_a_file_and_a_wrong_one_refuses_it(entry: ObjectEntry, proof: str) -> None:
    crc = base64.b64encode(sum_range(BARE, 0, memoryview(DATA)).crc64.to_bytes(8, "big")).decode()
    entry = replace(entry, checksum=entry.checksum.replace("CRC", crc))
    assert check(replace(entry, sha256=hashlib.sha256(DATA).hexdigest())) == proof
    with pytest.raises(Permanent, match="its sha256 differs from what SHA256SUMS states"):
        check(replace(entry, sha256=hashlib.sha256(b"other").hexdigest()))


def test_a_listed_digest_does_not_excuse_a_wrong_crc() -> None:
    with pytest.raises(Permanent, match="its crc64nvme differs from the source's"):
        check(replace(BARE, checksum="crc64nvme:AAAAAAAAAAA=", sha256=hashlib.sha256(DATA).hexdigest()))
