"""What one model version is: its objects as listed once, where each goes on disk, and the digest that names them all.

Pure. The bucket is not trusted: a key that cannot be a plain file below the version's directory is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from agent.core.errors import Invalid, Permanent, cut
from agent.core.refs import Digest, ModelUri, parse_model_uri

MAX_OBJECTS = 10_000
MAX_OBJECT_BYTES = 50 << 40  # S3's limit is 5 TB, since 2025 50 TB (AWS, "Amazon S3 quotas")
MAX_NAME_BYTES = 255  # NAME_MAX of every Linux file system in use
MAX_PATH_BYTES = 1000  # well below PATH_MAX, with room for the store's own directories
FULL_OBJECT = "FULL_OBJECT"
COMPOSITE = "COMPOSITE"  # a checksum of the checksums of the parts in which an object was uploaded
_FORBIDDEN = {
    "Cc",
    "Cf",
    "Cs",
    "Zl",
    "Zp",
}  # Unicode categories: control, format (bidi overrides), surrogates, line ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One object as a listing shows it. `etag` keeps its quotes, as `If-Match` wants it."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectEntry:
    """One object of a version.

    `path` is relative, below the version's files. `checksum` is `<algorithm>:<value>` as the source states it (base64; hex
    for `md5`, which is an ETag), or "" where it states none. `part_sizes` are those of the parts it was uploaded in, if the
    checksum is COMPOSITE and the source tells them; `sha256` is what a `SHA256SUMS` beside it states, in hex. These two help
    to prove it, and are no part of what the version is.
    """

    key: str
    path: str
    size: int
    etag: str
    version_id: str = ""
    checksum: str = ""
    checksum_type: str = ""
    part_sizes: tuple[int, ...] = ()
    sha256: str = ""
    part_ends: tuple[int, ...] = field(init=False, repr=False, compare=False)  # each range looks into it

    def __post_init__(self) -> None:
        object.__setattr__(self, "part_ends", tuple(accumulate(self.part_sizes)))


@dataclass(frozen=True, kw_only=True)  # no slots: its digest, of up to 10,000 objects, is made once and kept
class Manifest:
    """One version of one model: all its objects, in key order."""

    uri: ModelUri
    objects: tuple[ObjectEntry, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all objects: known, and budgeted, before any of them is fetched."""
        return sum(o.size for o in self.objects)

    @cached_property
    def digest(self) -> Digest:
        """The version's name: SHA-256 over URI, keys, sizes, ETags, version ids and checksums."""
        rows = [[o.key, o.size, o.etag, o.version_id, o.checksum, o.checksum_type] for o in self.objects]
        text = json.dumps({"objects": rows, "uri": str(self.uri)}, sort_keys=True, separators=(",", ":"))
        return Digest("sha256:" + hashlib.sha256(text.encode()).hexdigest())


def choose(uri: ModelUri, listed: Iterable[Listed]) -> tuple[tuple[Listed, str], ...]:
    """Pair the objects that `uri` names with their paths, in key order; directory markers and filtered ones left out.

    Raises:
        Permanent: nothing is left, there are too many, or a key cannot be a file (it is named).
    """
    found = []
    for one in sorted(listed, key=lambda o: o.key):
        if not one.etag.isascii() or not one.etag.isprintable():
            raise Permanent(f"{_name(one.key)} has an ETag that no request could name: {cut(ascii(one.etag), 60)}")
        if not one.key.startswith(uri.key):
            raise Permanent(f"{_name(one.key)} was listed under {cut(uri, 200)}, where it does not lie")
        relative = one.key[len(uri.key) :] if uri.is_prefix else one.key.rpartition("/")[2]
        if relative.endswith("/") or not relative:
            if one.size:
                raise Permanent(f"{_name(one.key)} ends in '/' but has bytes: it cannot be a file")
            continue
        if uri.wants(relative):
            found.append((one, safe_path(one.key, relative)))
    if not found:
        raise Permanent(f"nothing under {cut(uri, 200)}")
    if len(found) > MAX_OBJECTS:
        raise Permanent(f"{cut(uri, 200)} names more than {MAX_OBJECTS} objects: narrow it with include= or exclude=")
    _refuse_clashes(found)
    for one, _ in found:
        if not 0 <= one.size <= MAX_OBJECT_BYTES:
            raise Permanent(f"{_name(one.key)} has the impossible size {one.size}")
    return tuple(found)


