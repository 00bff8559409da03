"""The images room of an agent, run in this process on a node of the bed: what it does is seen without a window, planner or pod."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

from agent.config import Settings
from agent.core.assignment import ImageWant
from agent.core.clock import SystemClock
from agent.core.heartbeat import Heartbeat
from agent.core.inventory import ImageState
from agent.core.latest import Latest
from agent.core.refs import ImageRef, parse_image_ref
from agent.images.client import ContainerdClient
from agent.images.service import ImageService
from agent.plan.decision import NodePlan, PinStep, PullStep
from tests.bed import Bed


class Counted:
    """Counts what was lost and pulled."""

    def __init__(self) -> None:
        self.lost_images = 0
        self.pulls: list[str] = []

    def pulled(self, ref: ImageRef, seconds: float, size_bytes: int, outcome: str) -> None:
        self.pulls.append(outcome)

    def lost(self, ref: ImageRef) -> None:
        self.lost_images += 1


class ImageRoom:
    """The room, for one image at a time. Made and used inside one event loop."""

    def __init__(self, bed: Bed, node: str, settings: Settings) -> None:
        pid = bed.node_pids(node, "containerd")[0]
        self.client = ContainerdClient(f"/proc/{pid}/root/run/containerd/containerd.sock", settings.snapshotter)
        self.counted = Counted()
        self.plan: Latest[NodePlan] = Latest(NodePlan())
        self.images: Latest[Mapping[ImageRef, ImageState]] = Latest({})
        self.service = ImageService(
            self.client,
            plan=self.plan,
            images=self.images,
            settings=settings,
            clock=SystemClock(),
            heartbeat=Heartbeat(),
            observer=self.counted,
        )

    def want(self, name: str, *, window: bool) -> ImageRef:
        """Let the plan name this image, with `window` in an open window: pinned, and hydrated where it is lazy."""
        want = ImageWant(ref=parse_image_ref(name))
        pull = PullStep(want=want, runtime_handler="", endpoints=(), due=None, urgent=False, reason="asked for")
        pins = (PinStep(want=want, until=datetime.now(UTC) + timedelta(hours=1)),) if window else ()
        self.plan.set(NodePlan(images=(want,), pulls=(pull,), pins=pins))
        return want.ref

    def leave(self) -> None:
        """Let the window end."""
        self.plan.set(NodePlan(pins=()))

    async def until(self, ref: ImageRef, holds: Callable[[ImageState], bool], seconds: float = 60) -> ImageState:
        """Return the first state of an image for which `holds`."""
        async with asyncio.timeout(seconds):
            async for states in self.images.follow():
                if ref in states and holds(states[ref]):
                    return states[ref]
        raise AssertionError("unreachable: states never end")


@asynccontextmanager
async def image_room(bed: Bed, node: str, settings: Settings | None = None) -> AsyncIterator[ImageRoom]:
    """Run the room while the context lasts."""
    room = ImageRoom(bed, node, settings or Settings())
    task = asyncio.create_task(room.service.run(), name="images room")
    try:
        yield room
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await room.client.close()
