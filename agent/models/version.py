"""One committed version on disk: `manifest.json`, how it is written, and the quick proof that nothing was changed since.

The file records size, mtime and inode of every file as they were at commit; a truncated, rewritten, replaced or missing
file differs in one of them. The record lies beside `files/`, so no object key can collide with it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from agent.core.assignment_json import format_time
from agent.core.errors import Invalid, PrewarmError, cut
from agent.core.refs import Digest
from agent.models.checksum import proof_of
from agent.models.manifest import Manifest, manifest_from_json, manifest_to_json
from agent.models.paths import Tree, write_durably
from agent.models.transfer import FileProof

FORMAT = 1
MAX_RECORD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file as it was at commit."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    crc64: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A committed version: what it is, what its files were at commit, how its bytes were checked, and when (RFC 3339)."""

    digest: Digest
    manifest: Manifest
    files: tuple[FileRecord, ...]
    proof: str
    committed: str


def record_version(
    directory: Path, manifest: Manifest, proofs: Iterable[FileProof], now: datetime, files: Path | None = None
) -> Version:
    """Stat every file below `files` (default: `directory/files`) and write `directory/manifest.json` durably."""
    tree = Tree(files or directory / "files")
    checked = tuple(proofs)
    records = tuple(_record(tree, p) for p in checked)
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


def _record(tree: Tree, proof: FileProof) -> FileRecord:
    found = tree.stat(proof.path)
    return FileRecord(
        path=proof.path, size=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino, crc64=proof.crc64
    )


def _to_json(version: Version) -> dict[str, object]:
    files = {
        f.path: {"size": f.size, "mtimeNs": f.mtime_ns, "inode": f.inode, "crc64nvme": f"{f.crc64:016x}"}
        for f in version.files
    }
    return {
        "format": FORMAT,
        "digest": version.digest,
        "proof": version.proof,
        "committed": version.committed,
        "manifest": manifest_to_json(version.manifest),
        "files": files,
    }


def load_version(directory: Path) -> Version:
    """Read `directory/manifest.json`.

    Raises:
        Invalid: it is missing, not ours, or does not describe the version its digest names.
    """
    try:
        fd = Tree(directory).open("manifest.json", os.O_RDONLY)
        with os.fdopen(fd, "rb") as file:
            value = json.loads(file.read(MAX_RECORD_BYTES))
        return _from_json(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, PrewarmError) as error:
        raise Invalid(f"its manifest.json cannot be read: {cut(error, 150)}") from error


def _from_json(value: Mapping[str, Any]) -> Version:
    if value["format"] != FORMAT:
        raise Invalid(f"format {cut(value['format'], 20)} is not {FORMAT}")
    manifest = manifest_from_json(value["manifest"])
    if manifest.digest != value["digest"]:
        raise Invalid("it does not describe the version its digest names")
    files = tuple(
        FileRecord(
            path=o.path,
            size=int(value["files"][o.path]["size"]),
            mtime_ns=int(value["files"][o.path]["mtimeNs"]),
            inode=int(value["files"][o.path]["inode"]),
            crc64=int(value["files"][o.path]["crc64nvme"], 16),
        )
        for o in manifest.objects
    )
    return Version(
        digest=manifest.digest,
        manifest=manifest,
        files=files,
        proof=str(value["proof"]),
        committed=str(value["committed"]),
    )


def broken_file(version: Version, files: Path) -> str:
    """Compare every file below `files` with the record; "" if all agree, else one sentence naming the first that differs."""
    tree = Tree(files)
    for record in version.files:
        try:
            found = tree.stat(record.path)
        except OSError as error:
            return f"{cut(ascii(record.path), 200)} cannot be read: {cut(os.strerror(error.errno or 0), 60)}"
        if not stat.S_ISREG(found.st_mode):
            return f"{cut(ascii(record.path), 200)} is no longer a file"
        if found.st_size != record.size:
            return f"{cut(ascii(record.path), 200)} has {found.st_size} bytes, was committed with {record.size}"
        if found.st_ino != record.inode:
            return f"{cut(ascii(record.path), 200)} was replaced since it was committed"
        if found.st_mtime_ns != record.mtime_ns:
            return f"{cut(ascii(record.path), 200)} was written to since it was committed"
    return ""
