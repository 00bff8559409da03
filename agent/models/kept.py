"""What a staged version need not fetch: files that another version here has, and files it had itself before one went bad.

    staging/<digest>/kept/…         proved files, by hard link where the file system lets us; never written to
    staging/<digest>/kept.json      their records
    staging/<digest>/salvage/…      files of which a part went bad; `salvage` copies the good parts to new files in `files/`
    staging/<digest>/repair.json    the record of a version that was committed, and whose bad files still lie in `files/`
    staging/<digest>/former.json    the same, once they are set aside

A hard link shares its inode with other versions and their views, so whatever lies in `files/`, where the download writes, has
one name only: `keep` sees to that before each download.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.core.errors import Invalid, PrewarmError, Transient
from agent.core.refs import Digest
from agent.models.checksum import UNPROVED, sum_range
from agent.models.disk import RangeFiles
from agent.models.journal import Journal, read_journal
from agent.models.manifest import Manifest, ObjectEntry
from agent.models.parts import aligned
from agent.models.paths import Tree, fsync_directory, remove_tree, write_durably
from agent.models.ranges import Part
from agent.models.version import FileRecord, Version, load_version, record_from_json, record_to_json, why_broken

FILES, KEPT, RECORDS, SALVAGE, JOURNAL = "files", "kept", "kept.json", "salvage", "journal"
REPAIR, FORMER = "repair.json", "former.json"
_FICLONE = 0x40049409  # linux/fs.h
_PART_BYTES = 8 << 20  # of a journal in which no part is noted

Identity = tuple[int, str, str]
Donors = Mapping[tuple[Identity, str], tuple[Tree, FileRecord]]


def identity(entry: ObjectEntry) -> Identity | None:
    """Return what two objects must share to have the same bytes; None where the source does not say enough.

    A CRC alone is not enough: anybody can make a file with a given one, and be shown, or slip in, another's bytes. With the
    ETag, which is made of MD5s, or a SHA-256, nobody can.
    """
    if not entry.checksum or not entry.size:
        return None
    strong = entry.checksum.startswith("sha256:")
    return entry.size, entry.checksum, "" if strong else entry.etag


def donors_of(versions: Iterable[tuple[Version, Path]]) -> Donors:
    """Index the files of committed versions, each given with the directory its files are below.

    The key is what they are, and the SHA-256 listed beside them that they were compared with: "" asks for none.
    """
    found: dict[tuple[Identity, str], tuple[Tree, FileRecord]] = {}
    for version, files in versions:
        tree = Tree(files)
        for entry, record in zip(version.manifest.objects, version.files, strict=True):
            key = identity(entry)
            if key is not None and record.proof != UNPROVED:
                for compared in ("", entry.sha256) if _meets(record, entry) else ("",):
                    found.setdefault((key, compared), (tree, record))
    return found


def _meets(record: FileRecord, entry: ObjectEntry) -> bool:
    """Say whether a file was compared with the SHA-256 that is listed beside its object, if one is."""
    return not entry.sha256 or "sha256" in record.proof.split(", ")


def keep(staged: Path, manifest: Manifest, donors: Donors) -> tuple[FileRecord, ...]:
    """Put a staging directory in order before a download, and return the files that need not be fetched.

    Raises:
        OSError: the disk refuses.
    """
    for name in (FILES, KEPT):
        (staged / name).mkdir(exist_ok=True)
    files, kept = Tree(staged / FILES), Tree(staged / KEPT)
    known, objects = kept_records(staged), {o.path: o for o in manifest.objects}
    have = {
        path: record
        for path, record in known.items()
        if _still_kept(record, files, kept) and path in objects and _meets(record, objects[path])
    }
    _set_aside(staged, files)
    for path in _paths_below(staged / FILES):
        if files.stat(path).st_nlink > 1:
            files.unlink(path)
    for entry in manifest.objects:
        key = identity(entry)
        donor = donors.get((key, entry.sha256)) if key else None
        if entry.path not in have and donor and (record := _link(*donor, kept, entry.path)):
            have[entry.path] = record
    wanted = {o.path: have[o.path] for o in manifest.objects if o.path in have}
    for path in _paths_below(staged / KEPT):
        if path not in wanted:
            kept.unlink(path)
    for path in wanted:
        for tree in (files, Tree(staged / SALVAGE)):
            with contextlib.suppress(OSError):
                tree.unlink(path)
    if wanted != known:
        write_records(staged, wanted.values())
    return tuple(wanted.values())


def _still_kept(record: FileRecord, files: Tree, kept: Tree) -> bool:
    """Say whether a kept file is as it was; one that a commit had moved already is moved back."""
    if not why_broken(record, kept):
        return True
    if why_broken(record, files):
        return False
    files.move_into(record.path, kept)
    return True


def _set_aside(staged: Path, files: Tree) -> None:
    """Move files that went bad out of the download's way: to be salvaged if only bytes differ, else away."""
    try:
        version = load_version(staged, REPAIR)
    except Invalid:
        return
    for record in version.files:
        try:
            mine = files.stat(record.path).st_ino == record.inode
        except OSError:
            continue
        if mine and not why_broken(record, files):
            (staged / SALVAGE).mkdir(exist_ok=True)
            files.move_into(record.path, Tree(staged / SALVAGE))
        elif mine:
            files.unlink(record.path)
    (staged / REPAIR).rename(staged / FORMER)  # only now: a new file may get the number of an old one's inode


def _link(source: Tree, record: FileRecord, kept: Tree, path: str) -> FileRecord | None:
    """Link, or else reflink, another version's file; None where neither can be."""
    if why_broken(record, source):
        return None
    with contextlib.suppress(OSError):
        kept.unlink(path)
    try:
        source.link_into(record.path, kept, path)
    except OSError:  # too many links, or a file system without them
        if not _reflink(source, record.path, kept, path):
            return None
    found = kept.stat(path)
    return replace(record, path=path, inode=found.st_ino, mtime_ns=found.st_mtime_ns)


