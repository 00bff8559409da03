"""What an image is made of: OCI and Docker indexes, manifests and configs, read with suspicion. Pure.

Sources: OCI image spec (image-index, manifest, config), Docker image manifest v2 schema 2.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass

from agent.core.errors import Invalid, Permanent
from agent.core.refs import Digest, parse_digest
from agent.images.lazy import lazy_format

LIMIT_BYTES = 4 << 20  # of an index, manifest or config: what registries accept for manifests
_MAX_LAYER_BYTES = 1 << 44  # and an image of many such layers still fits the 63 bits of a status
_MAX_LAYERS = 512  # overlayfs mounts at most 500, and containerd warns long before
# What containerd takes in the place of an architecture, the best first; and how it writes a variant that may be written otherwise
# (github.com/containerd/platforms, compare.go `platformVector` and database.go `normalizeArch`).
_ALSO = {"amd64": (("386", ""),), "arm64": tuple(("arm", variant) for variant in ("v8", "v7", "v6", "v5"))}
_VARIANTS = {("amd64", "v1"): "", ("arm64", "v8"): "", ("arm64", "8"): "", ("arm", ""): "v7"}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A blob that a manifest names; `size_bytes` is as stored in the registry."""

    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The manifest of one platform."""

    config: Digest
    layers: tuple[Blob, ...]
    lazy_format: str = ""  # "eStargz", …: what a remote snapshotter may serve without fetching it first

    @property
    def size_bytes(self) -> int:
        """Compressed bytes of all layers."""
        return sum(layer.size_bytes for layer in self.layers)


def this_architecture() -> str:
    """Return this machine's architecture as image indexes spell it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def parse_document(content: bytes, digest: str) -> Mapping[str, object]:
    """Parse a JSON document.

    Raises:
        Permanent: it is not a JSON object.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Permanent(f"image document {digest} is not JSON") from error
    if not isinstance(document, dict):
        raise Permanent(f"image document {digest} is not a JSON object")
    return document


def pick_manifest(document: Mapping[str, object], digest: str, architecture: str) -> Digest | None:
    """Return the manifest that containerd takes on linux/`architecture` if the document is an index, None if it is a manifest itself.

    Raises:
        Permanent: the index has none, or is malformed.
    """
    entries = document.get("manifests")
    if entries is None:
        return None
    wanted = ((architecture, ""), *_ALSO.get(architecture, ()))
    found = [(_platform(entry), entry) for entry in (entries if isinstance(entries, list) else ())]
    able = [(wanted.index(on), entry) for on, entry in found if on in wanted]
    if not able:
        raise Permanent(f"image index {digest} has no manifest for linux/{architecture}")
    return _digest(min(able, key=lambda each: each[0])[1], digest)


def _platform(entry: object) -> tuple[str, str]:
    """Return architecture and variant of an index entry as containerd writes them; nothing where it is not of linux."""
    on = entry.get("platform") if isinstance(entry, dict) else None
    if not isinstance(on, dict) or on.get("os") != "linux":
        return "", ""
    architecture, variant = str(on.get("architecture")), str(on.get("variant") or "")
    architecture = _ARCHITECTURES.get(architecture, architecture)
    return architecture, _VARIANTS.get((architecture, variant), variant)


def parse_manifest(document: Mapping[str, object], digest: str) -> Manifest:
    """Read a manifest.

    Raises:
        Permanent: it is malformed.
    """
    layers = document.get("layers")
    if not isinstance(layers, list) or len(layers) > _MAX_LAYERS:
        raise Permanent(f"image manifest {digest} has no list of at most {_MAX_LAYERS} layers")
    return Manifest(
        config=_digest(document.get("config"), digest),
        lazy_format=lazy_format(document),
        layers=tuple(Blob(digest=_digest(layer, digest), size_bytes=_size(layer, digest)) for layer in layers),
    )


def chain_ids(config: Mapping[str, object], digest: str) -> tuple[str, ...]:
    """Return the chain id of every layer, from the base up (OCI image spec, config, "Layer ChainID").

    Raises:
        Permanent: the config is malformed.
    """
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or not all(isinstance(d, str) for d in diff_ids):
        raise Permanent(f"image config {digest} names no layers")
    chain: list[str] = []
    for diff_id in diff_ids:
        joined = f"{chain[-1]} {diff_id}".encode() if chain else b""
        chain.append(f"sha256:{hashlib.sha256(joined).hexdigest()}" if chain else diff_id)
    return tuple(chain)


def entry_files(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the absolute paths among an image's entry point and command."""
    inner = config.get("config")
    words: list[object] = []
    for key in ("Entrypoint", "Cmd"):
        found = inner.get(key) if isinstance(inner, dict) else None
        words += found if isinstance(found, list) else []
    paths = (w for w in words if isinstance(w, str) and w.startswith("/") and w.isprintable())
    return tuple(path for path in paths if ".." not in path.split("/"))


def _digest(descriptor: object, inside: str) -> Digest:
    found = descriptor.get("digest") if isinstance(descriptor, dict) else None
    try:
        return parse_digest(str(found))
    except Invalid as error:
        raise Permanent(f"image document {inside}: {error}") from error


def _size(descriptor: object, inside: str) -> int:
    found = descriptor.get("size") if isinstance(descriptor, dict) else None
    if not isinstance(found, int) or not 0 <= found <= _MAX_LAYER_BYTES:
        raise Permanent(f"image document {inside} has a layer without a size, or of more than 16 TiB")
    return found
