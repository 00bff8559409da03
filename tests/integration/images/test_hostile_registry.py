"""What registries do to pulls, through real containerds: each failure has its class, none hangs, and good times return."""

from __future__ import annotations

import asyncio

import pytest

from agent.core.errors import Permanent, Transient
from agent.images.faults import Fault as Class
from agent.images.faults import PermanentFault, TransientFault
from tests.contract.images_worlds import HOST, RealWorld
from tests.integration.images.hostile import Fault, Front

FAULTS = [
    (Fault(where="/manifests/", status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}), Class.AUTH, Permanent),
    (Fault(where="/manifests/", status=403), Class.AUTH, Permanent),
    (Fault(where="/manifests/", status=404), Class.NOT_FOUND, Permanent),
    (Fault(where="/manifests/", status=429, headers={"Retry-After": "1234"}), Class.RATE_LIMIT, Transient),
    (Fault(where="/manifests/", status=500), Class.REGISTRY, Transient),
    (Fault(where="/blobs/", status=503), Class.REGISTRY, Transient),
    (Fault(where="/blobs/", cut_at=0.5), Class.REGISTRY, Transient),
]


async def test_every_fault_of_a_registry_has_its_class_and_a_pull_after_it_succeeds(
    worlds: tuple[RealWorld, Front],
) -> None:
    world, front = worlds
    found = []
    for number, (fault, _, _) in enumerate(FAULTS):
        await world.push(f"hostile{number}:1", layers=1, size_bytes=300_000)
        front.fault = fault
        async with asyncio.timeout(60):
            with pytest.raises((PermanentFault, TransientFault)) as caught:
                await world.node.pull(f"{HOST}/hostile{number}:1", "")
        assert front.times > 0
        if fault.status == 429:
            assert await world.node.retry_after(f"{HOST}/hostile{number}:1") == 1234
        front.fault, front.times = None, 0
        kind = caught.value.fault  # type: ignore[attr-defined]  # both have it
        found.append((kind, isinstance(caught.value, Transient), str(caught.value)))
        await world.node.pull(f"{HOST}/hostile{number}:1", "")
        assert await world.node.present(f"{HOST}/hostile{number}:1")
    wanted = [(kind, base is Transient) for _, kind, base in FAULTS]
    print(*(text for _, _, text in found), sep="\n")
    assert [(kind, transient) for kind, transient, _ in found] == wanted


async def test_a_slow_registry_is_waited_for(worlds: tuple[RealWorld, Front]) -> None:
    world, front = worlds
    await world.push("slow:1", layers=1, size_bytes=300_000)
    front.fault = Fault(where="/blobs/", bytes_per_second=150_000)
    async with asyncio.timeout(60):
        await world.node.pull(f"{HOST}/slow:1", "")
    assert front.times > 0
    assert await world.node.present(f"{HOST}/slow:1")


async def test_an_image_for_another_platform_says_so(worlds: tuple[RealWorld, Front]) -> None:
    world, _ = worlds
    await asyncio.to_thread(world.registry.make_image, "elsewhere", "1", [], platforms=["linux/s390x", "linux/riscv64"])
    with pytest.raises(PermanentFault) as caught:
        await world.node.pull(f"{HOST}/elsewhere:1", "")
    assert caught.value.fault is Class.PLATFORM
