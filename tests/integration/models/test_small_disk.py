"""The store on a file system that is too small, read-only or slow: refused with numbers, nothing lost, no lock held for ever."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.config import Settings
from agent.core.assignment import Assignment, EndpointWant, ModelWant, Window
from agent.core.clock import SystemClock
from agent.core.heartbeat import Heartbeat
from agent.core.inventory import GpuReport, Inventory, ModelsView
from agent.core.latest import Latest
from agent.core.refs import Digest, EndpointKey
from agent.models import eviction
from agent.models.paths import sync_file_system
from agent.models.resolve import resolve
from agent.models.service import ModelService
from agent.plan.decision import NodePlan
from agent.plan.planning import Limits, plan
from tests.bed.disk import break_down, fill, slow_down, small_disk
from tests.bed.faultproxy import Rule
from tests.integration.models.conftest import SourceBucket, contents, noise
from tests.integration.models.test_service import Runtime

MIB = 1 << 20
POD = "0b9f1c1e-1111-2222-3333-444455556666"
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loop devices and mounts"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, 64 * MIB) as mounted:
        yield mounted


class Node:
    """The models room and the real plan in a circle, for endpoints that wait or have windows as the test says."""

    def __init__(self, root: Path) -> None:
        self.models, self.decided = Latest(ModelsView()), Latest(NodePlan())
        self.waiting: set[EndpointKey] = set()
        self.assignment = Assignment()
        self.runtime, self.heartbeat = Runtime(), Heartbeat()
        self.service = ModelService(
            settings=replace(
                Settings(), root=root, proof_interval_seconds=0.2, connections=2, high_watermark=0.98, scrub=0
            ),
            plan=self.decided,
            models=self.models,
            clock=SystemClock(),
            heartbeat=self.heartbeat,
            sandboxes=self.runtime,
        )

    def decide(self) -> None:
        view = self.models.get()
        inventory = Inventory(
            models=view.states,
            resolved=view.resolved,
            unresolved=view.unresolved,
            cache=view.cache,
            gpu=GpuReport(),
            waiting=frozenset(self.waiting),
            proved=True,
        )
        limits = Limits(warm_ahead=timedelta(minutes=5))
        self.decided.set(plan(self.assignment, inventory, datetime.now(UTC), limits))

    async def keep_deciding(self) -> None:
        async for _ in self.models.follow():
            self.decide()

    def assign(self, *wants: EndpointWant, waiting: tuple[str, ...] = ()) -> None:
        self.assignment = Assignment(endpoints=wants)
        self.waiting = {w.key for w in wants if w.key.name in waiting}
        self.decide()

    def is_here(self, digest: Digest) -> bool:
        state = self.models.get().states.get(digest)
        return state is not None and state.level.committed

    async def until_here(self, digest: Digest) -> None:
        async with asyncio.timeout(90):
            async for _ in self.models.follow():
                if self.is_here(digest):
                    return

    async def until_refused(self, digest: Digest) -> str:
        async with asyncio.timeout(90):
            async for _ in self.decided.follow():
                if digest in self.decided.get().refusals:
                    return self.decided.get().refusals[digest]
        raise AssertionError

    async def error_of(self, digest: Digest) -> str:
        async with asyncio.timeout(90):
            async for view in self.models.follow():
                if digest in view.states and view.states[digest].error:
                    return view.states[digest].error
        raise AssertionError


@asynccontextmanager
async def node(root: Path) -> AsyncIterator[Node]:
    made = Node(root)
    tasks = [
        asyncio.create_task(made.service.run(), name="models"),
        asyncio.create_task(made.keep_deciding(), name="plan"),
    ]
    try:
        yield made
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def endpoint(bucket: SourceBucket, name: str, size: int, opens_in: timedelta | None = None) -> EndpointWant:
    for n in range(2):
        bucket.put(f"{name}/{n}", noise(size // 2, hash_of(name) + n))
    uri = bucket.uri(f"{name}/")
    want = ModelWant(name=name, uri=uri, digest=(await resolve(uri)).digest)
    now = datetime.now(UTC)
    windows = (
        () if opens_in is None else (Window(ready_by=now + opens_in, until=now + opens_in + timedelta(minutes=30)),)
    )
    return EndpointWant(key=EndpointKey(namespace="shop", name=name), models=(want,), windows=windows)


def hash_of(name: str) -> int:
    return sum(name.encode()) * 10


def digest_of(want: EndpointWant) -> Digest:
    digest = want.models[0].digest
    assert digest
    return digest


async def test_two_models_race_for_the_last_bytes_and_one_is_refused_with_numbers(
    bucket: SourceBucket, disk: Path
) -> None:
    one, two = await endpoint(bucket, "one", 36 * MIB), await endpoint(bucket, "two", 36 * MIB)
    async with node(disk / "root") as n:
        n.assign(one, two, waiting=("one", "two"))
        await n.until_here(digest_of(one))
        assert "MB are lacking and 0 B may go for it (1 needed now)" in await n.until_refused(digest_of(two))
        told = next(e for e in n.decided.get().endpoints if e.want.key == two.key)
        assert "needs 37.7 MB but only" in told.reason
        assert n.is_here(digest_of(one))
        await n.service.add(POD, [digest_of(one)])
        n.runtime.uids = [POD]
        n.assign(two, waiting=("two",))  # the first has its pod, and is assigned no more
        assert "(1 in use or pinned)" in await n.until_refused(digest_of(two))
        assert n.is_here(digest_of(one))


async def test_of_two_waiting_pods_the_one_whose_download_was_interrupted_does_not_block_the_other_for_ever(
    bucket: SourceBucket, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is staged fills the disk; the pod that is now first in line cannot have its room, and yet both get theirs in turn."""
    monkeypatch.setattr(eviction, "WAIT_SECONDS", 0.1)
    one, two = await endpoint(bucket, "one", 36 * MIB), await endpoint(bucket, "two", 36 * MIB)
    slow = Rule("slow", times=99, arg=2e6)
    bucket.proxy.rules.append(slow)
    async with node(disk / "root") as n:
        n.assign(one, waiting=("one",))
        async with asyncio.timeout(90):
            async for view in n.models.follow():
                if any(s.done_bytes > MIB for s in view.states.values()):
                    break
    bucket.proxy.rules.clear()
    async with node(disk / "root") as n:
        n.assign(two, one, waiting=("two", "one"))
        await n.until_here(digest_of(one))
        assert "MB are lacking" in await n.until_refused(digest_of(two))
        n.assign(two, waiting=("two",))  # the first pod is gone again
        await n.until_here(digest_of(two))


