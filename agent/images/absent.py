"""The images room where the setting `containerd` is `none`: nothing is warmed, nothing is claimed, and that is proved."""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.clock import Clock
from agent.core.heartbeat import Heartbeat
from agent.core.inventory import ImageState
from agent.core.latest import Latest
from agent.core.refs import ImageRef

_BEAT_SECONDS = 15.0


class NoImageService:
    """Publishes no image."""

    name = "images"

    def __init__(self, *, images: Latest[Mapping[ImageRef, ImageState]], clock: Clock, heartbeat: Heartbeat) -> None:
        self._images = images
        self._clock = clock
        self._heartbeat = heartbeat
        heartbeat.expect(self.name)

    async def run(self) -> None:
        """Beat until cancelled."""
        self._images.set({})
        while True:
            self._heartbeat.beat(self.name, self._clock.monotonic())
            await self._clock.sleep(_BEAT_SECONDS)
