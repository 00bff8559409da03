"""Proof that images are unpacked: every layer's chain id is a committed snapshot of the snapshotter the runtime uses.

"Listed" is not "unpacked in the right snapshotter" (CRI's ImageStatus says present for either), so nothing here believes
a record alone. A cycle costs containerd one list of records and one of snapshots, however many images and layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.core.assignment import ImageWant
from agent.core.errors import Permanent
from agent.core.inventory import ImageLevel
from agent.core.refs import ImageRef
from agent.images.layout import (
    LIMIT_BYTES,
    Manifest,
    chain_ids,
    entry_files,
    parse_document,
    parse_manifest,
    pick_manifest,
)
from agent.images.lazy import LOCAL_SNAPSHOTTERS, Served
from agent.images.runtime import ProofStore

_WHOLE = 0.9999  # of the bytes: shares are told in floating point
_REMEMBERED = 256  # images whose parts are kept; some 30 kB each at 20 layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was found about one image. `digest` is what the reference points to here, "" while absent.

    `error` says why nothing could be found out.
    """

    level: ImageLevel = ImageLevel.ABSENT
    digest: str = ""
    image_id: str = ""  # the digest of its config, as containerd and the kubelet name images
    size_bytes: int = 0
    reason: str = ""
    error: str = ""
    moved: bool = False  # unpacked, but not the digest that is wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """An image taken apart: immutable, since `digest` covers all of it."""

    manifest_digest: str
    manifest: Manifest
    chain: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What a snapshotter has now: the chain ids of what is committed and, of these, of what it says to be remote.

    `served` are the layers that mounts serve, None where mounts cannot be seen.
    """

    committed: frozenset[str] = frozenset()
    remote: frozenset[str] = frozenset()
    served: Mapping[str, Served] | None = None


def record_name(ref: ImageRef) -> str:
    """Return the name containerd records the reference under: the tag goes where there is a digest (as in the CRI)."""
    tail = f"@{ref.digest}" if ref.digest else f":{ref.tag}"
    return f"{ref.host}/{ref.repository}{tail}"


class Prover:
    """Proves images against one snapshotter. Remembers the parts of the last images it took apart."""

    def __init__(self, store: ProofStore, snapshotter: str, architecture: str) -> None:
        self._store = store
        self._snapshotter = snapshotter
        self._architecture = architecture
        self._parts: dict[str, Parts] = {}

    async def prove(self, wants: Iterable[ImageWant]) -> Mapping[ImageRef, Proof]:
        """Look at all of them now.

        Raises:
            Transient: containerd is away.
            Permanent: containerd does not know the snapshotter, or refuses to list.
        """
        wants = tuple(wants)
        if not wants:
            return {}
        records = await self._store.records([record_name(want.ref) for want in wants])
        layers = await self._layers() if records else Layers()
        return {want.ref: await self._prove(want, records.get(record_name(want.ref), ""), layers) for want in wants}

    async def _layers(self) -> Layers:
        """Ask the snapshotter what it has; one that fetches by itself also what it really serves."""
        committed = await self._store.committed(self._snapshotter)
        if self._snapshotter in LOCAL_SNAPSHOTTERS or not committed:
            return Layers(committed=committed)
        remote = await self._store.remote(self._snapshotter)
        served = await self._store.served() if remote else {}
        return Layers(committed=committed, remote=remote, served=served)

    async def manifest(self, digest: str) -> Manifest | None:
        """Return the manifest behind an image digest, None where the content is not here (yet).

        Raises:
            Transient: containerd is away.
            Permanent: the documents are malformed.
        """
        found = await self._manifest(digest)
        return found[1] if found else None

    async def unpacked(self, digest: str) -> frozenset[str]:
        """Return the layers of an image, by blob, that are unpacked: those need not be fetched. None before its config is here.

        Raises:
            Transient: containerd is away.
            Permanent: the documents are malformed, or containerd refuses to list.
        """
        parts = await self._take_apart(digest)
        committed = await self._store.committed(self._snapshotter) if parts else frozenset()
        layers = zip(parts.manifest.layers, parts.chain, strict=True) if parts else ()
        return frozenset(blob.digest for blob, chain in layers if chain in committed)

    async def starts_with(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the files that a container of an image starts with, as far as its config names them by their path.

        Raises:
            Transient: containerd is away.
            Permanent: the config is malformed.
        """
        content = await self._store.read(manifest.config, LIMIT_BYTES)
        return entry_files(parse_document(content, manifest.config)) if content is not None else ()

    async def _prove(self, want: ImageWant, target: str, layers: Layers) -> Proof:
        if not target:
            return Proof(reason="containerd has no record of it")
        try:
            parts = await self._take_apart(target)
        except Permanent as error:
            return Proof(level=ImageLevel.PRESENT, digest=target, reason=str(error))
        if parts is None:
            return Proof(level=ImageLevel.PRESENT, digest=target, reason="its manifest or config is not on this node")
        return self._judge(want, target, parts, layers)

    def _judge(self, want: ImageWant, target: str, parts: Parts, layers: Layers) -> Proof:
        size_bytes, image_id = parts.manifest.size_bytes, parts.manifest.config
        missing = sum(layer not in layers.committed for layer in parts.chain)
        if missing:
            reason = f"{missing} of {len(parts.chain)} layers are not unpacked in {self._snapshotter}"
            return Proof(
                level=ImageLevel.PRESENT, digest=target, image_id=image_id, size_bytes=size_bytes, reason=reason
            )
        if want.digest not in ("", target, parts.manifest_digest):
            reason = f"the tag points to {target} here, the planner resolved {want.digest}"
            return Proof(level=ImageLevel.PRESENT, digest=target, size_bytes=size_bytes, reason=reason, moved=True)
        level, reason = self._warmth(parts, layers)
        return Proof(level=level, digest=want.digest or target, image_id=image_id, size_bytes=size_bytes, reason=reason)

    def _warmth(self, parts: Parts, layers: Layers) -> tuple[ImageLevel, str]:
        """Tell the level of an image all of whose layers are committed, and why it is that."""
        count, kind = len(parts.chain), parts.manifest.lazy_format
        unpacked = f"all {count} layers are unpacked in {self._snapshotter}"
        remote = sum(layer in layers.remote for layer in parts.chain)
        if remote == 0 and (not kind or self._snapshotter in LOCAL_SNAPSHOTTERS):
            return ImageLevel.UNPACKED, unpacked
        if remote < count:
            fetched = "all" if not remote else f"{count - remote} of {count}"
            what = f"{fetched} layers of this {kind or 'plain'} image were fetched whole by {self._snapshotter}"
            return ImageLevel.UNPACKED, f"unpacked, not lazy: {what} (`prewarm doctor images` says why)"
        if layers.served is None:
            return ImageLevel.UNPACKED, f"{unpacked}, it says lazily: its mounts cannot be seen from here to prove it"
        dead = sum(blob.digest not in layers.served for blob in parts.manifest.layers)
        if dead:
            return ImageLevel.PRESENT, f"the mounts of {dead} of {count} lazy layers do not answer"
        share = self._fetched(parts.manifest, layers.served)
        if share >= _WHOLE:
            return (
                ImageLevel.HYDRATED,
                f"all {count} layers are served lazily by {self._snapshotter}, all of it is here",
            )
        return (
            ImageLevel.LAZY,
            f"all {count} layers are served lazily by {self._snapshotter}, {share:.0%} of it is here",
        )

    def _fetched(self, manifest: Manifest, served: Mapping[str, Served]) -> float:
        """Return the share of an image's bytes that are here."""
        size = sum(blob.size_bytes for blob in manifest.layers)
        return sum(blob.size_bytes * served[blob.digest].share for blob in manifest.layers) / size if size else 1.0

    async def _take_apart(self, target: str) -> Parts | None:
        known = self._parts.get(target)
        if known:
            return known
        found = await self._manifest(target)
        if found is None:
            return None
        digest, manifest = found
        config = await self._store.read(manifest.config, LIMIT_BYTES)
        if config is None:
            return None
        chain = chain_ids(parse_document(config, manifest.config), manifest.config)
        if len(chain) != len(manifest.layers):
            raise Permanent(f"image {target} has {len(manifest.layers)} layers, its config {len(chain)}")
        parts = Parts(manifest_digest=digest, manifest=manifest, chain=chain)
        self._parts[target] = parts
        if len(self._parts) > _REMEMBERED:
            del self._parts[next(iter(self._parts))]
        return parts

    async def _manifest(self, digest: str) -> tuple[str, Manifest] | None:
        content = await self._store.read(digest, LIMIT_BYTES)
        if content is None:
            return None
        document = parse_document(content, digest)
        picked = pick_manifest(document, digest, self._architecture)
        if picked is None:
            return digest, parse_manifest(document, digest)
        content = await self._store.read(picked, LIMIT_BYTES)
        return (picked, parse_manifest(parse_document(content, picked), picked)) if content is not None else None
