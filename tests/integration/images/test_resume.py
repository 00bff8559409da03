"""Pulls that are interrupted go on where they were: containerd killed in the middle, a cancelled pull, a new client."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from agent.core.assignment import ImageWant
from agent.core.inventory import ImageLevel
from agent.core.refs import parse_image_ref
from agent.images.faults import PermanentFault, TransientFault
from agent.images.layout import this_architecture
from agent.images.progress import Progress
from agent.images.prove import Prover
from tests.contract.images_worlds import HOST, SNAPSHOTTER, RealWorld

LAYERS = 8
BYTES = int(os.environ.get("PREWARM_TEST_PULL_BYTES", str(256 << 20)))


@pytest.mark.parametrize("world", ["1.7", "2.1", "2.2"], indirect=True)
@pytest.mark.timeout(600)
async def test_containerd_killed_in_the_middle_of_a_pull_fetches_only_what_is_missing(world: RealWorld) -> None:
    # By its address: before 2.0 the transfer service reads no hosts.toml.
    digest = await world.push("resume:1", layers=LAYERS, size_bytes=BYTES // LAYERS)
    name = f"{world.secure_address}/resume:1"
    assert (await world.node.way(name, "")).resumable

    def kill_in_the_middle(passed: int) -> None:
        if passed > 0.6 * BYTES and world.process and world.process.returncode is None:
            # The relay stands still and containerd reads on: what sockets hold would be lost with any client.
            time.sleep(0.5)
            world.process.kill()

    world.relay.watch = kill_in_the_middle
    with pytest.raises(TransientFault):
        await world.node.pull(name, "")
    assert world.process is not None
    await world.process.wait()
    before = world.relay.passed

    world.relay.watch = lambda passed: None
    await world.start()
    await world.node.pull(name, "")

    again = world.relay.passed - BYTES
    print(f"containerd {world.version}: killed at {before}, {again} of {BYTES} bytes came twice")
    assert before > 0.5 * BYTES
    assert again <= 0.1 * BYTES
    want = ImageWant(ref=parse_image_ref(name), digest=digest)
    prover = Prover(world.node, SNAPSHOTTER, this_architecture())
    assert (await prover.prove([want]))[want.ref].level is ImageLevel.UNPACKED
    assert await world.node.present(name)


@pytest.mark.parametrize("world", ["1.7", "2.2"], indirect=True)
async def test_a_cancelled_pull_keeps_what_it_fetched_until_it_is_released(world: RealWorld) -> None:
    digest = await world.push("cancelled:1", layers=1, size_bytes=32 << 20)
    name, prover = f"{world.secure_address}/cancelled:1", Prover(world.node, SNAPSHOTTER, this_architecture())
    world.relay.allowance = 16 << 20
    pull = asyncio.create_task(world.node.pull(name, ""))
    async with asyncio.timeout(30):
        await world.relay.stuck.wait()
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    kept = await Progress(world.node, prover, digest).look(0)
    assert (8 << 20) < kept.done < kept.total

    await world.node.release(name)
    assert await world.node.ingests() == {}


@pytest.mark.parametrize("world", ["1.6"], indirect=True)
async def test_containerd_without_a_transfer_service_is_said_to_resume_nothing(world: RealWorld) -> None:
    way = await world.node.way(f"{world.secure_address}/x:1", "")
    assert (way.resumable, way.reason) == (
        False,
        "not resumable, by the CRI: containerd 1.6.20 has no transfer service",
    )


@pytest.mark.parametrize("world", ["1.7", "2.1"], indirect=True)
async def test_a_registry_on_this_machine_without_tls_is_pulled_from_the_kubelets_way(world: RealWorld) -> None:
    await world.push("plain:1")
    name = f"{world.address}/plain:1"
    await world.node.pull(name, "")
    assert await world.node.present(name)


@pytest.mark.parametrize("world", ["2.1"], indirect=True)
async def test_an_image_that_is_not_there_is_no_reason_to_go_another_way(world: RealWorld) -> None:
    with pytest.raises(PermanentFault):
        await world.node.pull(f"{world.secure_address}/nosuch:1", "")
    assert (await world.node.way(f"{world.secure_address}/nosuch:1", "")).resumable


@pytest.mark.parametrize("world", ["1.7", "2.1", "2.2"], indirect=True)
async def test_a_runtime_handler_has_its_image_unpacked_in_the_snapshotter_of_its_runtime(world: RealWorld) -> None:
    digest = await world.push("handler:1", layers=2)
    name = f"{HOST}/handler:1"
    await world.node.pull(name, "other")
    want = ImageWant(ref=parse_image_ref(name), digest=digest)
    levels = []
    for snapshotter in ("native", SNAPSHOTTER):
        proofs = await Prover(world.node, snapshotter, this_architecture()).prove([want])
        levels.append(proofs[want.ref].level)
    assert levels == [ImageLevel.UNPACKED, ImageLevel.PRESENT]