def _reflink(source: Tree, path: str, kept: Tree, to: str) -> bool:
    kept.make_parents(to)
    with contextlib.ExitStack() as open_files:
        try:
            there = source.open(path, os.O_RDONLY)
            open_files.callback(os.close, there)
            here = kept.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            open_files.callback(os.close, here)
            fcntl.ioctl(here, _FICLONE, there)
            os.fsync(here)
        except OSError:
            with contextlib.suppress(OSError):
                kept.unlink(to)
            return False
    return True


def _paths_below(root: Path) -> list[str]:
    return [os.path.relpath(os.path.join(at, name), root) for at, _, names in os.walk(root) for name in names]


def kept_records(staged: Path) -> dict[str, FileRecord]:
    """Return the records of kept files, by path; none where they cannot be read."""
    try:
        value: Any = json.loads((staged / RECORDS).read_bytes())
        return {path: record_from_json(path, each) for path, each in value.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_records(directory: Path, records: Iterable[FileRecord]) -> None:
    """Write the records of kept files durably."""
    text = json.dumps({r.path: record_to_json(r) for r in records}, separators=(",", ":"))
    write_durably(directory / RECORDS, text.encode())


def committed_once(staged: Path) -> Version | None:
    """Return the record of a staged version that was committed before; None if it never was."""
    for name in (FORMER, REPAIR):
        with contextlib.suppress(Invalid):
            return load_version(staged, name)
    return None


def begin_repair(directory: Path, version: Version, good: Iterable[FileRecord], bad: Iterable[FileRecord]) -> None:
    """Write into a committed version's directory what turns it, once it is moved to staging, into a partial download."""
    known = [r.sums.part_bytes for r in bad if r.sums.part_bytes]
    part_bytes = known[0] if known else _PART_BYTES
    remove_tree(directory / REPAIR)
    write_records(directory, good)
    Journal(directory / JOURNAL, version.digest, part_bytes, fresh=True).close()
    os.link(directory / "manifest.json", directory / REPAIR)  # last: from here on it is no committed version
    fsync_directory(directory)


def take_kept(staged: Path) -> Mapping[str, FileRecord]:
    """Move the kept files among the downloaded ones, for the commit.

    Raises:
        Transient: one of them is not as it was.
    """
    files, kept = Tree(staged / FILES), Tree(staged / KEPT)
    records = kept_records(staged)
    for record in records.values():
        if not why_broken(record, kept):
            kept.move_into(record.path, files)
        if why := why_broken(record, files):
            raise Transient(f"a file that was here already changed meanwhile: {why}")
    return records


def drop_inodes(staged: Path, inodes: frozenset[int]) -> None:
    """Remove kept files that have turned out to be bad, durably; then their records count for nothing.

    They lie in `files/` where a repair has just begun, or a commit was killed.

    Raises:
        OSError: the disk refuses.
    """
    for record in kept_records(staged).values():
        if record.inode in inodes:
            for tree in (Tree(staged / KEPT), Tree(staged / FILES)):
                _drop_inode(tree, record)


def _drop_inode(tree: Tree, record: FileRecord) -> None:
    with contextlib.suppress(FileNotFoundError):
        if tree.stat(record.path).st_ino == record.inode:
            tree.unlink(record.path)
            tree.make_names_durable([record.path])


def salvage(staged: Path, manifest: Manifest, stop: threading.Event) -> None:
    """Copy the good parts of files that went bad into new files, and note them in the journal; ends early at `stop`.

    What cannot be copied is fetched. Killed at any moment, the next call goes on.
    """
    version, journaled = committed_once(staged), read_journal(staged / JOURNAL)
    if (staged / SALVAGE).is_dir() and version and journaled:
        journal = Journal(staged / JOURNAL, manifest.digest, journaled.part_bytes, fresh=False)
        try:
            for number, record in enumerate(version.files):
                if record.sums.part_bytes == journaled.part_bytes and not why_broken(record, Tree(staged / SALVAGE)):
                    done = {offset for file, offset in journaled.sums if file == number}
                    _copy_good(staged, manifest, number, record, done, journal.append, stop)
                if stop.is_set():
                    return
        finally:
            journal.close()
    remove_tree(staged / SALVAGE)


def _copy_good(
    staged: Path,
    manifest: Manifest,
    number: int,
    record: FileRecord,
    done: set[int],
    note: Callable[[Part, Any], None],
    stop: threading.Event,
) -> None:
    old, new = RangeFiles(Tree(staged / SALVAGE)), RangeFiles(Tree(staged / FILES))
    try:
        new.prepare({record.path: record.size})
        with aligned(record.sums.part_bytes) as buffer:
            for part in record.sums.ranges(record.size, record.crc64):
                if stop.is_set():
                    return
                if part.offset in done or not old.read(record.path, buffer, part.offset, part.length):
                    continue
                found = sum_range(manifest.objects[number], part.offset, buffer[: part.length])
                if found.crc64 == part.crc64:
                    new.write(record.path, buffer, part.offset, part.length)
                    note(Part(file=number, offset=part.offset, length=part.length), found)
    except PrewarmError:  # no room for a copy: the rest is fetched
        return


def staged_bytes(staged: Path, digest: Digest) -> int | None:
    """Return how many bytes of a staged version need not be fetched; None where nothing of it can be resumed."""
    journaled = read_journal(staged / JOURNAL)
    if journaled is None or journaled.digest != digest:
        return None
    return journaled.done_bytes + sum(r.size for r in kept_records(staged).values())
