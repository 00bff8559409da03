"""The real kubelet's image garbage collection against pins, on three versions of containerd at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed import Bed, needs
from tests.bed.bed import PROJECT
from tests.bed.layers import Layer
from tests.bed.registry import Registry
from tests.bed.settings import REGISTRY
from tests.cluster.imageroom import ImageRoom, image_room

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

KEPT, TAKEN = f"{REGISTRY}/kept:1", f"{REGISTRY}/taken:1"
COLLECTED_SECONDS = 90.0  # the kubelet looks every 10 s, and takes what it has seen before


@pytest.fixture
def hungry() -> Iterator[Bed]:
    """Nodes with containerd 1.6.20, 1.7.24 and 2.1.9, whose kubelets collect what they may every ten seconds."""
    if reason := needs.why_not("matrix"):
        pytest.skip(f"no cluster: {reason}")
    newer = [directory for suite in ("trixie", "sid") if (directory := needs.newer(suite, "containerd"))]
    work = PROJECT / ".cache" / f"bed-gc-{os.getpid()}"
    with Bed(work, nodes=3, containerd=[Path("/usr/bin"), *newer], hungry=True) as bed:
        registry = Registry(bed.registry_address)
        for name in ("kept", "taken"):
            registry.make_image(name, "1", [Layer(size_bytes=100_000, seed=name)])
        yield bed


def test_garbage_collection_takes_no_pinned_image_in_its_window_and_does_afterwards(hungry: Bed) -> None:
    async def stories() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pins_have_no_effect(hungry, "node-1"), name="containerd 1.6.20")
            tasks.create_task(pins_hold(hungry, "node-2"), name="containerd 1.7.24")
            tasks.create_task(pins_hold(hungry, "node-3"), name="containerd 2.1.9")

    asyncio.run(stories())


async def pins_hold(bed: Bed, node: str) -> None:
    async with image_room(bed, node) as room:
        ref = room.want(KEPT, window=True)
        await room.until(ref, lambda state: state.pinned)
        for _ in range(2):  # two collections at least
            await room.client.pull(TAKEN, "")
            await gone(room, TAKEN)
            assert await room.client.present(KEPT)
        assert (room.counted.lost_images, room.counted.pulls) == (0, ["ok"])
        room.leave()
        await gone(room, KEPT)


async def pins_have_no_effect(bed: Bed, node: str) -> None:
    """It is said, and what was taken is warmed again and reported."""
    async with image_room(bed, node) as room:
        ref = room.want(KEPT, window=True)
        await room.until(ref, lambda state: "its pin has no effect" in state.reason)
        async with asyncio.timeout(COLLECTED_SECONDS):
            while room.counted.pulls.count("ok") < 2:  # noqa: ASYNC110 (counted, not told)
                await asyncio.sleep(0.5)
        assert room.counted.lost_images >= 1
        await room.until(ref, lambda state: state.level.warm)


async def gone(room: ImageRoom, name: str) -> None:
    async with asyncio.timeout(COLLECTED_SECONDS):
        while await room.client.present(name):  # noqa: ASYNC110 (the kubelet tells nobody)
            await asyncio.sleep(0.5)
