"""Image layers of a wanted size and compression, the same bytes for the same seed."""

from __future__ import annotations

import gzip
import hashlib
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, cast

from tests.bed import noise
from tests.bed.estargz import write_estargz

Compression = Literal["gzip", "zstd", "none", "estargz"]

FILE_BYTES = 64 << 20  # a layer is split into files of at most this size
ZEROS = bytes(4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What a layer is to be: the same fields always give the same bytes."""

    size_bytes: int  # of file content, before compression
    seed: str
    compression: Compression = "gzip"
    compressible: bool = False  # to about half, else not at all
    program: Path | None = None  # put in as /NAME, up to the first hyphen of its file name


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A blob in the registry."""

    digest: str
    size: int
    diff_id: str = ""  # digest of a layer before compression
    annotations: Mapping[str, str] = field(default_factory=dict)

    def descriptor(self, media_type: str) -> dict[str, Any]:
        """As manifests name it."""
        described = {"mediaType": media_type, "digest": self.digest, "size": self.size}
        return described | ({"annotations": dict(self.annotations)} if self.annotations else {})


def write_layer(layer: Layer, content: IO[bytes]) -> Blob:
    """Writes the layer's tar, compressed, to `content`; returns its digests and size."""
    if layer.compression == "estargz":
        packing = int(layer.compressible)  # level 0 where there is nothing to gain: ten times as fast
        digest, diff_id, size, annotations = write_estargz(_files(layer), content, packing)
        return Blob(digest=digest, size=size, diff_id=diff_id, annotations=annotations)
    stored = _Digest(content)
    with _compressor(layer, stored) as compressed:
        plain = _Digest(compressed)
        with tarfile.open(fileobj=cast("IO[bytes]", plain), mode="w|", bufsize=1 << 20) as archive:
            if layer.program:
                entry = tarfile.TarInfo(_name(layer.program))
                entry.size, entry.mode = layer.program.stat().st_size, 0o755
                archive.addfile(entry, io.BytesIO(layer.program.read_bytes()))
            for number, at in enumerate(range(0, layer.size_bytes, FILE_BYTES)):
                entry = tarfile.TarInfo(f"padding/{layer.seed}/{number}")
                entry.size = min(FILE_BYTES, layer.size_bytes - at)
                archive.addfile(entry, _Source(_content(layer, number, entry.size)))
    return Blob(digest=stored.digest, size=stored.size, diff_id=plain.digest)


def _files(layer: Layer) -> Iterator[tuple[str, bytes]]:
    if layer.program:
        yield _name(layer.program), layer.program.read_bytes()
    for number, at in enumerate(range(0, layer.size_bytes, FILE_BYTES)):
        size_bytes = min(FILE_BYTES, layer.size_bytes - at)
        yield f"padding/{layer.seed}/{number}", b"".join(_content(layer, number, size_bytes))


def _name(program: Path) -> str:
    return program.name.partition("-")[0]


def _content(layer: Layer, number: int, size_bytes: int) -> Iterator[bytes | memoryview]:
    """A file's bytes; every second page is zeros where they are to compress."""
    for block in noise.blocks(f"{layer.seed}/{number}", size_bytes):
        if not layer.compressible:
            yield block
            continue
        pages = range(0, len(block), 4096)
        yield b"".join(ZEROS[: len(block) - at] if at // 4096 % 2 else bytes(block[at : at + 4096]) for at in pages)


@contextmanager
def _compressor(layer: Layer, target: _Digest) -> Iterator[Any]:
    """A writer whose bytes reach `target` compressed; all are there on leaving."""
    if layer.compression == "none":
        yield target
    elif layer.compression == "gzip":  # level 0 where there is nothing to gain: ten times as fast
        with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=int(layer.compressible), mtime=0) as out:
            yield out
    else:
        with tempfile.TemporaryFile() as packed:
            with subprocess.Popen(["zstd", "-q", "-1", "-c"], stdin=subprocess.PIPE, stdout=packed) as zstd:
                yield zstd.stdin
            if zstd.returncode:
                raise subprocess.CalledProcessError(zstd.returncode, "zstd")
            packed.seek(0)
            while block := packed.read(1 << 20):
                target.write(block)


class _Digest:
    """Passes bytes on, counted and hashed."""

    def __init__(self, target: Any) -> None:
        self.size = 0
        self._hash = hashlib.sha256()
        self._target = target

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, block: bytes | memoryview) -> int:
        self.size += len(block)
        self._hash.update(block)
        self._target.write(block)
        return len(block)

    def flush(self) -> None:
        self._target.flush()


class _Source(io.RawIOBase):
    """Blocks read as a file."""

    def __init__(self, blocks: Iterator[bytes | memoryview]) -> None:
        self._blocks = blocks
        self._rest: bytes | memoryview = b""

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size and (block := next(self._blocks, None)) is not None:
            self._rest = bytes(self._rest) + bytes(block) if len(self._rest) else block
        out, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return out
