"""Versions that share files, and files that go bad: what is here is not fetched again, and no claim is false meanwhile."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.core.errors import Transient
from agent.core.inventory import ModelLevel, ModelsView
from agent.core.refs import Digest
from agent.models import scrub
from agent.models.resolve import resolve
from agent.models.store import Store
from agent.models.verify import verify_version
from agent.models.version import load_version
from agent.plan.decision import NodePlan, ViewWant
from tests.bed.faultproxy import Rule
from tests.integration.models.conftest import SourceBucket, contents, noise
from tests.integration.models.test_service import ENDPOINT, POD, Room, room, want

MIB = 1 << 20


def files_of(root: Path, digest: Digest) -> Path:
    return root / "store" / digest / "files"


def is_whole(root: Path, digest: Digest) -> bool:
    directory = root / "store" / digest
    return verify_version(load_version(directory), directory) == ""


def rot(file: Path, at: int) -> None:
    """Flip a byte on the disk and leave size and times as they were."""
    found = file.stat()
    fd = os.open(file, os.O_RDWR)
    byte = os.pread(fd, 1, at)
    os.pwrite(fd, bytes([byte[0] ^ 1]), at)
    os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))  # at once: who looks now must see nothing
    os.fsync(fd)
    os.close(fd)


def committed(view: ModelsView, *digests: Digest) -> bool:
    return all(d in view.states and view.states[d].level.committed for d in digests)


async def two_versions(r: Room, bucket: SourceBucket, size: int = 20_000) -> tuple[Digest, Digest]:
    """Bring in 30 files, then the version in which one of them differs."""
    for n in range(30):
        bucket.put(f"m/{n:02}.bin", noise(size, n))
    old = (await resolve(bucket.uri())).digest
    await r.bring(want(bucket.uri(), old))
    await r.until(lambda v: committed(v, old))
    bucket.put("m/07.bin", noise(size, 99))
    new = (await resolve(bucket.uri())).digest
    await r.bring(want(bucket.uri(), old, "old"), want(bucket.uri(), new, "new"))
    await r.until(lambda v: committed(v, old, new))
    return old, new


async def test_a_version_that_differs_in_one_of_30_files_downloads_that_file_only(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    async with room(tmp_path) as r:
        old, new = await two_versions(r, bucket)
        # One that is late on a busy machine may be asked for twice.
        asked = list(dict.fromkeys((q.path, q.headers["if-match"]) for q in bucket.proxy.requests if q.is_range))
        assert len(asked) == 31
        assert "07.bin" in asked[-1][0]
        await r.until(lambda v: [v.states[d].own_bytes for d in (old, new)] == [20_000, 20_000])
        assert r.models.get().cache.used_bytes == 31 * 20_000
        before, after = contents(files_of(tmp_path, old)), contents(files_of(tmp_path, new))
        assert [name for name in before if before[name] != after[name]] == ["07.bin"]
        assert after["07.bin"] == noise(20_000, 99)
    for digest in (old, new):
        assert is_whole(tmp_path, digest)


async def test_files_of_another_prefix_are_linked_only_if_checksum_and_etag_are_the_same(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    bucket.put("one/a.bin", noise(MIB))
    bucket.put("two/b.bin", noise(MIB))
    bucket.put("two/c.bin", noise(MIB, 2))
    one, two = (await resolve(bucket.uri("one/"))).digest, (await resolve(bucket.uri("two/"))).digest
    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri("one/"), one), want(bucket.uri("two/"), two))
        await r.until(lambda v: committed(v, one, two))
    assert [q.path.rpartition("/")[2].partition("?")[0] for q in bucket.proxy.requests if q.is_range] == [
        "a.bin",
        "c.bin",
    ]
    assert os.stat(files_of(tmp_path, one) / "a.bin").st_ino == os.stat(files_of(tmp_path, two) / "b.bin").st_ino


async def test_a_part_gone_bad_on_disk_is_withdrawn_in_every_version_and_fetched_again_alone(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("m/big.bin", noise(20 * MIB))
    bucket.put("m/small.bin", noise(1000, 2))
    old = (await resolve(bucket.uri())).digest
    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri(), old))
        await r.until(lambda v: committed(v, old))
        bucket.put("m/small.bin", noise(1000, 3))
        new = (await resolve(bucket.uri())).digest
        await r.bring(want(bucket.uri(), old, "old"), want(bucket.uri(), new, "new"))
        await r.until(lambda v: committed(v, old, new))
    monkeypatch.setattr(scrub, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(scrub, "TURN_SECONDS", 0.05)
    shared = files_of(tmp_path, old) / "big.bin"
    before = len(bucket.proxy.ranges)
    reader = shared.open("rb")  # a pod that runs on it
    async with room(tmp_path, scrub=10**12) as r:
        r.plan.set(NodePlan(models=(want(bucket.uri(), old, "old"), want(bucket.uri(), new, "new"))))
        await r.until(lambda v: committed(v, old, new))
        rot(shared, 9 * MIB)
        await r.until(lambda v: not committed(v, old) and not committed(v, new))
        await r.until(lambda v: committed(v, old, new))
        await r.until_disk(lambda: r.service.care().mended == 2 and r.service.care().turn_age_seconds is not None)
        care = r.service.care()
        assert (care.bad_parts, care.broken) == (1, 2)
        assert care.read_bytes > 20 * MIB
    assert bucket.proxy.ranges[before:] == [f"bytes={8 * MIB}-{16 * MIB - 1}"]
    for digest in (old, new):
        assert is_whole(tmp_path, digest)
    mended = files_of(tmp_path, old) / "big.bin"
    assert mended.read_bytes() == noise(20 * MIB)
    assert os.fstat(reader.fileno()).st_size == 20 * MIB  # nothing was written through the old inode
    assert os.fstat(reader.fileno()).st_ino != mended.stat().st_ino
    reader.close()


async def test_of_a_version_changed_behind_our_back_only_the_changed_file_is_fetched_again(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    model = {f"{n}.bin": bucket.put(f"m/{n}.bin", noise(MIB, n)) for n in range(4)}
    digest = (await resolve(bucket.uri())).digest
    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri(), digest))
        r.plan.set(replace(r.plan.get(), views=(ViewWant(endpoint=ENDPOINT, name="m", digest=digest),)))
        await r.until(lambda v: committed(v, digest))
        before = len(bucket.proxy.requests)
        os.truncate(files_of(tmp_path, digest) / "2.bin", 5)
        await r.until(lambda v: not committed(v, digest))
        await r.until(lambda v: committed(v, digest))
        assert [q.method + q.path.rpartition("/")[2] for q in bucket.proxy.requests[before:]] == ["GET2.bin"]
        assert contents(files_of(tmp_path, digest)) == model
        view = r.service.view_path(ENDPOINT, digest)
        await r.until_disk(lambda: view.exists() and contents(view) == model)


async def test_what_is_left_of_a_version_is_removed_though_its_turn_to_be_mended_never_came(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    for n in range(3):
        bucket.put(f"m/{n}.bin", noise(MIB, n))
    bucket.put("slow/a", noise(16 * MIB))
    digest = (await resolve(bucket.uri())).digest
    model, slow = want(bucket.uri(), digest), want(bucket.uri("slow/"), name="slow")
    bucket.proxy.rules.append(Rule("slow", times=99, arg=1e6, match=lambda q: q.is_range and "/slow/" in q.path))
    async with room(tmp_path) as r:
        await r.bring(model)
        await r.until(lambda v: committed(v, digest))
        await r.bring(slow, model, urgent=[slow])  # a download goes on, and nothing else begins
        await r.until(lambda v: any(s.busy and s.done_bytes for s in v.states.values()))
        (files_of(tmp_path, digest) / "1.bin").unlink()
        view = await r.until(lambda v: v.states[digest].level is ModelLevel.PARTIAL)
        assert view.states[digest].done_bytes == 2 * MIB
        assert view.states[digest].reason.startswith("broken: '1.bin' ")
        await r.bring(slow, urgent=[slow])
        await r.service.remove(digest)
        assert r.models.get().states[digest].level is ModelLevel.ABSENT
        assert not (tmp_path / "staging" / digest).exists()


@pytest.mark.parametrize("holder", ["pin", "pod"])
async def test_a_version_that_no_plan_names_but_somebody_holds_is_mended_once_it_is_planned_again(
    bucket: SourceBucket, tmp_path: Path, holder: str
) -> None:
    model = {f"{n}.bin": bucket.put(f"m/{n}.bin", noise(MIB, n)) for n in range(3)}
    digest = (await resolve(bucket.uri())).digest
    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri(), digest))
        r.plan.set(replace(r.plan.get(), views=(ViewWant(endpoint=ENDPOINT, name="m", digest=digest),)))
        view = r.service.view_path(ENDPOINT, digest)
        await r.until_disk(view.with_name(f"{digest}.json").exists)
        if holder == "pin":
            Store(tmp_path).pin(digest, datetime.now(UTC))
        else:
            await r.service.add(POD, [digest])
            r.runtime.uids = [POD]
        r.plan.set(NodePlan())
        (files_of(tmp_path, digest) / "1.bin").unlink()
        state = (await r.until(lambda v: v.states[digest].level is ModelLevel.PARTIAL)).states[digest]
        assert (state.done_bytes, state.total_bytes) == (2 * MIB, 3 * MIB)  # what room counts
        assert not view.exists()
        with pytest.raises(Transient, match="is not committed here any more"):
            await r.service.add("pod-2", [digest])
        before = len(bucket.proxy.ranges)
        await r.bring(want(bucket.uri(), digest))
        await r.until(lambda v: committed(v, digest))
        assert len(bucket.proxy.ranges) - before == 1
        assert contents(files_of(tmp_path, digest)) == model
        r.plan.set(NodePlan())
        (files_of(tmp_path, digest) / "2.bin").unlink()
        await r.until(lambda v: v.states[digest].level is ModelLevel.PARTIAL)
        await r.service.remove(digest)
        assert list((tmp_path / "staging").iterdir()) == list((tmp_path / "store").iterdir()) == []


async def test_a_version_broken_while_no_agent_ran_is_mended_at_start(bucket: SourceBucket, tmp_path: Path) -> None:
    model = {f"{n}.bin": bucket.put(f"m/{n}.bin", noise(MIB, n)) for n in range(3)}
    digest = (await resolve(bucket.uri())).digest
    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri(), digest))
        await r.until(lambda v: committed(v, digest))
    (files_of(tmp_path, digest) / "1.bin").unlink()
    before = len(bucket.proxy.ranges)
    async with room(tmp_path) as r:
        state = (await r.until(lambda v: digest in v.states and v.states[digest].done_bytes)).states[digest]
        assert (state.level, state.reason) == (
            ModelLevel.PARTIAL,
            "broken: '1.bin' cannot be read: No such file or directory",
        )
        await r.bring(want(bucket.uri(), digest))
        await r.until(lambda v: committed(v, digest))
    assert len(bucket.proxy.ranges) - before == 1
    assert contents(files_of(tmp_path, digest)) == model
