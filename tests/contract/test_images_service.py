"""The images room on a real containerd: pulls what is planned, and withdraws within the budget."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from agent.config import Settings
from agent.core.assignment import ImageWant
from agent.core.clock import SystemClock
from agent.core.heartbeat import Heartbeat
from agent.core.inventory import ImageLevel, ImageState
from agent.core.latest import Latest
from agent.core.refs import ImageRef, parse_image_ref
from agent.images.service import ImageService
from agent.plan.decision import NodePlan, PullStep
from tests.bed.registry import Registry
from tests.contract.images_worlds import HOST, RealWorld, real_registry, real_world, why_not_real

Images = Latest[Mapping[ImageRef, ImageState]]


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    if reason := why_not_real():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as directory, real_registry(Path(directory)) as running:
        yield running


@pytest.fixture
async def world(registry: Registry) -> AsyncIterator[RealWorld]:
    directory = Path(tempfile.mkdtemp(prefix="ctd"))
    try:
        async with real_world(directory, registry) as real:
            yield real
    finally:
        shutil.rmtree(directory)


async def level_reached(images: Images, ref: ImageRef, level: ImageLevel) -> float:
    """Wait for the level; return the seconds it took."""
    began = time.monotonic()
    async with asyncio.timeout(20):
        async for states in images.follow():
            if ref in states and states[ref].level is level:
                break
    return time.monotonic() - began


async def test_a_planned_image_is_pulled_proved_and_withdrawn_within_two_seconds_of_its_removal(
    world: RealWorld,
) -> None:
    digest = await world.push("way:1", layers=3, index=True)
    want = ImageWant(ref=parse_image_ref(f"{HOST}/way:1"), digest=digest)
    step = PullStep(want=want, runtime_handler="", endpoints=(), due=None, urgent=False, reason="a test")
    images: Images = Latest({})
    service = ImageService(
        world.client,
        plan=Latest(NodePlan(images=(want,), pulls=(step,))),
        images=images,
        settings=Settings(image_watermark=1.0),  # the disk may be as full as it likes
        clock=SystemClock(),
        heartbeat=Heartbeat(),
    )
    task = asyncio.create_task(service.run())
    for _ in range(3):  # the best of three: other tests run beside this one
        await level_reached(images, want.ref, ImageLevel.UNPACKED)
        assert images.get()[want.ref].digest == digest
        # The removal may return after the image is back again.
        removal = asyncio.create_task(world.client.remove(str(want.ref)))
        seconds = await level_reached(images, want.ref, ImageLevel.ABSENT)
        await removal
        if seconds < 2:
            break
    assert seconds < 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_node_without_pods_has_no_sandboxes(world: RealWorld) -> None:
    assert await world.client.sandboxes() == ()
