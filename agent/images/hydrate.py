"""Hydrates lazy images of open windows, one at a time, and gives way while a pod waits for an image."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import structlog

from agent.core.assignment import ImageWant
from agent.core.clock import Clock
from agent.core.errors import Permanent, Transient, cut
from agent.core.inventory import ImageLevel
from agent.core.refs import ImageRef
from agent.core.units import format_size
from agent.images.aside import aside
from agent.images.board import Board
from agent.images.prove import Prover
from agent.images.reading import read_layers
from agent.images.runtime import RemoteLayers

log = structlog.get_logger(__name__)

_AGAIN_SECONDS = 60.0  # after a failure, and for images that were read but are not whole


class Hydrator:
    """Reads the layers of one image after another. All methods belong to the event loop's thread."""

    def __init__(self, layers: RemoteLayers, prover: Prover, board: Board, clock: Clock) -> None:
        self._layers = layers
        self._prover = prover
        self._board = board
        self._clock = clock
        self._running: asyncio.Task[None] | None = None
        self._image: ImageRef | None = None
        self._not_before: dict[ImageRef, float] = {}

    def reconcile(self, tasks: asyncio.TaskGroup, wants: Sequence[ImageWant], *, yields: bool) -> None:
        """Start the first image that is lazy and not yet whole; end what is no longer wanted, or all while a pod waits."""
        if self._running and (yields or self._image not in {want.ref for want in wants}):
            self._running.cancel()
        if self._running or yields:
            return
        now = self._clock.monotonic()
        for want in wants:
            proof = self._board.proof(want.ref)
            if proof and proof.level is ImageLevel.LAZY and self._not_before.get(want.ref, 0.0) <= now:
                self._image = want.ref
                self._running = tasks.create_task(self._run(want, proof.digest), name=f"hydrate {want.ref}")
                return

    async def _run(self, want: ImageWant, digest: str) -> None:
        began, stop = self._clock.monotonic(), threading.Event()
        try:
            layers, first = await self._places(digest)
            log.info("image hydration started", image=str(want.ref), layers=len(layers))
            read = await aside(lambda: read_layers(layers, first, stop.is_set), f"hydrate {want.ref}")
            seconds = self._clock.monotonic() - began
            log.info("image hydrated", image=str(want.ref), read=format_size(read), seconds=round(seconds, 2))
        except (OSError, Transient, Permanent) as error:
            log.warning("image hydration failed", image=str(want.ref), error=cut(error))
        finally:
            stop.set()
            self._not_before[want.ref] = self._clock.monotonic() + _AGAIN_SECONDS
            self._running = self._image = None

    async def _places(self, digest: str) -> tuple[list[Path], Sequence[str]]:
        """Return where the layers' files are, the top one first, and the files that the image starts with."""
        manifest = await self._prover.manifest(digest)
        served = await self._layers.served()
        if manifest is None or not served:
            raise Transient("its layers are not served at the moment")
        places = [served[b.digest].files for b in reversed(manifest.layers) if b.digest in served]
        return places, await self._prover.starts_with(manifest)
