"""What a model says of its own files, and what is said of a source that states too little, against a real S3 server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.core.errors import Permanent
from agent.models.fetch import fetch
from agent.models.resolve import resolve
from tests.bed.faultproxy import Rule
from tests.bed.s3 import S3Server
from tests.integration.models.conftest import SourceBucket, environment, noise
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


PLAN = """
import asyncio, json, resource, sys, time
from agent.core.refs import parse_model_uri
from agent.models.ranges import parts_of
from agent.models.resolve import resolve
from agent.models.source import open_source

def rss():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

async def main():
    async with open_source() as source:
        await source.list_objects(parse_model_uri(sys.argv[1]))  # what the first request loads is no part of a plan
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak counts from here
        before, started = rss(), time.monotonic()
        manifest = await resolve(parse_model_uri(sys.argv[2]), source)
        digest, parts = manifest.digest, parts_of(manifest, 8 << 20)
        seconds = time.monotonic() - started
    peak = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(json.dumps([seconds, peak - before, manifest.size_bytes, len(parts)]))

asyncio.run(main())
"""


def test_400_gb_are_planned_in_a_second_and_20_mb(server: S3Server, bucket: SourceBucket) -> None:
    files = [f"model-{n:05}-of-00100.safetensors" for n in range(1, 101)]
    for name in files:
        bucket.put(f"m/{name}", b"x")
        os.truncate(server.data(bucket.name, f"m/{name}"), 4_000_000_000)
    weights = {f"model.layers.{n}.mlp.experts.{n % 256}.down_proj.weight": files[n % 100] for n in range(20_000)}
    bucket.put(f"m/{INDEX}", json.dumps({"weight_map": weights}).encode())
    for _ in range(3):  # the best of three: other tests run beside this one
        told = subprocess.run(
            [sys.executable, "-c", PLAN, str(bucket.uri("none/")), str(bucket.uri())],
            env=os.environ | environment(server, server.url),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        seconds, memory_bytes, size_bytes, parts = json.loads(told.stdout)
        if seconds < 1:
            break
    assert size_bytes > 400e9
    assert parts >= 100 * 477
    assert seconds < 1
    assert memory_bytes < 20e6
