"""Which images are in a lazy format, and which layers a remote snapshotter really serves: each by its own mount, asked now.

Sources: stargz-snapshotter docs (eStargz, zstd:chunked; the state directory of a layer), SOCI, Nydus and overlaybd image formats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

STATES = (".stargz-snapshotter", ".soci-snapshotter")  # in the root of each layer's mount, seen by no container
_SOURCES = ("stargz", "soci")  # of their mounts; those of buckets and the like are none of ours, and may hang
_STATE_BYTES = 64 << 10
_ESCAPED = re.compile(r"\\(0[0-7]{2}|1[0-7]{2})")  # space, tab, newline and backslash in a mount's place
_ANNOTATIONS = {
    "containerd.io/snapshot/stargz/toc.digest": "eStargz",
    "io.containers.zstd-chunked.manifest-checksum": "zstd:chunked",
    "io.github.containers.zstd-chunked.manifest-checksum": "zstd:chunked",
    "containerd.io/snapshot/nydus-blob": "Nydus",
    "containerd.io/snapshot/nydus-bootstrap": "Nydus",
    "containerd.io/snapshot/overlaybd/blob-digest": "overlaybd",
    "com.amazon.soci.index-digest": "SOCI",  # on the manifest
}
# Which snapshotter serves which format lazily, by the name that its documentation gives it.
SERVERS = {"eStargz": "stargz", "zstd:chunked": "stargz", "Nydus": "nydus", "overlaybd": "overlaybd", "SOCI": "soci"}
LOCAL_SNAPSHOTTERS = frozenset({"overlayfs", "native", "btrfs", "zfs", "devmapper", "blockfile", "erofs"})


def lazy_format(manifest: Mapping[str, object]) -> str:
    """Return the lazy format that a manifest's annotations tell, "" for none."""
    for holder in (manifest, *_layers(manifest)):
        for key in _annotations(holder):
            if key in _ANNOTATIONS:
                return _ANNOTATIONS[key]
    return ""


def _layers(manifest: Mapping[str, object]) -> list[object]:
    layers = manifest.get("layers")
    return layers if isinstance(layers, list) else []


def _annotations(holder: object) -> Mapping[str, object]:
    annotations = holder.get("annotations") if isinstance(holder, Mapping) else None
    return annotations if isinstance(annotations, Mapping) else {}


def whole_layers(manifest: Mapping[str, object]) -> int:
    """Return how many layers of an image in a lazy format carry no annotation of one: those are fetched whole.

    SOCI indexes all layers from the manifest, and a nydus bootstrap is a layer like its blobs.
    """
    if set(_annotations(manifest)) & set(_ANNOTATIONS):
        return 0
    return sum(not set(_annotations(layer)) & set(_ANNOTATIONS) for layer in _layers(manifest))


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One layer as a mount serves it: where its files are as seen from here, and which share of its bytes is here."""

    files: Path
    share: float


def served_layers(process: Path) -> Mapping[str, Served]:
    """Return the layers, by digest, that FUSE mounts of remote snapshotters serve.

    A mount whose daemon has died does not answer, and its layer is left out. Reads those mounts: not for the event loop, and a
    daemon that hangs hangs it.

    Args:
        process: the directory in /proc of a process that sees the mounts, such as containerd's.
    """
    served: dict[str, Served] = {}
    for mount in _fuse_mounts(process):
        files = process / "root" / mount.lstrip("/")
        for state in STATES:
            served |= {digest: Served(files=files, share=share) for digest, share in _states(files / state)}
    return served


def _fuse_mounts(process: Path) -> Iterator[str]:
    try:
        lines = (process / "mountinfo").read_text(errors="surrogateescape").split("\n")
    except OSError:
        return
    for line in lines:
        left, _, right = line.partition(" - ")
        kind, source = [*right.split(" "), "", ""][:2]
        place = left.split(" ")[4:5]
        if kind.startswith("fuse") and source in _SOURCES and place:
            yield _ESCAPED.sub(lambda found: chr(int(found[1], 8)), place[0])


def _states(directory: Path) -> Iterator[tuple[str, float]]:
    try:
        files = [file for file in directory.iterdir() if file.suffix == ".json"]
    except OSError:
        return
    for file in files:
        try:
            with file.open("rb") as opened:
                told = json.loads(opened.read(_STATE_BYTES))
            yield str(told["digest"]), float(told.get("fetchedPercent", 0.0)) / 100
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
            continue