def safe_path(key: str, relative: str) -> str:
    """Return `relative` if it can only be a plain file below any directory it is put in.

    Raises:
        Permanent: naming the key and what is wrong with it.
    """
    parts = relative.split("/")
    if any(p in ("", ".", "..") for p in parts):
        raise Permanent(f"{_name(key)} has an empty, '.' or '..' path part: it cannot be a file of the model")
    if any(unicodedata.category(c) in _FORBIDDEN for c in relative):
        raise Permanent(f"{_name(key)} has control characters: it cannot be a file of the model")
    if any(len(p.encode()) > MAX_NAME_BYTES for p in parts) or len(relative.encode()) > MAX_PATH_BYTES:
        raise Permanent(f"{_name(key)} is too long: {MAX_NAME_BYTES} bytes a part, {MAX_PATH_BYTES} in all")
    return relative


def _refuse_clashes(found: Iterable[tuple[Listed, str]]) -> None:
    files: dict[str, str] = {}
    for one, path in found:
        plain = unicodedata.normalize("NFC", path)
        if plain in files:
            raise Permanent(f"{_name(one.key)} and {_name(files[plain])} would be the same file")
        files[plain] = one.key
    for plain, key in files.items():
        parts = plain.split("/")
        for n in range(1, len(parts)):
            above = "/".join(parts[:n])
            if above in files:
                raise Permanent(f"{_name(files[above])} would be a file and, for {_name(key)}, a directory")


def _name(key: str) -> str:
    return f"key {cut(ascii(key), 200)}"


def manifest_to_json(manifest: Manifest) -> dict[str, object]:
    """Return the manifest as JSON values; `manifest_from_json` reads them."""
    return {
        "uri": str(manifest.uri),
        "objects": [
            {
                "key": o.key,
                "path": o.path,
                "size": o.size,
                "etag": o.etag,
                "versionId": o.version_id,
                "checksum": o.checksum,
                "checksumType": o.checksum_type,
            }
            | ({"partSizes": list(o.part_sizes)} if o.part_sizes else {})
            | ({"sha256": o.sha256} if o.sha256 else {})
            for o in manifest.objects
        ],
    }


def manifest_from_json(value: object) -> Manifest:
    """Read a manifest back; paths are checked again, since the disk may have been written by others.

    Raises:
        Invalid: it is no manifest.
        Permanent: a path in it is unsafe.
    """
    try:
        uri, objects = _parse(value)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise Invalid(f"not a manifest: {cut(error, 100)}") from error
    expected = choose(uri, [Listed(key=o.key, size=o.size, etag=o.etag) for o in objects])
    if [(o.key, o.path) for o in objects] != [(one.key, path) for one, path in expected]:
        raise Invalid("not a manifest: its paths do not follow from its keys")
    return Manifest(uri=uri, objects=objects)


def _parse(value: Any) -> tuple[ModelUri, tuple[ObjectEntry, ...]]:
    objects = tuple(_entry(each) for each in value["objects"])
    return parse_model_uri(value["uri"]), objects


def _entry(value: Mapping[str, object]) -> ObjectEntry:
    size = value["size"]
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError("a size is no number")
    text = {}
    for name in ("key", "path", "etag", "versionId", "checksum", "checksumType"):
        found = value[name]
        if not isinstance(found, str):
            raise TypeError(f"{name} is no text")
        text[name] = found
    sizes, sha256 = value.get("partSizes", []), value.get("sha256", "")
    if not isinstance(sha256, str):
        raise TypeError("a SHA-256 is no text")
    if not isinstance(sizes, list) or not all(isinstance(s, int) and s > 0 for s in sizes):
        raise TypeError("a part size is no number")
    if sizes and sum(sizes) != size:
        raise ValueError("the parts are not the object")
    return ObjectEntry(
        key=text["key"],
        path=text["path"],
        size=size,
        etag=text["etag"],
        version_id=text["versionId"],
        checksum=text["checksum"],
        checksum_type=text["checksumType"],
        part_sizes=tuple(sizes),
        sha256=sha256,
    )