async def test_the_last_pod_gone_its_version_makes_room_for_the_one_that_waits(
    bucket: SourceBucket, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "WAIT_SECONDS", 0.3)
    one, two = await endpoint(bucket, "one", 36 * MIB), await endpoint(bucket, "two", 36 * MIB)
    async with node(disk / "root") as n:
        n.assign(one, waiting=("one",))
        await n.until_here(digest_of(one))
        await n.service.add(POD, [digest_of(one)])
        n.runtime.uids = [POD]
        n.assign(one, two, waiting=("two",))
        await n.until_refused(digest_of(two))
        n.runtime.uids = []  # the pod ends; the runtime shows it no more
        await n.until_here(digest_of(two))
        assert not n.is_here(digest_of(one))
        assert [p.name for p in (disk / "root" / "store").iterdir()] == [digest_of(two)]


async def test_a_pod_that_just_starts_keeps_its_version_from_an_eviction_under_way(
    bucket: SourceBucket, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "WAIT_SECONDS", 1.0)
    one, two = await endpoint(bucket, "one", 36 * MIB), await endpoint(bucket, "two", 36 * MIB)
    async with node(disk / "root") as n:
        n.assign(one, waiting=("one",))
        await n.until_here(digest_of(one))
        n.assign(one, two, waiting=("two",))
        async with asyncio.timeout(90):
            async for view in n.models.follow():
                if view.states[digest_of(one)].reason.startswith("leaving"):
                    break
        assert not n.is_here(digest_of(one))  # the claim goes first
        await n.service.add(POD, [digest_of(one)])  # bound just before the claim went, and linked
        n.runtime.uids = [POD]
        await n.until_here(digest_of(one))
        assert "(1 in use or pinned)" in await n.until_refused(digest_of(two))
        assert sorted(contents(disk / "root" / "store" / digest_of(one) / "files")) == ["0", "1"]


