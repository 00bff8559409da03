"""Which checksum of a HEAD answer covers the object whole."""

from __future__ import annotations

import pytest

from agent.models.checksum import UNPROVED, cuts, ends_of, part_count, proof_of, stated_checksum

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
        ({}, PARTS, ("", "")),
        ({}, '"opaque"', ("", "")),
    ],
)
def test_stated_checksum(head: dict[str, str], etag: str, stated: tuple[str, str]) -> None:
    assert stated_checksum(head, etag) == stated


def test_one_unproved_file_makes_the_version_unproved() -> None:
    assert proof_of(["crc64nvme", UNPROVED]) == UNPROVED
    assert proof_of(["sha256", "crc64nvme", "sha256"]) == "crc64nvme, sha256"


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 4, [4]), (0, 5, [5]), (0, 6, [5, 6]), (4, 8, [1, 8]), (5, 7, [7]), (0, 15, [5, 12, 15]), (12, 3, [3])],
)
def test_a_range_is_cut_where_uploaded_parts_end(offset: int, length: int, expected: list[int]) -> None:
    assert cuts(ends_of([5, 7, 3]), offset, length) == expected


@pytest.mark.parametrize(("checksum", "count"), [("crc32c:AA==-12", 12), ("crc32c:AA==", 0), ("x-1234567", 0), ("", 0)])
def test_part_count(checksum: str, count: int) -> None:
    assert part_count(checksum) == count
