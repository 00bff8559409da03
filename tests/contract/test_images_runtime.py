"""The contract between the images room and containerd, held by the twin and by a real one."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.core.assignment import ImageWant
from agent.core.errors import Permanent, Transient
from agent.core.inventory import ImageLevel
from agent.core.refs import parse_image_ref
from agent.images.faults import Fault, PermanentFault, TransientFault
from agent.images.layout import chain_ids, parse_document, this_architecture
from agent.images.progress import Progress
from agent.images.prove import Proof, Prover
from agent.images.runtime import Change, Pin
from tests.bed.registry import Registry
from tests.contract.images_worlds import (
    HOST,
    SNAPSHOTTER,
    VERSIONS,
    TwinWorld,
    World,
    real_registry,
    real_world,
    why_not_real,
)


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    if reason := why_not_real():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as directory, real_registry(Path(directory)) as running:
        yield running


@pytest.fixture(params=["twin", *VERSIONS])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "twin":
        yield TwinWorld()
        return
    if reason := why_not_real(request.param):
        pytest.skip(reason)
    registry = request.getfixturevalue("registry")
    directory = Path(tempfile.mkdtemp(prefix="ctd"))
    try:
        async with real_world(directory, registry, request.param) as real:
            yield real
    finally:
        shutil.rmtree(directory)


async def prove(world: World, name: str, digest: str = "") -> Proof:
    want = ImageWant(ref=parse_image_ref(f"{HOST}/{name}"), digest=digest)
    return (await Prover(world.node, SNAPSHOTTER, this_architecture()).prove([want]))[want.ref]


async def chain(world: World, digest: str) -> tuple[str, ...]:
    manifest = await Prover(world.node, SNAPSHOTTER, this_architecture()).manifest(digest)
    assert manifest is not None
    config = await world.node.read(manifest.config, 1 << 20)
    assert config is not None
    return chain_ids(parse_document(config, manifest.config), manifest.config)


async def test_an_image_that_was_never_pulled_is_absent(world: World) -> None:
    proof = await prove(world, "a:1")
    assert (proof.level, proof.digest) == (ImageLevel.ABSENT, "")
    assert not await world.node.present(f"{HOST}/a:1")


@pytest.mark.parametrize("index", [False, True])
async def test_an_image_pulled_by_its_tag_is_unpacked_and_has_the_registrys_digest(world: World, index: bool) -> None:
    digest = await world.push("b:1", layers=3, index=index)
    await world.node.pull(f"{HOST}/b:1", "")
    proof = await prove(world, "b:1", digest)
    assert (proof.level, proof.digest) == (ImageLevel.UNPACKED, digest)
    assert proof.size_bytes > 0
    assert await world.node.present(f"{HOST}/b:1")


async def test_the_manifests_own_digest_is_as_good_as_the_indexs(world: World) -> None:
    await world.push("b:2", index=True)
    await world.node.pull(f"{HOST}/b:2", "")
    target = (await prove(world, "b:2")).digest
    content = await world.node.read(target, 1 << 20)
    assert content is not None
    entries = parse_document(content, target)["manifests"]
    assert isinstance(entries, list)
    mine = next(e["digest"] for e in entries if e["platform"]["architecture"] == this_architecture())
    assert mine != target
    proof = await prove(world, "b:2", mine)
    assert (proof.level, proof.digest) == (ImageLevel.UNPACKED, mine)


async def test_an_image_pulled_by_its_digest_is_found_by_it(world: World) -> None:
    digest = await world.push("b:3")
    name = f"{HOST}/b@{digest}"
    if isinstance(world, TwinWorld):
        world.node.registry[name] = world.node.registry[f"{HOST}/b:3"]
    await world.node.pull(name, "")
    assert (await prove(world, f"b@{digest}", digest)).level is ImageLevel.UNPACKED


async def test_an_image_that_is_not_the_wanted_digest_is_present_only(world: World) -> None:
    old = await world.push("c:1")
    await world.node.pull(f"{HOST}/c:1", "")
    wanted = "sha256:" + "0" * 64
    proof = await prove(world, "c:1", wanted)
    assert (proof.level, proof.digest, proof.moved) == (ImageLevel.PRESENT, old, True)


async def test_removing_an_image_sends_an_event_and_leaves_it_absent(world: World) -> None:
    await world.push("d:1")
    await world.node.pull(f"{HOST}/d:1", "")
    events = world.node.events()
    assert (await anext(events)).change is Change.STARTED
    await world.node.remove(f"{HOST}/d:1")
    async with asyncio.timeout(5):
        async for event in events:
            if event.change is Change.DELETED and event.name == f"{HOST}/d:1":
                break
    assert (await prove(world, "d:1")).level is ImageLevel.ABSENT


async def test_deleting_the_tag_alone_is_an_event_and_the_tag_is_absent(world: World) -> None:
    await world.push("d:2")
    await world.node.pull(f"{HOST}/d:2", "")
    events = world.node.events()
    assert (await anext(events)).change is Change.STARTED
    await world.forget(f"{HOST}/d:2")
    async with asyncio.timeout(5):
        async for event in events:
            if event.change is Change.DELETED:
                assert event.name == f"{HOST}/d:2"
                break
    assert (await prove(world, "d:2")).level is ImageLevel.ABSENT


async def test_an_image_without_its_top_snapshot_is_present_not_unpacked_and_a_pull_mends_it(world: World) -> None:
    digest = await world.push("e:1", layers=3)
    await world.node.pull(f"{HOST}/e:1", "")
    events = world.node.events()
    assert (await anext(events)).change is Change.STARTED
    top = (await chain(world, digest))[-1]
    await world.drop_snapshot(top)
    async with asyncio.timeout(5):
        async for event in events:
            if event.change is Change.LAYER_REMOVED and event.name == top:
                break
    proof = await prove(world, "e:1")
    assert proof.level is ImageLevel.PRESENT
    # containerd may already have collected the parents, which only the top one referred to
    assert re.fullmatch("[1-3] of 3 layers are not unpacked in overlayfs", proof.reason)
    assert await world.node.present(f"{HOST}/e:1")  # which is why nobody may ask the CRI
    await world.node.pull(f"{HOST}/e:1", "")
    assert (await prove(world, "e:1")).level is ImageLevel.UNPACKED


async def test_a_tag_the_registry_does_not_have_is_a_permanent_fault(world: World) -> None:
    await world.push("f:1")
    with pytest.raises(PermanentFault, match=r"cannot pull registry\.test/f:none") as caught:
        await world.node.pull(f"{HOST}/f:none", "")
    assert caught.value.fault is Fault.NOT_FOUND


async def test_a_registry_that_is_away_is_a_transient_fault(world: World) -> None:
    world.registry_leaves()
    with pytest.raises(TransientFault, match=r"cannot pull registry\.test/g:1") as caught:
        await world.node.pull(f"{HOST}/g:1", "")
    assert caught.value.fault is Fault.REGISTRY


async def test_a_cancelled_pull_ends_at_containerd_and_leaves_nothing_claimed(world: World) -> None:
    await world.push("h:1", layers=1, big=True)
    world.block_layers()
    pull = asyncio.create_task(world.node.pull(f"{HOST}/h:1", ""))
    async with asyncio.timeout(20):
        await world.stuck()
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        await world.idle()
    assert (await prove(world, "h:1")).level is ImageLevel.ABSENT


async def test_the_bytes_of_a_finished_pull_are_all_there(world: World) -> None:
    digest = await world.push("i:1", layers=3)
    prover = Prover(world.node, SNAPSHOTTER, this_architecture())
    progress = Progress(world.node, prover, digest)
    before = await progress.look(0)
    await world.node.pull(f"{HOST}/i:1", "")
    after = await progress.look(1)
    assert (before.done, before.total) == (0, 0)
    assert after.done == after.total > 0


async def test_a_blob_over_the_limit_is_refused(world: World) -> None:
    digest = await world.push("j:1")
    await world.node.pull(f"{HOST}/j:1", "")
    with pytest.raises(Permanent):
        await world.node.read(digest, 10)
    assert await world.node.read("sha256:" + "1" * 64, 10) is None


async def test_an_unknown_snapshotter_is_a_permanent_fault(world: World) -> None:
    with pytest.raises(Permanent):
        await world.node.committed("nosuch")


async def test_a_containerd_that_stops_ends_events_and_calls_as_away(world: World) -> None:
    events = world.node.events()
    assert (await anext(events)).change is Change.STARTED
    await world.stop()
    async with asyncio.timeout(5):
        with pytest.raises(Transient):
            await anext(events)
    with pytest.raises(TransientFault) as caught:
        await world.node.records(["x"])
    assert caught.value.fault is Fault.AWAY


async def test_a_pin_stands_on_the_images_id_outlives_a_pull_and_is_taken_away(world: World) -> None:
    await world.push("k:1")
    name = f"{HOST}/k:1"
    await world.node.pull(name, "")
    image = (await prove(world, "k:1")).image_id
    until = datetime(2030, 1, 1, tzinfo=UTC)
    await world.node.pin(image, until)
    await world.node.pin("sha256:" + "1" * 64, until)  # nobody has it
    assert await world.node.pins() == {image: Pin(until=until, whole=True)}
    await world.node.pull(name, "")
    assert await world.node.pins() == {image: Pin(until=until, whole=True)}
    if world.pins_count:
        await reached(lambda: world.node.shielded(name))
    await world.node.unpin(image)
    assert await world.node.pins() == {}
    await reached(lambda: unshielded(world, name))


async def reached(holds: Callable[[], Awaitable[bool]]) -> None:
    """The CRI learns of a label by an event, and tells nobody."""
    async with asyncio.timeout(10):
        while not await holds():  # noqa: ASYNC110 (see above)
            await asyncio.sleep(0.05)


async def unshielded(world: World, name: str) -> bool:
    return not await world.node.shielded(name)


async def test_the_disk_of_the_images_is_known(world: World) -> None:
    disk = await world.node.disk()
    assert disk is not None
    assert 0 < disk.free_bytes <= disk.capacity_bytes
