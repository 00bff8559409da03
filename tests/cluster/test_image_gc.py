"""The real kubelet's image garbage collection against pins: it takes none in a window, and does afterwards."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

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
from tests.bed import Bed, needs
from tests.bed.bed import PROJECT
from tests.bed.layers import Layer
from tests.bed.registry import Registry
from tests.bed.settings import REGISTRY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

KEPT, TAKEN = f"{REGISTRY}/kept:1", f"{REGISTRY}/taken:1"


class Observer:
    """Counts what was lost and pulled."""

    def __init__(self) -> None:
        self.lost_images = 0
        self.pulls: list[str] = []

    def pulled(self, ref: ImageRef, seconds: float, size_bytes: int, outcome: str) -> None:
        self.pulls.append(outcome)

    def lost(self, ref: ImageRef) -> None:
        self.lost_images += 1


class World:
    """An images room on a node whose kubelet collects what it may every ten seconds."""

    def __init__(self, socket: Path) -> None:
        self.client = ContainerdClient(str(socket))
        self.want = ImageWant(ref=parse_image_ref(KEPT))
        self.plan: Latest[NodePlan] = Latest(NodePlan())
        self.images: Latest[Mapping[ImageRef, ImageState]] = Latest({})
        self.observer = Observer()
        self.service = ImageService(
            self.client,
            plan=self.plan,
            images=self.images,
            settings=Settings(),
            clock=SystemClock(),
            heartbeat=Heartbeat(),
            observer=self.observer,
        )

    def open_window(self) -> None:
        pull = PullStep(want=self.want, runtime_handler="", endpoints=(), due=None, urgent=False, reason="a test")
        pin = PinStep(want=self.want, until=datetime.now(UTC) + timedelta(hours=1))
        self.plan.set(NodePlan(images=(self.want,), pulls=(pull,), pins=(pin,)))

    async def until(self, holds: Callable[[ImageState], bool]) -> None:
        async with asyncio.timeout(60):
            async for states in self.images.follow():
                if self.want.ref in states and holds(states[self.want.ref]):
                    return

    async def gone(self, name: str) -> None:
        async with asyncio.timeout(90):
            while await self.client.present(name):  # noqa: ASYNC110 (the kubelet tells nobody)
                await asyncio.sleep(0.5)


def on_hungry_node(directory: Path, story: Callable[[World], object]) -> None:
    with Bed(PROJECT / ".cache" / f"bed-gc-{os.getpid()}", nodes=1, containerd=[directory], hungry=True) as bed:
        registry = Registry(bed.registry_address)
        for name in ("kept", "taken"):
            registry.make_image(name, "1", [Layer(size_bytes=100_000, seed=name)])
        pid = bed.node_pids("node-1", "containerd")[0]

        async def run() -> None:
            world = World(Path(f"/proc/{pid}/root/run/containerd/containerd.sock"))
            task = asyncio.create_task(world.service.run())
            try:
                await story(world)  # type: ignore[misc]
            finally:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await world.client.close()

        asyncio.run(run())


@pytest.mark.parametrize("suite", ["trixie", "sid"])
def test_garbage_collection_takes_no_pinned_image_in_its_window_and_does_afterwards(suite: str) -> None:
    if (reason := needs.why_not("matrix")) or (directory := needs.newer(suite, "containerd")) is None:
        pytest.skip(f"no cluster: {reason}")

    async def story(world: World) -> None:
        world.open_window()
        await world.until(lambda state: state.pinned)
        for _ in range(3):  # three collections at least
            await world.client.pull(TAKEN, "")
            await world.gone(TAKEN)
            assert await world.client.present(KEPT)
        assert (world.observer.lost_images, world.observer.pulls) == (0, ["ok"])
        world.plan.set(NodePlan(pins=()))
        await world.gone(KEPT)

    on_hungry_node(directory, story)


def test_where_pins_have_no_effect_it_is_said_and_what_was_taken_is_warmed_again_and_reported() -> None:
    if reason := needs.why_not("cluster"):
        pytest.skip(f"no cluster: {reason}")

    async def story(world: World) -> None:
        world.open_window()
        await world.until(lambda state: "its pin has no effect" in state.reason)
        async with asyncio.timeout(90):
            while world.observer.pulls.count("ok") < 2:  # noqa: ASYNC110 (as above)
                await asyncio.sleep(0.5)
        assert world.observer.lost_images >= 1

    on_hungry_node(Path("/usr/bin"), story)
