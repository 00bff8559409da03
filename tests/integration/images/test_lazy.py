"""Laziness on a real stargz snapshotter: proved where it is real, told where it is not, and gone with the mounts."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.advise.advice import Advice
from agent.cli.doctor_images import examine
from agent.config import Settings
from agent.core.assignment import ImageWant
from agent.core.clock import SystemClock
from agent.core.heartbeat import Heartbeat
from agent.core.inventory import ImageLevel, ImageState
from agent.core.latest import Latest
from agent.core.refs import ImageRef, parse_image_ref
from agent.images.layout import this_architecture
from agent.images.prove import Proof, Prover
from agent.images.reading import read_layers
from agent.images.service import ImageService
from agent.plan.decision import NodePlan, PinStep, PullStep
from tests.bed.layers import Layer
from tests.bed.registry import Registry
from tests.contract.images_worlds import HOST
from tests.integration.images.lazily import SNAPSHOTTER, LazyNode, lazy_node, remove, why_not_lazy

MEGABYTES = 60


@pytest.fixture
async def node(request: pytest.FixtureRequest, registry: Registry) -> AsyncIterator[LazyNode]:
    version, annotations = request.param
    if reason := why_not_lazy(version):
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="ctd"))
    try:
        async with lazy_node(directory, registry, version, annotations=annotations) as running:
            yield running
    finally:
        remove(directory)


async def push(registry: Registry, name: str, *kinds: str) -> str:
    layers = [
        Layer(size_bytes=MEGABYTES << 19, seed=f"{name}/{n}", compression=kind)  # type: ignore[arg-type]
        for n, kind in enumerate(kinds)
    ]
    return await asyncio.to_thread(registry.make_image, name, "1", layers)


async def prove(node: LazyNode, name: str, digest: str) -> Proof:
    want = ImageWant(ref=parse_image_ref(f"{HOST}/{name}:1"), digest=digest)
    return (await Prover(node.client, SNAPSHOTTER, this_architecture()).prove([want]))[want.ref]


async def advice_on(node: LazyNode, name: str, environment: pytest.MonkeyPatch) -> list[Advice]:
    """What `prewarm doctor images REF` says will become of the image."""
    environment.setenv("PREWARM_CONTAINERD", node.client.socket)
    environment.setenv("PREWARM_SNAPSHOTTER", SNAPSHOTTER)
    ref = f"{HOST}/{name}:1"
    return [a for a in await examine("", [ref]) if a.about == ref and not a.message.startswith("now it is")]


@pytest.mark.parametrize("node", [("2.1", True), ("2.2", True)], indirect=True)
async def test_an_estargz_image_is_proved_lazy_and_hardly_anything_of_it_was_fetched(
    node: LazyNode, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await push(registry, "lazy", "estargz", "estargz")
    began = time.monotonic()
    await node.client.pull(f"{HOST}/lazy:1", "")
    proof = await prove(node, "lazy", digest)
    (forecast,) = await advice_on(node, "lazy", monkeypatch)
    assert forecast.message == "it is eStargz and will be lazy in stargz"
    print(f"lazy in {time.monotonic() - began:.2f} s, {node.relay.passed / 1e6:.1f} MB: {proof.reason}")
    assert proof.level is ImageLevel.LAZY
    assert node.relay.passed < 5_000_000
    assert not (await node.client.way(f"{HOST}/lazy:1", "")).resumable


@pytest.mark.parametrize("node", [("2.1", True)], indirect=True)
async def test_an_image_of_which_one_layer_was_fetched_whole_is_not_lazy(node: LazyNode, registry: Registry) -> None:
    digest = await push(registry, "mixed", "estargz", "gzip")
    await node.client.pull(f"{HOST}/mixed:1", "")
    proof = await prove(node, "mixed", digest)
    assert proof.level is ImageLevel.UNPACKED
    assert proof.reason.startswith(
        "unpacked, not lazy: 1 of 2 layers of this eStargz image were fetched whole by stargz"
    )


@pytest.mark.parametrize("node", [("2.1", False), ("2.2", False)], indirect=True)
async def test_without_annotations_the_same_image_is_unpacked_and_said_not_to_be_lazy(
    node: LazyNode, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await push(registry, "eager", "estargz", "estargz")
    (before,) = await advice_on(node, "eager", monkeypatch)
    assert "it is eStargz, but will be fetched whole: stargz is not told which layer it unpacks" in before.message
    assert "disable_snapshot_annotations = false" in before.cure
    await node.client.pull(f"{HOST}/eager:1", "")
    proof = await prove(node, "eager", digest)
    assert proof.level is ImageLevel.UNPACKED
    assert proof.reason.startswith("unpacked, not lazy: all layers of this eStargz image were fetched whole by stargz")


@pytest.mark.parametrize("node", [("2.2", True)], indirect=True)
async def test_mounts_that_died_with_their_daemon_prove_nothing(node: LazyNode, registry: Registry) -> None:
    digest = await push(registry, "dead", "estargz")
    await node.client.pull(f"{HOST}/dead:1", "")
    assert (await prove(node, "dead", digest)).level is ImageLevel.LAZY
    served = await node.client.served()
    assert served is not None
    assert len(served) == 1
    node.snapshotter.kill()
    await node.snapshotter.wait()
    assert await node.client.served() == {}


@pytest.mark.parametrize("node", [("2.2", True)], indirect=True)
async def test_the_images_of_an_open_window_are_hydrated_and_then_need_no_registry(
    node: LazyNode, registry: Registry
) -> None:
    digest = await push(registry, "window", "estargz", "estargz")
    want = ImageWant(ref=parse_image_ref(f"{HOST}/window:1"), digest=digest)
    step = PullStep(want=want, runtime_handler="", endpoints=(), due=None, urgent=False, reason="a test")
    pin = PinStep(want=want, until=datetime.now(UTC) + timedelta(hours=1))
    images: Latest[Mapping[ImageRef, ImageState]] = Latest({})
    service = ImageService(
        node.client,
        plan=Latest(NodePlan(images=(want,), pulls=(step,), pins=(pin,))),
        images=images,
        settings=replace(Settings(), snapshotter=SNAPSHOTTER, proof_interval_seconds=1.0, image_watermark=1.0),
        clock=SystemClock(),
        heartbeat=Heartbeat(),
    )
    task = asyncio.create_task(service.run())
    try:
        levels = []
        async with asyncio.timeout(60):
            async for states in images.follow():
                level = states[want.ref].level if want.ref in states else ImageLevel.ABSENT
                levels += [level] if level not in levels else []
                if level is ImageLevel.HYDRATED:
                    break
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert levels[-2:] == [ImageLevel.LAZY, ImageLevel.HYDRATED]
    node.relay.leave()
    served = await node.client.served()
    assert served is not None
    places = [layer.files for layer in served.values()]
    assert await asyncio.to_thread(read_layers, places, (), lambda: False) == MEGABYTES << 20
