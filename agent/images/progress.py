"""How many bytes of a pull are here: asked of the content store, which only a running pull does."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.errors import Permanent
from agent.images.layout import Manifest
from agent.images.prove import Prover
from agent.images.runtime import Puller


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """Compressed bytes of an image: fetched, and in all (0 until its manifest is here)."""

    done: int = 0
    total: int = 0


class Progress:
    """Follows one pull. Layers whose download is over are remembered, so each is looked up until then only."""

    def __init__(self, puller: Puller, prover: Prover, digest: str) -> None:
        self._puller = puller
        self._prover = prover
        self._digest = digest
        self._manifest: Manifest | None = None
        self._whole: set[str] = set()

    async def look(self) -> Bytes:
        """Return the bytes now; none where the digest is unknown or its manifest not here yet.

        Raises:
            Transient: containerd is away.
        """
        try:
            if self._manifest is None and self._digest:
                self._manifest = await self._prover.manifest(self._digest)
        except Permanent:
            return Bytes()  # the proof after the pull will say what is wrong with it
        return await self._count(self._manifest) if self._manifest else Bytes()

    async def _count(self, manifest: Manifest) -> Bytes:
        ingests = await self._puller.ingests()
        done = 0
        for layer in manifest.layers:
            if layer.digest not in self._whole and layer.digest not in ingests and await self._puller.has(layer.digest):
                self._whole.add(layer.digest)
            whole = layer.digest in self._whole
            done += layer.size_bytes if whole else min(ingests.get(layer.digest, 0), layer.size_bytes)
        return Bytes(done=done, total=manifest.size_bytes)
