"""How many bytes of a pull are here: asked of containerd, which only a running pull does."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from agent.core.errors import Permanent
from agent.images.layout import Manifest
from agent.images.prove import Prover
from agent.images.runtime import Puller

_SMOOTHING = 0.3  # the share of the newest measurement in the rate: some 10 s of memory at a look every 2 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """Compressed bytes of an image: fetched, and in all (0 until its manifest is here); `way` is how they are fetched.

    `interrupted`: the pull has ended, and the next one goes on from here.
    """

    done: int = 0
    total: int = 0
    rate_bytes_per_second: float = 0.0
    way: str = ""
    interrupted: bool = False


class Progress:
    """Follows one pull. Layers whose download is over are remembered, so each is looked up until then only."""

    def __init__(self, puller: Puller, prover: Prover, digest: str) -> None:
        self._puller = puller
        self._prover = prover
        self._digest = digest
        self._manifest: Manifest | None = None
        self._whole: set[str] = set()
        self._bytes = Bytes()
        self._looked_at = 0.0
        self._seen_any = False
        self.activity = 0  # grows while anything is fetched
        self.fetches = True  # False once all bytes are here and only unpacking is left

    async def look(self, monotonic: float) -> Bytes:
        """Return the bytes now; none where the digest is unknown or its manifest not here yet.

        Raises:
            Transient: containerd is away.
        """
        try:
            if self._manifest is None and self._digest:
                self._manifest = await self._prover.manifest(self._digest)
        except Permanent:
            return Bytes()  # the proof after the pull will say what is wrong with it
        ingests = await self._puller.ingests()
        self._seen_any = self._seen_any or bool(ingests)
        if self._manifest is None:
            self.activity = sum(ingests.values())
            self.fetches = bool(ingests) or not self._seen_any
            return Bytes()
        await self._find_whole(self._manifest, ingests)
        done = self._count(self._manifest, ingests)
        total = self._manifest.size_bytes
        rate = self._rate(done, monotonic)
        self.activity, self.fetches = done, done < total
        self._bytes = Bytes(done=done, total=total, rate_bytes_per_second=rate)
        self._looked_at = monotonic
        return self._bytes

    def _rate(self, done: int, monotonic: float) -> float:
        """Return the smoothed rate; what an earlier pull had fetched counts for none."""
        before, seconds = self._bytes, monotonic - self._looked_at
        if not before.total or seconds <= 0:
            return 0.0
        now = max(0, done - before.done) / seconds
        if not before.rate_bytes_per_second:
            return now
        return _SMOOTHING * now + (1 - _SMOOTHING) * before.rate_bytes_per_second

    def _count(self, manifest: Manifest, ingests: Mapping[str, int]) -> int:
        done = 0
        for layer in manifest.layers:
            whole = layer.digest in self._whole
            done += layer.size_bytes if whole else min(ingests.get(layer.digest, 0), layer.size_bytes)
        return done

    async def _find_whole(self, manifest: Manifest, ingests: Mapping[str, int]) -> None:
        """Note the layers that are here, in the content store or, where it discards what was unpacked, as snapshots."""
        lacking = {layer.digest for layer in manifest.layers} - self._whole - ingests.keys()
        here = {digest for digest in sorted(lacking) if await self._puller.has(digest)}
        if lacking - here:
            with contextlib.suppress(Permanent):
                here |= lacking & await self._prover.unpacked(self._digest)
        self._whole |= here
