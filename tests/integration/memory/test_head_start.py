"""Weights of a pod that starts, read ahead of its server: real files, a real page cache, a real cgroup to be charged."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.core.clock import SystemClock
from agent.core.errors import Invalid, Permanent
from agent.core.inventory import MemoryView
from agent.core.latest import Latest
from agent.core.refs import Digest
from agent.models.head_start import HeadStart
from agent.models.memory_group import MemoryGroup
from agent.models.resident import HeldFiles, let_go, measure
from agent.plan.memory_budget import Machine
from tests.bed.process import descendants
from tests.integration.memory.conftest import CGROUPS, MEMORY_V1

MIB, GIB = 1 << 20, 1 << 30
A, B = Digest("sha256:" + "a" * 64), Digest("sha256:" + "b" * 64)
ROOMY = Machine(total_bytes=64 * GIB, available_bytes=32 * GIB)
Make = Callable[[str, int], Path]


@dataclass
class Node:
    """What the room is wired to; the reader joins whatever `joins` names."""

    versions: dict[Digest, HeldFiles]
    joins: Path
    setting: int | None = None
    machine: Machine = ROOMY
    refusal: str = ""
    asked: list[Digest] = field(default_factory=list)
    starting: Latest[frozenset[tuple[str, Digest]]] = field(default_factory=lambda: Latest(frozenset()))
    memory: Latest[MemoryView] = field(default_factory=lambda: Latest(MemoryView()))

    def outside(self) -> Path:
        if self.refusal:
            raise Permanent(self.refusal)
        return self.joins

    def files(self, digest: Digest) -> HeldFiles:
        self.asked.append(digest)
        if digest not in self.versions:
            raise Invalid("no such version")
        return self.versions[digest]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        service = HeadStart(
            starting=self.starting,
            memory=self.memory,
            requests=Latest(None),
            group=self,
            files=self.files,
            clock=SystemClock(),
            setting=self.setting,
            machine=lambda: self.machine,
        )
        task = asyncio.create_task(service.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    def starts(self, *pairs: tuple[str, Digest]) -> None:
        self.starting.set(frozenset(pairs))

    async def until_waiting(self) -> None:
        """Return when no reader runs, and what it read has been noted."""
        await eventually(lambda: descendants(os.getpid()) == [os.getpid()])
        await asyncio.sleep(0.1)

    async def until_resident(self, digest: Digest, size_bytes: int) -> None:
        await eventually(lambda: measure(self.versions[digest])[0] >= size_bytes)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 (the kernel tells nobody)
            await asyncio.sleep(0.005)


def held(*paths: Path) -> HeldFiles:
    return HeldFiles(
        root=paths[0].parent, names=tuple(p.name for p in paths), size_bytes=sum(p.stat().st_size for p in paths)
    )


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """Stands for a `cgroup.procs` where nobody is charged."""
    return tmp_path / "procs"


async def test_the_weights_are_there_before_anyone_reads_them(make_file: Make, nowhere: Path) -> None:
    node = Node({A: held(make_file("one", 40 * MIB), make_file("two", 3 * MIB + 5))}, nowhere)
    assert measure(node.versions[A])[0] == 0
    async with node.running():
        node.starts(("u1", A))
        await node.until_resident(A, 43 * MIB + 5)
    assert await asyncio.to_thread(nowhere.read_text) == "0"  # the reader itself


@pytest.mark.root
async def test_whoever_the_group_names_is_charged_and_not_this_process(cgroup: Path, make_file: Make) -> None:
    there = MEMORY_V1 / cgroup
    node = Node({A: held(make_file("weights", 64 * MIB))}, there / "cgroup.procs")
    async with node.running():
        node.starts(("u1", A))
        await node.until_resident(A, 64 * MIB)
    assert int((there / "memory.usage_in_bytes").read_text()) >= 64 * MIB


@pytest.mark.root
def test_on_a_node_nobody_is_charged() -> None:
    if not (MEMORY_V1 / "memory.limit_in_bytes").exists():
        pytest.skip("needs memory cgroups of version 1; version 2 is not tested here")
    assert MemoryGroup(CGROUPS, "any").outside() == MEMORY_V1 / "cgroup.procs"


async def test_a_version_is_read_once_for_all_pods_that_start_with_it(make_file: Make, nowhere: Path) -> None:
    node = Node({A: held(make_file("a", MIB)), B: held(make_file("b", MIB))}, nowhere)
    async with node.running():
        node.starts(("u1", A), ("u2", A))
        await node.until_resident(A, MIB)
        await node.until_waiting()
        let_go(node.versions[A])
        node.starts(("u1", A), ("u2", A), ("u3", B))
        await node.until_resident(B, MIB)
        await node.until_waiting()
        assert measure(node.versions[A])[0] == 0  # those two have had it
        node.starts(("u1", A), ("u4", A))  # one is stuck, and another starts
        await node.until_resident(A, MIB)
        await node.until_waiting()
        let_go(node.versions[A])
        node.starts()
        await asyncio.sleep(0.05)
        node.starts(("u1", A))
        await node.until_resident(A, MIB)
    assert node.asked == [A, B, A, A]


@pytest.mark.parametrize(
    ("setting", "held_bytes", "machine", "expected"),
    [
        (128 * MIB, 0, ROOMY, ["one"]),  # the setting
        (None, 16 * GIB - 130 * MIB, ROOMY, ["one"]),  # what the memory tier holds counts
        (None, 0, Machine(total_bytes=64 * GIB, available_bytes=32 * GIB, stalled_percent=11), []),  # pressure
        (0, 0, ROOMY, []),
    ],
)
async def test_no_more_is_read_than_there_is_room_for(
    make_file: Make,
    nowhere: Path,
    setting: int | None,
    held_bytes: int,
    machine: Machine,
    expected: list[str],
) -> None:
    one, two = make_file("one", 96 * MIB), make_file("two", 40 * MIB)
    node = Node({A: held(one, two)}, nowhere, setting=setting, machine=machine)
    node.memory.set(MemoryView(held_bytes=held_bytes))
    async with node.running():
        node.starts(("u1", A))
        if expected:
            await node.until_resident(A, 96 * MIB)
        await asyncio.sleep(0.3)
    found = {path.name: measure(held(path))[0] for path in (one, two)}
    assert [name for name, size in found.items() if size] == expected


async def test_what_cannot_be_read_costs_the_next_one_nothing(make_file: Make, nowhere: Path) -> None:
    gone = held(make_file("gone", MIB))
    (gone.root / "gone").unlink()
    node = Node({A: gone, B: held(make_file("b", MIB))}, nowhere)
    c = Digest("sha256:" + "0" * 64)  # no such version, and first in line
    async with node.running():
        node.starts(("u1", A), ("u2", B), ("u3", c))
        await node.until_resident(B, MIB)
    assert node.asked == [c, A, B]


async def test_where_everybody_would_be_charged_nothing_is_read(make_file: Make, nowhere: Path) -> None:
    node = Node({A: held(make_file("a", MIB))}, nowhere, refusal="no cgroups")
    async with node.running():
        node.starts(("u1", A))
        await asyncio.sleep(0.3)
    assert node.asked == [A]
    assert measure(node.versions[A])[0] == 0


async def test_cancelled_it_leaves_no_reader(make_file: Make, nowhere: Path) -> None:
    node = Node({A: held(make_file("a", 512 * MIB))}, nowhere)
    before = set(descendants(os.getpid()))
    async with node.running():
        node.starts(("u1", A))
        await eventually(nowhere.exists)
    assert not set(descendants(os.getpid())) - before
