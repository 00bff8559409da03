"""A file proved bad, on a real disk: no other version has it any more, and what is good of a version somebody holds stays."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from awscrt.checksums import crc64nvme

from agent.core.errors import Transient
from agent.core.refs import Digest, parse_model_uri
from agent.models.checksum import check_whole, sum_range
from agent.models.journal import Journal, read_journal
from agent.models.kept import write_records
from agent.models.manifest import Manifest, ObjectEntry
from agent.models.shelf import Shelf
from agent.models.store import Store
from agent.models.transfer import FileProof
from agent.models.verify import verify_version
from agent.models.version import Version
from tests.unit.models.test_pins import damage

NOW = datetime(2030, 1, 1, tzinfo=UTC)
POD = "0b9f1c1e-1111-2222-3333-444455556666"
Files = Mapping[str, bytes]


def entry(path: str, content: bytes, sha256: str = "") -> ObjectEntry:
    crc = crc64nvme(content).to_bytes(8, "big")
    return ObjectEntry(
        key=f"m/{path}",
        path=path,
        size=len(content),
        etag=f'"{hashlib.md5(content).hexdigest()}"',
        checksum=f"crc64nvme:{base64.b64encode(crc).decode()}",
        checksum_type="FULL_OBJECT",
        sha256=sha256,
    )


def manifest(files: Files, listed: Mapping[str, str] | None = None) -> Manifest:
    """A version of these files; `listed` are the SHA-256 that a SHA256SUMS states."""
    objects = tuple(entry(p, c, (listed or {}).get(p, "")) for p, c in sorted(files.items()))
    return Manifest(uri=parse_model_uri("s3://bucket/m/"), objects=objects)


async def bring(shelf: Shelf, wanted: Manifest, files: Files) -> tuple[Version, list[str]]:
    """Commit a version as a download does; also returns what had to be fetched."""
    staged = await shelf.admit(wanted, 1.0)
    have = {r.path: r.proved for r in staged.have}
    fresh = read_journal(staged.directory / "journal") is None
    Journal(staged.directory / "journal", wanted.digest, 1 << 20, fresh=fresh).close()
    proofs, fetched = [], []
    for one in wanted.objects:
        if one.path in have:
            proofs.append(have[one.path])
            continue
        content = files[one.path]
        (staged.directory / "files" / one.path).write_bytes(content)
        proof = check_whole(one, [sum_range(one, 0, memoryview(content))], hashlib.sha256(content).digest())
        proofs.append(FileProof(path=one.path, crc64=crc64nvme(content), proof=proof))
        fetched.append(one.path)
    return await shelf.commit(wanted, proofs, NOW), fetched


async def shelf_at(root: Path, store: Store | None = None) -> Shelf:
    shelf = Shelf(store or Store(root))
    await shelf.open()
    return shelf


def inode_of(version: Version, path: str) -> int:
    return next(r.inode for r in version.files if r.path == path)


def rot(shelf: Shelf, version: Version, path: str) -> int:
    """Damage a committed file so that only reading back can find it; returns its inode."""
    damage(shelf.store.directory(version.digest) / "files" / path, 5000)
    return inode_of(version, path)


def is_whole(shelf: Shelf, version: Version) -> bool:
    return verify_version(version, shelf.store.directory(version.digest)) == ""


BIG = os.urandom(20_000)
OLD: Files = {"big": BIG, "small": b"old"}
NEW: Files = {"big": BIG, "small": b"new"}


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_file_proved_bad_comes_into_no_other_version(tmp_path: Path, wanted: bool) -> None:
    kept = tmp_path / "staging" / manifest(NEW).digest / "kept" / "big"
    seen: list[tuple[str, bool]] = []
    shelf = await shelf_at(tmp_path, Store(tmp_path, step=lambda name: seen.append((name, kept.exists()))))
    old, _ = await bring(shelf, manifest(OLD), OLD)
    assert [r.path for r in (await shelf.admit(manifest(NEW), 1.0)).have] == ["big"]  # and is interrupted here
    seen.clear()
    await shelf.condemn(rot(shelf, old, "big"), "is damaged", lambda *_: wanted)
    assert seen
    assert not any(there for _, there in seen)  # gone before the version moves, for a kill between the two
    new, fetched = await bring(shelf, manifest(NEW), NEW)
    assert fetched == ["big", "small"]
    assert is_whole(shelf, new)


async def test_a_download_that_had_taken_it_over_already_is_not_committed(tmp_path: Path) -> None:
    shelf = await shelf_at(tmp_path)
    old, _ = await bring(shelf, manifest(OLD), OLD)
    staged = await shelf.admit(manifest(NEW), 1.0)
    (staged.directory / "files" / "small").write_bytes(NEW["small"])
    proofs = [staged.have[0].proved, FileProof(path="small", crc64=crc64nvme(NEW["small"]), proof="crc64nvme")]
    await shelf.condemn(rot(shelf, old, "big"), "is damaged", lambda *_: False)
    with pytest.raises(Transient, match="changed meanwhile"):
        await shelf.commit(manifest(NEW), proofs, NOW)
    new, fetched = await bring(shelf, manifest(NEW), NEW)
    assert fetched[0] == "big"
    assert is_whole(shelf, new)


async def test_a_second_bad_file_is_not_taken_up_again_by_a_version_that_lost_its_first(tmp_path: Path) -> None:
    one, two = {"1": os.urandom(20_000), "2": BIG}, {"2": BIG, "small": b"new"}
    shelf = await shelf_at(tmp_path)
    first, _ = await bring(shelf, manifest(one), one)
    second, fetched = await bring(shelf, manifest(two), two)
    assert fetched == ["small"]
    await shelf.condemn(rot(shelf, first, "1"), "is damaged", lambda *_: True)  # nothing can be fetched yet
    await shelf.condemn(rot(shelf, second, "2"), "is damaged", lambda *_: True)
    for files, version in ((one, first), (two, second)):
        again, _ = await bring(shelf, manifest(files), files)
        assert again.digest == version.digest
        assert is_whole(shelf, again)


async def test_nor_by_one_whose_commit_was_killed(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(name: str) -> None:
        if name == "kept-moved" and manifest(OLD).digest in shelf.versions:
            raise Killed

    shelf = await shelf_at(tmp_path, Store(tmp_path, step=kill))
    old, _ = await bring(shelf, manifest(OLD), OLD)
    with pytest.raises(Killed):
        await bring(shelf, manifest(NEW), NEW)
    shelf = await shelf_at(tmp_path)
    assert (tmp_path / "staging" / manifest(NEW).digest / "files" / "big").exists()
    await shelf.condemn(rot(shelf, old, "big"), "is damaged", lambda *_: False)
    new, fetched = await bring(shelf, manifest(NEW), NEW)
    assert "big" in fetched
    assert is_whole(shelf, new)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def test_a_file_is_linked_only_if_it_was_compared_with_the_sha256_that_is_listed(tmp_path: Path) -> None:
    shelf = await shelf_at(tmp_path)
    await bring(shelf, manifest(OLD), OLD)  # states no SHA-256
    listed = {"big": sha256(BIG)}
    _, fetched = await bring(shelf, manifest(NEW, listed), NEW)
    assert fetched == ["big", "small"]
    third = {"big": BIG, "small": b"3"}
    version, fetched = await bring(shelf, manifest(third, listed), third)
    assert fetched == ["small"]  # the second one's was compared
    assert version.proof == "crc64nvme, sha256"
    assert (await bring(shelf, manifest(fourth := {"big": BIG, "small": b"4"}), fourth))[1] == ["small"]
    other = {"big": BIG, "small": b"5"}
    assert (await shelf.admit(manifest(other, {"big": sha256(b"what was built")}), 1.0)).have == ()


async def test_what_an_older_agent_kept_without_comparing_it_is_fetched(tmp_path: Path) -> None:
    shelf = await shelf_at(tmp_path)
    await bring(shelf, manifest(OLD), OLD)
    wanted = manifest(NEW, {"big": sha256(BIG)})
    (record,) = (await shelf.admit(manifest(NEW), 1.0)).have
    staged = tmp_path / "staging" / wanted.digest
    write_records(staged, [record])
    _, fetched = await bring(shelf, wanted, NEW)
    assert fetched == ["big", "small"]


@pytest.mark.parametrize("holder", ["pin", "pod", "pinned in this moment"])
async def test_what_is_good_of_a_version_that_somebody_holds_stays_though_no_plan_wants_it(
    tmp_path: Path, holder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = await shelf_at(tmp_path)
    version, _ = await bring(shelf, manifest(OLD), OLD)
    if holder == "pod":
        await shelf.refer(POD, [version.digest])
    else:
        shelf.store.pin(version.digest, NOW)
    if holder == "pinned in this moment":
        monkeypatch.setattr(shelf, "_held_by", lambda _digest: "")
    staged: list[tuple[Digest, int]] = []
    await shelf.condemn(
        rot(shelf, version, "big"),
        "is damaged",
        lambda *_: False,
        lambda partial: staged.append((partial.digest, partial.done_bytes)),
    )
    assert staged == [(version.digest, len(OLD["small"]))]
    assert shelf.store.look().versions == ()
    with pytest.raises(Transient, match="is not committed here any more"):
        await shelf.refer("pod-2", [version.digest])
    again, fetched = await bring(shelf, manifest(OLD), OLD)
    assert fetched == ["big"]
    assert is_whole(shelf, again)


async def test_what_nobody_holds_and_no_plan_wants_is_removed(tmp_path: Path) -> None:
    shelf = await shelf_at(tmp_path)
    version, _ = await bring(shelf, manifest(OLD), OLD)
    await shelf.condemn(
        rot(shelf, version, "big"), "is damaged", lambda *_: False, lambda partial: pytest.fail(str(partial))
    )
    assert [list((tmp_path / name).iterdir()) for name in ("store", "staging", "trash")] == [[], [], []]