async def test_what_is_due_is_not_evicted_and_what_is_due_later_is(
    bucket: SourceBucket, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "WAIT_SECONDS", 0.1)
    late = await endpoint(bucket, "late", 24 * MIB, timedelta(hours=9))
    soon = await endpoint(bucket, "soon", 24 * MIB, timedelta(minutes=1))
    now = await endpoint(bucket, "now", 24 * MIB, timedelta(minutes=2))
    async with node(disk / "root") as n:
        n.assign(late, waiting=("late",))
        await n.until_here(digest_of(late))
        n.assign(late, soon)
        await n.until_here(digest_of(soon))
        n.assign(late, soon, now)
        await n.until_here(digest_of(now))
        assert n.is_here(digest_of(soon))
        assert not n.is_here(digest_of(late))


async def test_a_disk_that_others_fill_in_mid_download_is_one_clear_error_and_is_tried_again(
    bucket: SourceBucket, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: None)  # as on a file system that cannot reserve
    one = await endpoint(bucket, "one", 36 * MIB)
    bucket.proxy.rules.append(Rule("slow", times=99, arg=2e6))
    async with node(disk / "root") as n:
        n.assign(one, waiting=("one",))
        async with asyncio.timeout(90):
            async for view in n.models.follow():
                if any(s.done_bytes > MIB for s in view.states.values()):
                    break
        filler = disk / "others"
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        assert "no space left on the store's file system" in await n.error_of(digest_of(one))
        assert list((disk / "root" / "store").iterdir()) == []
        bucket.proxy.rules.clear()
        filler.unlink()
        n.service._queue._failures.forget(digest_of(one))  # rather than wait for its backoff
        n.service._board.update(digest_of(one), error="", retry_at=None)
        n.service._queue.changed.fire()
        await n.until_here(digest_of(one))


async def test_a_full_disk_on_which_a_broken_version_cannot_be_set_aside_is_said_until_there_is_room(
    bucket: SourceBucket, disk: Path
) -> None:
    one, two = await endpoint(bucket, "one", 4 * MIB), await endpoint(bucket, "two", 4 * MIB)
    async with node(disk / "root") as n:
        n.assign(one, two, waiting=("one", "two"))
        await n.until_here(digest_of(one))
        await n.until_here(digest_of(two))
    os.utime(disk / "root" / "store" / digest_of(one) / "files" / "1")
    fillers = [disk / "others", disk / "rest"]
    for filler, step in zip(fillers, (MIB, 4096), strict=True):  # where no MiB fits there may be room for a record
        sync_file_system(disk)  # what was deleted is free once the file system's journal has it, and not before
        with pytest.raises(OSError, match="No space left"):
            fill(filler, step)
    async with node(disk / "root") as n:
        async with asyncio.timeout(90):
            while "no space left" not in (said := n.heartbeat.missed.get("models", "")):  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0.02)
        assert said == "cannot read the store: the store's disk failed: no space left on the store's file system"
        assert n.models.get().states == {}  # nothing is claimed before all is proved
        for filler in fillers:
            filler.unlink()
        await n.until_here(digest_of(two))
        n.assign(one, two, waiting=("one", "two"))
        await n.until_here(digest_of(one))


async def test_a_read_only_file_system_is_said_and_what_is_there_stays_claimed(
    bucket: SourceBucket, disk: Path
) -> None:
    one, two = await endpoint(bucket, "one", 4 * MIB), await endpoint(bucket, "two", 4 * MIB)
    async with node(disk / "root") as n:
        n.assign(one, waiting=("one",))
        await n.until_here(digest_of(one))
        break_down(disk)
        n.assign(one, two, waiting=("two",))
        assert "Read-only file system" in await n.error_of(digest_of(two))
        assert n.is_here(digest_of(one))
        assert sorted(contents(disk / "root" / "store" / digest_of(one) / "files")) == ["0", "1"]


async def test_a_disk_slower_than_the_net_only_takes_longer(bucket: SourceBucket, disk: Path) -> None:
    if not slow_down(disk, 8 * MIB):
        pytest.skip("no cgroup v1 blkio controller to slow a disk down with")
    one = await endpoint(bucket, "one", 16 * MIB)
    async with node(disk / "root") as n:
        started = asyncio.get_running_loop().time()
        n.assign(one, waiting=("one",))
        await n.until_here(digest_of(one))
        assert asyncio.get_running_loop().time() - started > 1.5
        assert n.models.get().states[digest_of(one)].error == ""
