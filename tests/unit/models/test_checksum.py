"""Which checksum of a HEAD answer covers the object whole."""

from __future__ import annotations

import pytest

from agent.models.checksum import UNPROVED, proof_of, stated_checksum

MD5 = '"d41d8cd98f00b204e9800998ecf8427e"'
PARTS = '"d41d8cd98f00b204e9800998ecf8427e-3"'


@pytest.mark.parametrize(
    ("head", "etag", "stated"),
    [
        ({"ChecksumCRC64NVME": "AA==", "ChecksumType": "FULL_OBJECT"}, PARTS, ("crc64nvme:AA==", "FULL_OBJECT")),
        ({"ChecksumCRC32C": "BB==", "ChecksumType": "FULL_OBJECT"}, PARTS, ("crc32c:BB==", "FULL_OBJECT")),
        ({"ChecksumCRC32C": "BB==-3", "ChecksumType": "COMPOSITE"}, PARTS, ("", "")),
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
