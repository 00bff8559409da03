"""The engine against a real S3 server, through a proxy that does what networks and servers do wrong."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
import time
from pathlib import Path

import pytest

from agent.core.errors import Permanent, PrewarmError, Transient
from agent.core.refs import ModelUri
from agent.models.checksum import UNPROVED
from agent.models.engine import Engine
from agent.models.flights import Copy
from agent.models.journal import read_journal
from agent.models.manifest import Manifest
from agent.models.resolve import resolve
from agent.models.source import open_source
from agent.models.transfer import FileProof, Transfer
from agent.models.wire import SourceChanged
from tests.bed.faultproxy import Rule
from tests.integration.models.conftest import SourceBucket, contents, noise

MIB = 1 << 20
BIG = 3 * 8 * MIB + 12345  # four ranges, the last one odd


async def bring(uri: ModelUri, to: Path, engine: Engine | None = None) -> tuple[Manifest, tuple[FileProof, ...]]:
    async with open_source() as source:
        manifest = await resolve(uri, source)
        return manifest, await (engine or Engine(connections=4, stall_seconds=1)).download(manifest, source, to)


async def test_brings_every_file_as_it_is_at_the_source(bucket: SourceBucket, tmp_path: Path) -> None:
    model = {
        "big.bin": bucket.put("m/big.bin", noise(BIG)),
        "sub/deep/er.json": bucket.put("m/sub/deep/er.json", b"{}"),
        "empty": bucket.put("m/empty", b""),
        "exact": bucket.put("m/exact", noise(8 * MIB, 2)),
        "ünï codé+&=.txt": bucket.put("m/ünï codé+&=.txt", b"u"),
    }
    _, proofs = await bring(bucket.uri(), tmp_path)
    assert contents(tmp_path / "files") == model
    assert {p.path: p.proof for p in proofs} == dict.fromkeys(model, "crc64nvme")


@pytest.mark.parametrize(
    "fault", ["503", "500", "reset", "truncate", "stall", "wrong-content-range", "wrong-total", "200-for-206"]
)
async def test_a_range_that_fails_is_asked_for_again(bucket: SourceBucket, tmp_path: Path, fault: str) -> None:
    content = bucket.put("m/big.bin", noise(BIG))
    bucket.proxy.rules.append(Rule(fault, times=3, arg=3))
    await bring(bucket.uri(), tmp_path)
    assert contents(tmp_path / "files") == {"big.bin": content}
    assert bucket.proxy.faults == [fault] * 3
    assert len(bucket.proxy.ranges) == 4 + 3  # nothing but the failed ranges came twice


async def test_a_range_that_always_fails_is_told_and_the_rest_can_be_resumed(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    content = bucket.put("m/big.bin", noise(BIG))
    last = f"bytes={3 * 8 * MIB}-{BIG - 1}"
    bucket.proxy.rules.append(Rule("503", times=99, match=lambda r: r.headers.get("range") == last))
    with pytest.raises(Transient, match=r"key 'm/big.bin': S3 answered a range request with 503 SlowDown, 3 times"):
        await bring(bucket.uri(), tmp_path, Engine(connections=2, attempts=3))
    bucket.proxy.rules.clear()
    before = len(bucket.proxy.ranges)
    await bring(bucket.uri(), tmp_path)
    assert contents(tmp_path / "files") == {"big.bin": content}
    assert last in bucket.proxy.ranges[before:]
    assert len(bucket.proxy.ranges) - before <= 2


async def test_a_flipped_byte_is_found_and_the_file_fetched_anew(bucket: SourceBucket, tmp_path: Path) -> None:
    content = bucket.put("m/big.bin", noise(BIG))
    bucket.proxy.rules.append(Rule("corrupt"))
    await bring(bucket.uri(), tmp_path)
    assert contents(tmp_path / "files") == {"big.bin": content}
    assert len(bucket.proxy.ranges) == 8


async def test_a_file_that_is_always_corrupt_is_never_accepted(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("m/big.bin", noise(BIG))
    bucket.proxy.rules.append(Rule("corrupt", times=99))
    with pytest.raises(Permanent, match="arrived whole but its crc64nvme differs"):
        await bring(bucket.uri(), tmp_path)


async def test_the_last_range_s_error_is_told_though_another_thread_looks_for_work_right_then(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("m/bad.bin", noise(MIB, 1))
    bucket.put("m/good.bin", noise(MIB, 2))
    bucket.proxy.rules.append(Rule("corrupt", times=99, match=lambda r: r.is_range and "bad" in r.path))
    honest = Transfer.end

    def end(self: Transfer, copy: Copy) -> None:
        honest(self, copy)
        if copy.flight.part.file == 0:
            time.sleep(0.3)  # off the CPU, while the idle thread finds nothing left

    monkeypatch.setattr(Transfer, "end", end)
    with pytest.raises(Permanent, match="arrived whole but its crc64nvme differs"):
        await bring(bucket.uri(), tmp_path)


@pytest.mark.parametrize("fault", ["wrong-etag", "404"])
async def test_an_object_replaced_under_way_is_told_apart(bucket: SourceBucket, tmp_path: Path, fault: str) -> None:
    bucket.put("m/big.bin", noise(BIG))
    bucket.proxy.rules.append(Rule(fault))
    with pytest.raises(SourceChanged):
        await bring(bucket.uri(), tmp_path)


async def test_an_overwritten_object_is_refused_by_the_server(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("m/big.bin", noise(BIG))
    async with open_source() as source:
        manifest = await resolve(bucket.uri(), source)
        bucket.put("m/big.bin", noise(BIG, 2))
        with pytest.raises(SourceChanged, match=r"replaced or removed while it was read \(412\)"):
            await Engine().download(manifest, source, tmp_path)


async def test_a_versioned_object_is_read_as_it_was_listed(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.server.make_bucket(bucket.name, versioned=True)
    content = bucket.put("m/big.bin", noise(BIG))
    async with open_source() as source:
        manifest = await resolve(bucket.uri(), source)
        assert manifest.objects[0].version_id
        bucket.put("m/big.bin", noise(BIG, 2))
        await Engine().download(manifest, source, tmp_path)
    assert contents(tmp_path / "files") == {"big.bin": content}


@pytest.mark.parametrize("fault", ["403", "expired-token"])
async def test_denied_once_renews_the_credentials(bucket: SourceBucket, tmp_path: Path, fault: str) -> None:
    content = bucket.put("m/big.bin", noise(BIG))
    bucket.proxy.rules.append(Rule(fault))
    await bring(bucket.uri(), tmp_path)
    assert contents(tmp_path / "files") == {"big.bin": content}


async def test_where_versions_may_not_be_read_all_threads_go_on_with_the_plain_key(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    bucket.server.make_bucket(bucket.name, versioned=True)
    content = bucket.put("m/big.bin", noise(BIG))
    bucket.proxy.rules.append(Rule("403", times=999, match=lambda r: r.is_range and "versionId=" in r.path))
    for attempt in range(10):  # all four are refused at about once, and one of them decides
        to = made(tmp_path / str(attempt))
        await bring(bucket.uri(), to)
        assert contents(to / "files") == {"big.bin": content}


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


async def test_denied_again_is_permanent(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("m/big.bin", noise(BIG))
    bucket.proxy.rules.append(Rule("403", times=99))
    with pytest.raises(Permanent, match="access denied while reading"):
        await bring(bucket.uri(), tmp_path)


async def test_cancelling_returns_at_once_and_the_rest_is_resumed(bucket: SourceBucket, tmp_path: Path) -> None:
    content = bucket.put("m/big.bin", noise(BIG))
    first = f"bytes=0-{8 * MIB - 1}"
    bucket.proxy.rules.append(
        Rule("slow", times=99, arg=1e6, match=lambda r: r.is_range and r.headers["range"] != first)
    )
    engine = Engine(connections=4)
    running = asyncio.create_task(bring(bucket.uri(), tmp_path, engine))
    async with asyncio.timeout(20):
        while (journaled := read_journal(tmp_path / "journal")) is None or (0, 0) not in journaled.sums:  # noqa: ASYNC110 (a disk)
            await asyncio.sleep(0.01)
    started = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - started < 6  # what was under way would take eight
    bucket.proxy.rules.clear()
    before = len(bucket.proxy.ranges)
    await bring(bucket.uri(), tmp_path, engine)
    assert contents(tmp_path / "files") == {"big.bin": content}
    again = bucket.proxy.ranges[before:]
    assert first not in again  # what was on disk is not fetched again, only the parts that were in flight
    assert len(again) in (2, 3)
    assert [t.name for t in threading.enumerate() if t.name.startswith("download-")] == []


async def test_a_range_damaged_on_disk_is_not_resumed_from(bucket: SourceBucket, tmp_path: Path) -> None:
    content = bucket.put("m/big.bin", noise(BIG))
    await bring(bucket.uri(), tmp_path)
    with (tmp_path / "files/big.bin").open("r+b") as file:
        file.seek(9 * MIB)
        file.write(b"damaged")
    before = len(bucket.proxy.ranges)
    await bring(bucket.uri(), tmp_path)
    assert contents(tmp_path / "files") == {"big.bin": content}
    assert bucket.proxy.ranges[before:] == [f"bytes={8 * MIB}-{16 * MIB - 1}"]


async def test_another_version_starts_from_nothing(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("m/big.bin", noise(BIG))
    await bring(bucket.uri(), tmp_path)
    content = bucket.put("m/big.bin", noise(BIG, 2))
    await bring(bucket.uri(), tmp_path)
    assert contents(tmp_path / "files") == {"big.bin": content}


async def test_the_bandwidth_cap_holds(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("m/big.bin", noise(6 * MIB))
    engine = Engine(connections=4, bandwidth=4 * MIB)
    started = time.monotonic()
    await bring(bucket.uri(), tmp_path, engine)
    assert 1.0 < time.monotonic() - started < 10  # 6 MiB at 4 MiB/s, the first slice free
    assert engine.progress.fetched_bytes == 6 * MIB


async def test_what_does_not_fit_is_refused_before_any_byte(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("m/big.bin", noise(BIG))
    real = __import__("os").statvfs(tmp_path)
    full = type("Full", (), {"f_bavail": 1, "f_frsize": real.f_frsize})()
    monkeypatch.setattr("agent.models.disk.os.statvfs", lambda _path: full)
    with pytest.raises(Permanent, match=r"needs 25\.2 MB but 4\.10 kB are free"):
        await bring(bucket.uri(), tmp_path)
    assert bucket.proxy.ranges == []


async def multipart(bucket: SourceBucket, key: str, parts: list[bytes], **checksum: str) -> None:
    async with open_source() as source:
        client = source._client
        made = await client.create_multipart_upload(Bucket=bucket.name, Key=key, **checksum)
        done = []
        for number, part in enumerate(parts, 1):
            algorithm = {"ChecksumAlgorithm": checksum["ChecksumAlgorithm"]} if checksum else {}
            put = await client.upload_part(
                Bucket=bucket.name, Key=key, UploadId=made["UploadId"], PartNumber=number, Body=part, **algorithm
            )
            sums = {k: v for k, v in put.items() if k.startswith("Checksum") and k != "ChecksumType"}
            done.append({"PartNumber": number, "ETag": put["ETag"]} | (sums if checksum else {}))
        await client.complete_multipart_upload(
            Bucket=bucket.name, Key=key, UploadId=made["UploadId"], MultipartUpload={"Parts": done}
        )


@pytest.mark.parametrize(
    ("algorithm", "kind", "proof"),
    [
        ("CRC64NVME", "FULL_OBJECT", "crc64nvme"),
        ("CRC32C", "FULL_OBJECT", "crc32c"),
        ("CRC32", "FULL_OBJECT", "crc32"),
        ("CRC32C", "COMPOSITE", "crc32c"),
        ("CRC32", "COMPOSITE", "crc32"),
        ("SHA256", "COMPOSITE", "sha256"),
    ],
)
async def test_a_multipart_object_is_proved(
    bucket: SourceBucket, tmp_path: Path, algorithm: str, kind: str, proof: str
) -> None:
    parts = [noise(5 * MIB, 1), noise(5 * MIB, 2), noise(1234567, 3)]
    await multipart(bucket, "m/big.bin", parts, ChecksumAlgorithm=algorithm, ChecksumType=kind)
    _, proofs = await bring(bucket.uri(), tmp_path)
    assert contents(tmp_path / "files") == {"big.bin": b"".join(parts)}
    assert [p.proof for p in proofs] == [proof]


async def test_a_busy_source_asked_for_parts_is_an_outage_and_leaves_nothing_unproved(bucket: SourceBucket) -> None:
    await multipart(
        bucket, "m/big.bin", [noise(5 * MIB, 1), b"end"], ChecksumAlgorithm="CRC32C", ChecksumType="COMPOSITE"
    )
    bucket.proxy.rules.append(Rule("503", times=99, match=lambda r: "partnumber=" in r.path.lower()))
    async with open_source() as source:
        with pytest.raises(Transient, match="S3 is busy"):
            await resolve(bucket.uri(), source)
        bucket.proxy.rules.clear()
        assert (await resolve(bucket.uri(), source)).objects[0].part_sizes == (5 * MIB, 3)


@pytest.mark.parametrize("algorithm", ["CRC32C", "SHA256"])
async def test_a_byte_that_flipped_is_found_by_a_composite_checksum(
    bucket: SourceBucket, tmp_path: Path, algorithm: str
) -> None:
    parts = [noise(5 * MIB, 1), noise(7 * MIB, 2), noise(6 * MIB, 3), b"end"]
    await multipart(bucket, "m/big.bin", parts, ChecksumAlgorithm=algorithm, ChecksumType="COMPOSITE")
    bucket.proxy.rules.append(Rule("corrupt"))
    manifest, _ = await bring(bucket.uri(), tmp_path)
    assert manifest.objects[0].part_sizes == (5 * MIB, 7 * MIB, 6 * MIB, 3)
    assert contents(tmp_path / "files") == {"big.bin": b"".join(parts)}
    assert len(bucket.proxy.ranges) == 2 * 3


async def test_a_composite_checksum_whose_parts_are_not_told_leaves_the_source_unproved(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    await multipart(bucket, "m/a", [noise(5 * MIB), b"end"], ChecksumAlgorithm="CRC32", ChecksumType="COMPOSITE")
    told = await resolve(bucket.uri())
    bucket.proxy.rules.append(Rule("404", times=99, match=lambda r: "attributes" in r.path or "partNumber" in r.path))
    manifest, proofs = await bring(bucket.uri(), tmp_path)
    assert [p.proof for p in proofs] == [UNPROVED]
    assert manifest.digest == told.digest  # who resolves it with more rights finds the same version


@pytest.mark.parametrize("algorithm", ["SHA256", "SHA1", "CRC32C"])
async def test_an_object_put_in_one_is_proved_by_its_checksum(
    bucket: SourceBucket, tmp_path: Path, algorithm: str
) -> None:
    content = noise(BIG)
    async with open_source() as source:
        await source._client.put_object(Bucket=bucket.name, Key="m/big.bin", Body=content, ChecksumAlgorithm=algorithm)
    manifest, proofs = await bring(bucket.uri(), tmp_path)
    assert [p.proof for p in proofs] == [algorithm.lower()]
    if algorithm == "SHA256":
        stated = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert manifest.objects[0].checksum == f"sha256:{stated}"


async def test_buffered_writing_where_direct_is_refused(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bucket.put("m/big.bin", noise(BIG))
    import errno
    import os

    from agent.models.paths import Tree

    honest = Tree.open

    def refuse(self: Tree, path: str, flags: int, mode: int = 0o600) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct")
        return honest(self, path, flags, mode)

    monkeypatch.setattr(Tree, "open", refuse)
    await bring(bucket.uri(), tmp_path)
    assert contents(tmp_path / "files") == {"big.bin": content}


async def test_errors_tell_no_secret(bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("m/a", b"a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-word")
    with pytest.raises(PrewarmError) as told:
        await bring(bucket.uri(), tmp_path)
    assert isinstance(told.value, Permanent)
    assert "access denied" in str(told.value)
    assert "very-secret-word" not in str(told.value)
    assert bucket.server.access_key not in str(told.value)
