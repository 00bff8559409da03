"""Pins and reading back: both work beside a running agent, on the files alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from awscrt.checksums import crc64nvme

from agent.core.errors import Permanent
from agent.core.refs import Digest, parse_model_uri
from agent.models.checksum import RangeSums
from agent.models.journal import Journal
from agent.models.manifest import Manifest, ObjectEntry
from agent.models.ranges import Part
from agent.models.store import Store
from agent.models.transfer import FileProof
from agent.models.verify import verify_version
from agent.models.version import Version, load_version

NOW = datetime(2030, 1, 1, tzinfo=UTC)
PART = 1 << 20
CONTENT = os.urandom(3 * PART + 77)


def put(store: Store, *, journaled: bool = True) -> Version:
    """Commit a version of two files, as a download leaves it."""
    objects = (
        ObjectEntry(key="m/a", path="a", size=len(CONTENT), etag='"a"'),
        ObjectEntry(key="m/b", path="b", size=1, etag='"b"'),
    )
    manifest = Manifest(uri=parse_model_uri("s3://bucket/m/"), objects=objects)
    staged = store.stage(manifest.digest)
    (staged / "files").mkdir()
    (staged / "files" / "a").write_bytes(CONTENT)
    (staged / "files" / "b").write_bytes(b"b")
    if journaled:
        journal = Journal(staged / "journal", manifest.digest, PART, fresh=True)
        for offset in range(0, len(CONTENT), PART):
            part = CONTENT[offset : offset + PART]
            sums = RangeSums(offset=offset, length=len(part), crc64=crc64nvme(part))
            journal.append(Part(file=0, offset=offset, length=len(part)), sums)
        journal.close()
    proofs = [
        FileProof(path="a", crc64=crc64nvme(CONTENT), proof="md5"),
        FileProof(path="b", crc64=crc64nvme(b"b"), proof="crc64nvme"),
    ]
    return store.commit(manifest, proofs, NOW)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "root")
    made.root.mkdir()
    made.open()
    return made


def damage(file: Path, at: int) -> None:
    """Flip a byte and leave size and times as they were: what only reading back can find."""
    found = file.stat()
    file.chmod(0o600)
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_a_pinned_version_is_not_removed_until_it_is_unpinned(store: Store) -> None:
    digest = put(store).digest
    store.pin(digest, NOW)
    assert Store(store.root).pinned() == {digest}
    assert not store.remove_unpinned(digest)
    assert store.unpin(digest)
    assert not store.unpin(digest)
    assert store.remove_unpinned(digest)
    assert store.look().versions == ()


def test_only_what_is_here_can_be_pinned_and_a_mistyped_root_is_not_made(tmp_path: Path, store: Store) -> None:
    absent = Digest("sha256:" + "0" * 64)
    with pytest.raises(Permanent, match="is not committed here"):
        store.pin(absent, NOW)
    elsewhere = Store(tmp_path / "no" / "root")
    with pytest.raises(Permanent, match="is not committed here"):
        elsewhere.pin(absent, NOW)
    assert elsewhere.pinned() == frozenset()
    assert elsewhere.look().versions == ()
    assert not elsewhere.unpin(absent)
    assert not (tmp_path / "no").exists()


def test_a_pin_and_a_removal_by_two_processes_never_both_succeed(store: Store) -> None:
    pin = (
        "import sys; from datetime import *; from pathlib import Path; from agent.models.store import Store\n"
        "from agent.core.errors import Permanent\n"
        "print('here', flush=True); sys.stdin.readline()\n"
        "try: Store(Path(sys.argv[1])).pin(sys.argv[2], datetime.now(UTC)); print('pinned')\n"
        "except Permanent: print('gone')"
    )
    for _ in range(3):
        digest = put(store).digest
        with subprocess.Popen(
            [sys.executable, "-c", pin, str(store.root), digest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as other:
            assert other.stdin
            assert other.stdout
            other.stdout.readline()
            other.stdin.write("\n")
            other.stdin.flush()
            removed = store.remove_unpinned(digest)
            said, _ = other.communicate(timeout=30)
        assert (said.strip(), removed) in {("pinned", False), ("gone", True)}
        store.unpin(digest)
        store.remove(digest)


def test_looking_changes_nothing_and_tells_what_is_broken(store: Store) -> None:
    version = put(store)
    stray = store.stage(Digest("sha256:" + "1" * 64))
    assert (store.look().versions, store.look().broken) == ((version,), ())
    os.truncate(store.directory(version.digest) / "files" / "b", 0)
    found = store.look()
    assert found.broken == ((version.digest, "'b' has 0 bytes, was committed with 1"),)
    assert store.directory(version.digest).exists()
    assert stray.exists()


@pytest.mark.parametrize("at", [0, PART, 3 * PART + 76])
def test_a_flipped_byte_is_found_and_placed(store: Store, at: int) -> None:
    version = put(store)
    assert verify_version(version, store.directory(version.digest)) == ""
    damage(store.directory(version.digest) / "files" / "a", at)
    assert store.prove(version) == ""
    start = at // PART * PART
    end = min(start + PART, len(CONTENT))
    assert (
        verify_version(version, store.directory(version.digest))
        == f"'a' is damaged between byte {start} and byte {end}"
    )


def test_without_known_parts_the_whole_file_is_compared(store: Store) -> None:
    version = put(store, journaled=False)
    assert verify_version(version, store.directory(version.digest)) == ""
    damage(store.directory(version.digest) / "files" / "a", 5)
    assert (
        verify_version(version, store.directory(version.digest))
        == f"'a' is damaged between byte 0 and byte {len(CONTENT)}"
    )


def test_a_record_without_the_younger_fields_is_still_read(store: Store) -> None:
    version = put(store)
    record = store.directory(version.digest) / "manifest.json"
    assert [f.proof for f in load_version(record.parent).files] == ["md5", "crc64nvme"]
    old = json.loads(record.read_text())
    for value in old["files"].values():
        for field in ("proof", "partBytes", "parts"):
            del value[field]
    record.parent.chmod(0o755)
    record.write_text(json.dumps(old))
    read = load_version(record.parent)
    assert [f.proof for f in read.files] == ["crc64nvme, md5"] * 2
    assert verify_version(read, record.parent) == ""
