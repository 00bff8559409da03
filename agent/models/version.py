"""One committed version on disk: `manifest.json`, how it is written, and the quick proof that nothing was changed since.

The file records size, mtime and inode of every file as they were at commit; a truncated, rewritten, replaced or missing
file differs in one of them. Not ctime: every hard link, of a view or another version, changes it. The record lies beside
`files/`, so no object key can collide with it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from agent.core.assignment_json import format_time
from agent.core.errors import Invalid, PrewarmError, cut
from agent.core.refs import Digest
from agent.models.checksum import proof_of
from agent.models.manifest import Manifest, manifest_from_json, manifest_to_json
from agent.models.parts import UNKNOWN, PartSums
from agent.models.paths import Tree, write_durably
from agent.models.transfer import FileProof

FORMAT = 1
MAX_RECORD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file as it was at commit: how its bytes were proved, and the checksums of its parts where they are known."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    crc64: int
    proof: str = ""
    sums: PartSums = UNKNOWN

    @property
    def proved(self) -> FileProof:
        """What the download said of it."""
        return FileProof(path=self.path, crc64=self.crc64, proof=self.proof)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A committed version: what it is, what its files were at commit, how its bytes were checked, and when (RFC 3339)."""

    digest: Digest
    manifest: Manifest
    files: tuple[FileRecord, ...]
    proof: str
    committed: str


def record_version(
    directory: Path,
    manifest: Manifest,
    proofs: Iterable[FileProof],
    now: datetime,
    sums: Mapping[str, PartSums] | None = None,
) -> Version:
    """Stat every file below `directory/files` and write `directory/manifest.json` durably.

    `sums` are the checksums of the files' parts, by path, as far as they are known.
    """
    tree = Tree(directory / "files")
    checked = tuple(proofs)
    found = tree.stat_each(p.path for p in checked)
    records = tuple(_record(p, f, (sums or {}).get(p.path, UNKNOWN)) for p, f in zip(checked, found, strict=True))
    version = Version(
        digest=manifest.digest,
        manifest=manifest,
        files=records,
        proof=proof_of(p.proof for p in checked),
        committed=format_time(now),
    )
    text = json.dumps(_to_json(version), separators=(",", ":"))
    write_durably(directory / "manifest.json", text.encode())
    return version


def file_record(tree: Tree, proof: FileProof, sums: PartSums) -> FileRecord:
    """Return the record of a complete file as it is now."""
    return _record(proof, tree.stat(proof.path), sums)


def _record(proof: FileProof, found: os.stat_result | OSError, sums: PartSums) -> FileRecord:
    if isinstance(found, OSError):
        raise found
    return FileRecord(
        path=proof.path,
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        inode=found.st_ino,
        crc64=proof.crc64,
        proof=proof.proof,
        sums=sums,
    )


def _to_json(version: Version) -> dict[str, object]:
    return {
        "format": FORMAT,
        "digest": version.digest,
        "proof": version.proof,
        "committed": version.committed,
        "manifest": manifest_to_json(version.manifest),
        "files": {f.path: record_to_json(f) for f in version.files},
    }


def record_to_json(record: FileRecord) -> dict[str, object]:
    """Return a file's record as JSON values; readers of format 1 pass over what they do not know."""
    return {
        "size": record.size,
        "mtimeNs": record.mtime_ns,
        "inode": record.inode,
        "crc64nvme": f"{record.crc64:016x}",
        "proof": record.proof,
        "partBytes": record.sums.part_bytes,
        "parts": record.sums.crcs.hex(),
    }


def record_from_json(path: str, value: Mapping[str, Any]) -> FileRecord:
    """Read a file's record back; the last three fields are younger than the format, and may be missing.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    return FileRecord(
        path=path,
        size=int(value["size"]),
        mtime_ns=int(value["mtimeNs"]),
        inode=int(value["inode"]),
        crc64=int(value["crc64nvme"], 16),
        proof=str(value.get("proof", "")),
        sums=PartSums(part_bytes=int(value.get("partBytes", 0)), crcs=bytes.fromhex(value.get("parts", ""))),
    )


def load_version(directory: Path, name: str = "manifest.json") -> Version:
    """Read `directory/manifest.json`, or another file that is such a record.

    Raises:
        Invalid: it is missing, not ours, or does not describe the version its digest names.
    """
    try:
        fd = Tree(directory).open(name, os.O_RDONLY)
        with os.fdopen(fd, "rb") as file:
            value = json.loads(file.read(MAX_RECORD_BYTES))
        return _from_json(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, PrewarmError) as error:
        raise Invalid(f"its {name} cannot be read: {cut(error, 150)}") from error


def _from_json(value: Mapping[str, Any]) -> Version:
    if value["format"] != FORMAT:
        raise Invalid(f"format {cut(value['format'], 20)} is not {FORMAT}")
    manifest = manifest_from_json(value["manifest"])
    if manifest.digest != value["digest"]:
        raise Invalid("it does not describe the version its digest names")
    proof = str(value["proof"])
    records = (record_from_json(o.path, value["files"][o.path]) for o in manifest.objects)
    files = tuple(r if r.proof else replace(r, proof=proof) for r in records)
    return Version(
        digest=manifest.digest,
        manifest=manifest,
        files=files,
        proof=proof,
        committed=str(value["committed"]),
    )


def broken_file(version: Version, files: Path) -> str:
    """Compare every file below `files` with the record; "" if all agree, else one sentence naming the first that differs."""
    return next((why for _, why in broken_files(version, files)), "")


def broken_files(version: Version, files: Path) -> Iterator[tuple[str, str]]:
    """Yield the path of every file that differs from its record, with a sentence that says how."""
    for record, found in zip(version.files, Tree(files).stat_each(r.path for r in version.files), strict=True):
        if why := _difference(record, found):
            yield record.path, why


def why_broken(record: FileRecord, tree: Tree) -> str:
    """Compare one file with its record; "" if it is as it was, else one sentence."""
    (found,) = tree.stat_each([record.path])
    return _difference(record, found)


def _difference(record: FileRecord, found: os.stat_result | OSError) -> str:
    if (
        not isinstance(found, OSError)
        and stat.S_ISREG(found.st_mode)
        and (found.st_size, found.st_ino, found.st_mtime_ns) == (record.size, record.inode, record.mtime_ns)
    ):
        return ""
    name = cut(ascii(record.path), 200)
    if isinstance(found, OSError):
        return f"{name} cannot be read: {cut(os.strerror(found.errno or 0), 60)}"
    if not stat.S_ISREG(found.st_mode):
        return f"{name} is no longer a file"
    if found.st_size != record.size:
        return f"{name} has {found.st_size} bytes, was committed with {record.size}"
    if found.st_ino != record.inode:
        return f"{name} was replaced since it was committed"
    return f"{name} was written to since it was committed"
