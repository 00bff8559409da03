"""Layers in the eStargz format: a gzip of which every file, and every chunk of one, can be read by itself.

Source: stargz-snapshotter docs/estargz.md, and estargz.Writer for what the text leaves open.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Iterable
from typing import IO, Any

CHUNK_BYTES = 4 << 20
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
_NO_PREFETCH = ".no.prefetch.landmark"  # nothing is fetched before it is read


def write_estargz(
    files: Iterable[tuple[str, bytes]], content: IO[bytes], packing: int = 1
) -> tuple[str, str, int, dict[str, str]]:
    """Write a layer, packed at a level of gzip; returns digest, diff id and size, and the annotations of its descriptor."""
    writer = _Writer(content, packing)
    for name, data in [(_NO_PREFETCH, b"\x0f"), *files]:
        writer.file(name, data)
    toc_digest = writer.end()
    return writer.digest, writer.diff_id, writer.size, {TOC_DIGEST: toc_digest}


class _Writer:
    """Gzip members one after another, each of them noted with its offset where it holds a chunk."""

    def __init__(self, content: IO[bytes], packing: int) -> None:
        self._content = content
        self._packing = packing
        self._stored, self._plain = hashlib.sha256(), hashlib.sha256()
        self._entries: list[dict[str, Any]] = []
        self.size = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._stored.hexdigest()}"

    @property
    def diff_id(self) -> str:
        return f"sha256:{self._plain.hexdigest()}"

    def file(self, name: str, data: bytes) -> None:
        """Add a regular file that anybody may run."""
        self._member(_header(name, len(data)))
        for at in range(0, len(data), CHUNK_BYTES):
            chunk = data[at : at + CHUNK_BYTES]
            entry: dict[str, Any] = {"name": name, "type": "chunk" if at else "reg", "offset": self.size}
            entry |= {"chunkDigest": _sha256(chunk)}
            if at:
                entry["chunkOffset"] = at
            else:
                entry |= {"size": len(data), "mode": 0o755, "digest": _sha256(data), "NumLink": 0}
            if len(chunk) < len(data):
                entry["chunkSize"] = len(chunk)
            self._entries.append(entry)
            self._member(chunk)
        if padding := -len(data) % 512:
            self._member(bytes(padding))

    def end(self) -> str:
        """Add the table of contents and where it is; returns its digest."""
        offset, toc = self.size, json.dumps({"version": 1, "entries": self._entries}).encode()
        self._member(_header("stargz.index.json", len(toc)) + toc + bytes(-len(toc) % 512) + bytes(1024))
        self._put(_footer(offset))
        return _sha256(toc)

    def _member(self, data: bytes) -> None:
        self._plain.update(data)
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=self._packing, mtime=0) as out:
            out.write(data)
        self._put(packed.getvalue())

    def _put(self, stored: bytes) -> None:
        self._stored.update(stored)
        self.size += len(stored)
        self._content.write(stored)


def _header(name: str, size_bytes: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size_bytes, 0o755
    return entry.tobuf(tarfile.PAX_FORMAT)


def _footer(toc_offset: int) -> bytes:
    """An empty gzip member of 51 bytes whose extra field tells the offset of the table of contents."""
    told = f"{toc_offset:016x}STARGZ".encode()
    extra = b"SG" + struct.pack("<H", len(told)) + told
    head = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff" + struct.pack("<H", len(extra)) + extra
    return head + b"\x01\x00\x00\xff\xff" + bytes(8)


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
