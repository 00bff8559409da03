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
from agent.images.layout import LIMIT_BYTES, Manifest, chain_ids, parse_document, parse_manifest, pick_manifest
from agent.images.runtime import ImageStore

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


def record_name(ref: ImageRef) -> str:
    """Return the name containerd records the reference under: the tag goes where there is a digest (as in the CRI)."""
    tail = f"@{ref.digest}" if ref.digest else f":{ref.tag}"
    return f"{ref.host}/{ref.repository}{tail}"


class Prover:
    """Proves images against one snapshotter. Remembers the parts of the last images it took apart."""

    def __init__(self, store: ImageStore, snapshotter: str, architecture: str) -> None:
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
        committed = await self._store.committed(self._snapshotter) if records else frozenset[str]()
        return {want.ref: await self._prove(want, records.get(record_name(want.ref), ""), committed) for want in wants}

    async def manifest(self, digest: str) -> Manifest | None:
        """Return the manifest behind an image digest, None where the content is not here (yet).

        Raises:
            Transient: containerd is away.
            Permanent: the documents are malformed.
        """
        found = await self._manifest(digest)
        return found[1] if found else None

    async def _prove(self, want: ImageWant, target: str, committed: frozenset[str]) -> Proof:
        if not target:
            return Proof(reason="containerd has no record of it")
        try:
            parts = await self._take_apart(target)
        except Permanent as error:
            return Proof(level=ImageLevel.PRESENT, digest=target, reason=str(error))
        if parts is None:
            return Proof(level=ImageLevel.PRESENT, digest=target, reason="its manifest or config is not on this node")
        return self._judge(want, target, parts, committed)

    def _judge(self, want: ImageWant, target: str, parts: Parts, committed: frozenset[str]) -> Proof:
        size_bytes, image_id = parts.manifest.size_bytes, parts.manifest.config
        missing = sum(layer not in committed for layer in parts.chain)
        if missing:
            reason = f"{missing} of {len(parts.chain)} layers are not unpacked in {self._snapshotter}"
            return Proof(
                level=ImageLevel.PRESENT, digest=target, image_id=image_id, size_bytes=size_bytes, reason=reason
            )
        if want.digest not in ("", target, parts.manifest_digest):
            reason = f"the tag points to {target} here, the planner resolved {want.digest}"
            return Proof(level=ImageLevel.PRESENT, digest=target, size_bytes=size_bytes, reason=reason, moved=True)
        return Proof(
            level=ImageLevel.UNPACKED,
            digest=want.digest or target,
            image_id=image_id,
            size_bytes=size_bytes,
            reason=f"all {len(parts.chain)} layers are unpacked in {self._snapshotter}",
        )

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
