"""Weights of a pod that starts, read ahead of its server: real files, a real page cache, a real cgroup to be charged."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.core.assignment import ModelWant
from agent.core.clock import SystemClock
from agent.core.errors import Invalid, Permanent
from agent.core.inventory import MemoryView, Residency
from agent.core.latest import Latest
from agent.core.refs import Digest, parse_model_uri
from agent.core.starts import Starts
from agent.models.head_start import AGAIN_SECONDS, HeadStart
from agent.models.memory_group import MemoryGroup
from agent.models.resident import HeldFiles, let_go, measure
from agent.plan.decision import HydrateStep, NodePlan
from agent.plan.memory_budget import Machine
from tests.bed.process import descendants
from tests.integration.memory.conftest import CGROUPS, MEMORY_V1

MIB, GIB = 1 << 20, 1 << 30
A, B, GONE = Digest("sha256:" + "a" * 64), Digest("sha256:" + "b" * 64), Digest("sha256:" + "c" * 64)
ROOMY = Machine(total_bytes=64 * GIB, available_bytes=32 * GIB)
CRAMPED = Machine(total_bytes=64 * GIB, available_bytes=32 * GIB, stalled_percent=11)
WANT = ModelWant(name="m", uri=parse_model_uri("s3://models/m/"), size_bytes=1)
URGENT = NodePlan(hydrations=(HydrateStep(want=WANT, endpoints=(), due=None, urgent=True, reason="a pod waits"),))
Make = Callable[[str, int], Path]


class Clock(SystemClock):
    """The real one, that can be put on."""

    ahead_seconds = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_seconds


@dataclass
class Node:
    """What the room is wired to; the reader joins whatever `joins` names."""

    versions: dict[Digest, HeldFiles]
    joins: Path
    setting: int | None = None
    machine: Machine = ROOMY
    refusal: str = ""
    clock: Clock = field(default_factory=Clock)
    asked: list[Digest] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)
    starting: Latest[Starts] = field(default_factory=lambda: Latest(Starts()))
    plan: Latest[NodePlan] = field(default_factory=lambda: Latest(NodePlan()))
    memory: Latest[MemoryView] = field(default_factory=lambda: Latest(MemoryView()))

    def outside(self) -> Path:
        if self.refusal:
            raise Permanent(self.refusal)
        return self.joins

    def head_start(self, outcome: str) -> None:
        self.counted.append(outcome)

    def files(self, digest: Digest) -> HeldFiles:
        self.asked.append(digest)
        if digest not in self.versions:
            raise Invalid("no such version")
        return self.versions[digest]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        service = HeadStart(
            starts=self.starting,
            plan=self.plan,
            memory=self.memory,
            group=self,
            files=self.files,
            clock=self.clock,
            setting=self.setting,
            machine=lambda: self.machine,
            observer=self,
        )
        task = asyncio.create_task(service.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    def starts(self, *pairs: tuple[str, Digest]) -> None:
        self.starting.set(Starts(pending=frozenset(pairs), loading=frozenset(digest for _, digest in pairs)))

    def resident(self, digest: Digest) -> int:
        return measure(self.versions[digest])[0]

    async def until_resident(self, digest: Digest, size_bytes: int) -> None:
        await eventually(lambda: self.resident(digest) >= size_bytes)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 (the kernel tells nobody)
            await asyncio.sleep(0.005)


async def until_told(logs: Sequence[Mapping[str, Any]], count: int) -> Sequence[Mapping[str, Any]]:
    """Return when so many versions have been dealt with."""
    await eventually(lambda: len([line for line in logs if "head start" in str(line["event"])]) >= count)
    return [line for line in logs if "head start" in str(line["event"])]


def held(*paths: Path) -> HeldFiles:
    return HeldFiles(
        root=paths[0].parent, names=tuple(p.name for p in paths), size_bytes=sum(p.stat().st_size for p in paths)
    )


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """Stands for a `cgroup.procs` where nobody is charged."""
    path = tmp_path / "procs"
    path.touch()
    return path


async def test_the_weights_are_there_before_anyone_reads_them(make_file: Make, nowhere: Path) -> None:
    node = Node({A: held(make_file("one", 40 * MIB), make_file("two", 3 * MIB + 5))}, nowhere)
    assert node.resident(A) == 0
    with capture_logs() as logs:
        async with node.running():
            node.starts(("u1", A))
            (told,) = await until_told(logs, 1)
    assert node.resident(A) == 43 * MIB + 5
    assert (told["event"], told["files"], told["of"], told["ended"]) == ("head start", 2, 2, "")
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
    with capture_logs() as logs:
        async with node.running():
            node.starts(("u1", A), ("u2", A))
            await until_told(logs, 1)
            node.starts(("u1", A), ("u2", A), ("u3", B))
            await until_told(logs, 2)
            let_go(node.versions[A])
            node.starts(("u1", A), ("u4", A))  # one is stuck, and another starts: too soon to read again
            await asyncio.sleep(0.3)
            assert node.resident(A) == 0
            node.clock.ahead_seconds = AGAIN_SECONDS
            node.starts(("u1", A), ("u4", A), ("u5", A))
            await until_told(logs, 3)
    assert node.asked == [A, B, A]
    assert node.resident(A) == MIB


@pytest.mark.parametrize(
    ("setting", "memory", "machine", "expected", "why"),
    [
        (None, MemoryView(), ROOMY, ["one", "two"], ""),
        (128 * MIB, MemoryView(), ROOMY, ["one"], "the setting memory_budget is 134 MB"),
        (None, MemoryView(held_bytes=28 * GIB + 700 * MIB), ROOMY, ["one"], "34.4 GB are available here"),
        (None, MemoryView(states={B: Residency(resident_bytes=30 * GIB)}), ROOMY, [], "32.2 GB are others'"),
        (None, MemoryView(states={A: Residency(resident_bytes=30 * GIB)}), ROOMY, ["one", "two"], ""),  # its own
        (None, MemoryView(), CRAMPED, [], "processes here wait for memory 11 % of the time"),
        (0, MemoryView(), ROOMY, [], "the setting memory_budget is 0 B"),
    ],
)
async def test_no_more_is_read_than_there_is_room_for(
    make_file: Make,
    nowhere: Path,
    setting: int | None,
    memory: MemoryView,
    machine: Machine,
    expected: list[str],
    why: str,
) -> None:
    one, two = make_file("one", 96 * MIB), make_file("two", 40 * MIB)
    node = Node({A: held(one, two)}, nowhere, setting=setting, machine=machine)
    node.memory.set(memory)
    with capture_logs() as logs:
        async with node.running():
            node.starts(("u1", A))
            (told,) = await until_told(logs, 1)
    assert [path.name for path in (one, two) if measure(held(path))[0]] == expected
    assert told["event"] == ("head start" if expected else "no head start")
    assert why in str(told["ended" if expected else "reason"])
    assert node.counted == [("none", "part", "whole")[len(expected)]]


async def test_what_one_start_was_given_is_not_there_for_another(make_file: Make, nowhere: Path) -> None:
    node = Node({A: held(make_file("a", 96 * MIB)), B: held(make_file("b", 96 * MIB))}, nowhere, setting=128 * MIB)
    with capture_logs() as logs:
        async with node.running():
            node.starts(("u1", A), ("u2", B))
            first, second = await until_told(logs, 2)
    assert (first["digest"], second["digest"]) == (A, B)
    assert "101 MB are others'" in str(second["reason"])
    assert node.resident(B) == 0


async def test_a_pod_that_waits_for_a_download_goes_first(make_file: Make, nowhere: Path) -> None:
    node = Node({A: held(make_file("a", MIB))}, nowhere)
    node.plan.set(URGENT)
    async with node.running():
        node.starts(("u1", A))
        await asyncio.sleep(0.3)
        assert (node.asked, node.resident(A)) == ([], 0)
        node.plan.set(NodePlan())
        await node.until_resident(A, MIB)


@pytest.mark.parametrize("cause", ["urgent", "gone", "cramped"])
async def test_reading_ends_when_there_is_a_reason(
    make_file: Make, nowhere: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    async def slow(files: object, procs: object) -> None:  # a disk that takes its time
        await asyncio.sleep(3600)

    node = Node({A: held(make_file("a", MIB))}, nowhere)
    monkeypatch.setattr("agent.models.head_start.read_in", slow)
    monkeypatch.setattr("agent.models.head_start.LOOK_SECONDS", 0.02)
    with capture_logs() as logs:
        async with node.running():
            node.starts(("u1", A))
            await eventually(lambda: bool(node.asked))
            await asyncio.sleep(0.1)
            match cause:
                case "urgent":
                    node.plan.set(URGENT)
                case "gone":
                    node.starts()
                case _:
                    node.machine = CRAMPED
            (told,) = await until_told(logs, 1)
            if cause == "urgent":
                node.plan.set(NodePlan())
                await eventually(lambda: node.asked == [A, A])  # it goes on afterwards
    expected = {
        "urgent": "a pod waits for a download",
        "gone": "no pod waits for it any more",
        "cramped": "processes here wait for memory 11 % of the time",
    }
    assert told["ended"] == expected[cause]
    assert node.counted[0] == "stopped"
    assert node.asked == ([A, A] if cause == "urgent" else [A])


async def test_what_cannot_be_read_costs_the_next_one_nothing(make_file: Make, nowhere: Path) -> None:
    gone = held(make_file("gone", MIB))
    (gone.root / "gone").unlink()
    node = Node({A: gone, B: held(make_file("b", MIB))}, nowhere)
    async with node.running():
        node.starts(("u1", GONE), ("u2", A), ("u3", B))
        await node.until_resident(B, MIB)
    assert node.asked == [GONE, A, B]


async def test_where_everybody_would_be_charged_nothing_is_read(make_file: Make, nowhere: Path) -> None:
    node = Node({A: held(make_file("a", MIB))}, nowhere, refusal="no cgroups")
    with capture_logs() as logs:
        async with node.running():
            node.starts(("u1", A))
            (told,) = await until_told(logs, 1)
    assert (told["event"], told["reason"]) == ("no head start", "no cgroups")
    assert node.counted == ["none"]
    assert node.resident(A) == 0


async def test_cancelled_it_leaves_no_reader(make_file: Make, nowhere: Path) -> None:
    node = Node({A: held(make_file("a", 512 * MIB))}, nowhere)
    before = set(descendants(os.getpid()))
    async with node.running():
        node.starts(("u1", A))
        await eventually(lambda: nowhere.stat().st_size > 0)
    assert not set(descendants(os.getpid())) - before
