"""What a model says of its own files, and what is said of a source that states too little, against a real S3 server."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest

from agent.core.errors import Permanent
from agent.models.fetch import fetch
from agent.models.source import resolve
from tests.bed.faultproxy import Rule
from tests.integration.models.conftest import SourceBucket, noise
from tests.integration.models.test_engine import multipart
from tests.integration.models.test_fetch import run, visible

MIB = 1 << 20
INDEX = "model.safetensors.index.json"


def test_hydrate_says_that_a_source_is_unproved(
    bucket: SourceBucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [noise(5 * MIB), b"end"]
    asyncio.run(multipart(bucket, "m/big", parts, ChecksumAlgorithm="CRC32C", ChecksumType="COMPOSITE"))
    bucket.put("m/small", b"proved")
    bucket.proxy.rules.append(Rule("404", times=99, match=lambda r: "attributes" in r.path or "partNumber" in r.path))
    assert run(str(bucket.uri()), "--to", str(tmp_path)) == 0
    assert ", source unproved: it states no checksum of some files" in capsys.readouterr().out
    assert visible(tmp_path) == {"big": b"".join(parts), "small": b"proved"}


def put_index(bucket: SourceBucket, *files: str) -> None:
    content = {"weight_map": {f"layer.{n}": f for n, f in enumerate(files)}}
    bucket.put(f"m/{INDEX}", json.dumps(content).encode())


async def test_a_model_of_which_a_shard_is_absent_is_refused_before_it_is_fetched(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    bucket.put("m/1.safetensors", b"1")
    put_index(bucket, "1.safetensors", "2.safetensors")
    absent = "is not complete: '2.safetensors', named in 'model.safetensors.index.json', is absent"
    with pytest.raises(Permanent, match=absent):
        await fetch(bucket.uri(), tmp_path)
    assert bucket.proxy.ranges == []
    assert (await fetch(bucket.uri("m/?exclude=2*"), tmp_path)).files == 2
    bucket.put("m/2.safetensors", b"2")
    assert (await fetch(bucket.uri(), tmp_path)).files == 3


async def test_listed_digests_prove_files_beside_the_source(bucket: SourceBucket, tmp_path: Path) -> None:
    big = bucket.put("m/sub/big", noise(9 * MIB))
    bucket.put("m/free", b"free")
    sums = bucket.put("m/SHA256SUMS", f"{hashlib.sha256(big).hexdigest()}  sub/big\n".encode())
    manifest = await resolve(bucket.uri())
    assert {o.path: bool(o.sha256) for o in manifest.objects} == {"sub/big": True, "free": False, "SHA256SUMS": False}
    got = await fetch(bucket.uri(), tmp_path)
    assert got.proof == "crc64nvme, sha256"
    bucket.put("m/SHA256SUMS", sums.replace(b"  sub", b"  ./sub"))
    assert (await resolve(bucket.uri())).digest != manifest.digest  # it is one of the model's files


async def test_a_file_that_is_not_the_listed_one_is_refused(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("m/a", b"not what was built")
    bucket.put("m/SHA256SUMS", f"{hashlib.sha256(b'what was built').hexdigest()}  a\n".encode())
    with pytest.raises(Permanent, match="'m/a' arrived whole but its sha256 differs from what SHA256SUMS"):
        await fetch(bucket.uri(), tmp_path)
    assert visible(tmp_path) == {}
