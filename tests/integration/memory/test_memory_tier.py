"""The memory tier against the real kernel: pages, cgroups, a real process that takes memory. Only the plan file is short."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from agent.core.assignment import Assignment, EndpointWant, ModelWant, Window
from agent.core.clock import SystemClock
from agent.core.inventory import Inventory, MemoryView, ModelLevel, ModelState, with_residency
from agent.core.latest import Latest
from agent.core.refs import Digest, EndpointKey, parse_model_uri
from agent.models.machine import read_machine
from agent.models.memory_group import MemoryGroup
from agent.models.memory_tier import MemoryTier
from agent.models.resident import HeldFiles, measure
from agent.plan.decision import NodePlan
from agent.plan.memory_budget import Machine, Requests
from agent.plan.planning import Limits, plan
from tests.integration.memory.conftest import CGROUPS, MEMORY_V1

pytestmark = pytest.mark.root
MIB, GIB = 1 << 20, 1 << 30
A, B = Digest("sha256:" + "a" * 64), Digest("sha256:" + "b" * 64)
Make = Callable[[str, int], Path]


@dataclass
class Counted:
    """What was let go, and why."""

    causes: list[str]

    def released(self, cause: str) -> None:
        self.causes.append(cause)


class Node:
    """The tier and the real plan in a loop: each cycle plans from what the tier said last."""

    def __init__(
        self,
        group: MemoryGroup,
        files: dict[Digest, HeldFiles],
        *,
        budget: int | None,
        machine: Callable[[], Machine] = read_machine,
    ) -> None:
        self.clock, self.files, self.counted = SystemClock(), files, Counted([])
        self.plan: Latest[NodePlan] = Latest(NodePlan())
        self.memory: Latest[MemoryView] = Latest(MemoryView())
        self.requests: Latest[Requests | None] = Latest(None)
        self.waiting: frozenset[EndpointKey] = frozenset()
        self.missing: tuple[EndpointWant, ...] = ()
        self.endpoints = tuple(self._endpoint(d, n) for n, d in enumerate(files))
        self.group = group
        self.tier = MemoryTier(
            plan=self.plan,
            memory=self.memory,
            requests=self.requests,
            group=group,
            files=lambda digest: files[digest],
            clock=self.clock,
            setting=budget,
            machine=machine,
            observer=self.counted,
        )

    def _endpoint(self, digest: Digest, n: int) -> EndpointWant:
        now = self.clock.now()
        size = self.files[digest].size_bytes
        want = ModelWant(name=f"m{n}", uri=parse_model_uri(f"s3://models/{n}/"), digest=digest, size_bytes=size)
        window = Window(ready_by=now, until=now + timedelta(hours=1))
        key = EndpointKey(namespace="team", name=f"e{n}")
        return EndpointWant(key=key, models=(want,), windows=(window,), memory=True, priority=500 - n)

    def inventory(self) -> Inventory:
        states = {
            d: ModelState(digest=d, level=ModelLevel.COMMITTED, done_bytes=f.size_bytes, total_bytes=f.size_bytes)
            for d, f in self.files.items()
        }
        memory = self.memory.get()
        models = with_residency(states, memory)
        return Inventory(models=models, memory=memory, proved=True, waiting=self.waiting)

    async def cycle(self) -> None:
        assignment = Assignment(endpoints=(*self.endpoints, *self.missing))
        self.plan.set(plan(assignment, self.inventory(), self.clock.now(), Limits()))
        await self.tier.look()

    async def until(self, holds: Callable[[Inventory], bool], seconds: float = 60) -> Inventory:
        async with asyncio.timeout(seconds):
            while not holds(self.inventory()):
                await self.cycle()
                await asyncio.sleep(0.05)
        return self.inventory()

    def resident(self, digest: Digest) -> bool:
        model = self.inventory().models[digest]
        return model.level is ModelLevel.RESIDENT and "being read" not in model.reason


def held(*paths: Path) -> HeldFiles:
    found = [p.stat() for p in paths]
    return HeldFiles(
        root=paths[0].parent,
        names=tuple(p.name for p in paths),
        inodes=frozenset(f.st_ino for f in found),
        size_bytes=sum(f.st_size for f in found),
    )


def bounded(cgroup: Path, size: int) -> MemoryGroup:
    """The tier's group below a parent that is bounded itself, as a machine is."""
    (MEMORY_V1 / cgroup / "memory.limit_in_bytes").write_text(str(size))
    return MemoryGroup(CGROUPS, f"{cgroup}/tier")


async def test_one_gib_is_resident_by_cachestat_within_the_budget_and_charged_to_the_group(
    cgroup: Path, make_file: Make
) -> None:
    files = held(make_file("weights", GIB))
    budget = GIB + 64 * MIB
    node = Node(MemoryGroup(CGROUPS, f"{cgroup}/tier"), {A: files}, budget=budget)
    told = await node.until(lambda _: node.resident(A))
    assert measure(files)[0] >= 0.95 * GIB
    assert told.models[A].resident_bytes >= 0.95 * GIB
    assert 0.95 * GIB <= node.group.used_bytes() <= budget
    assert int((node.group.path / "memory.limit_in_bytes").read_text()) == budget
    assert told.models[A].reason.endswith("% in memory")


async def test_what_is_over_the_budget_is_refused_with_numbers_and_not_read(cgroup: Path, make_file: Make) -> None:
    files = held(make_file("weights", 64 * MIB))
    node = Node(MemoryGroup(CGROUPS, f"{cgroup}/tier"), {A: files}, budget=64 * MIB)
    told = await node.until(lambda i: "needs" in i.models[A].reason)
    assert told.models[A].reason == (
        "not kept in memory: needs 84.2 MB, and 67.1 MB of 67.1 MB are left (the setting memory_budget is 67.1 MB)"
    )
    await node.cycle()
    assert measure(files)[0] == 0
    assert told.models[A].level is ModelLevel.COMMITTED


async def test_a_process_that_needs_the_memory_gets_it_and_the_tier_lets_go_as_a_whole(
    cgroup: Path, make_file: Make
) -> None:
    group = bounded(cgroup, 400 * MIB)
    files = held(make_file("weights", 256 * MIB))
    node = Node(group, {A: files}, budget=GIB)
    await node.until(lambda _: node.resident(A))
    pod = MEMORY_V1 / cgroup / "pod"
    pod.mkdir()
    take = f"import os,sys; open({str(pod / 'cgroup.procs')!r},'w').write('0'); x=bytearray(300<<20); print(len(x)); sys.stdin.read()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", take, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"314572800\n"  # it got all it asked for
        told = await node.until(lambda _: bool(node.counted.causes))
        assert node.counted.causes == ["pressure"]
        assert "the kernel took" in told.models[A].reason
        assert measure(files)[0] == 0
        assert node.group.held() == {}
        await node.cycle()
        await node.cycle()
        assert not node.resident(A)  # left alone for a while: it does not fight
        assert measure(files)[0] == 0
    finally:
        process.kill()
        await process.wait()


async def test_after_the_window_it_is_let_go_but_for_a_file_that_a_kept_version_shares(
    cgroup: Path, make_file: Make, tmp_path: Path
) -> None:
    shared, own, other = make_file("a/shared", 32 * MIB), make_file("a/own", 32 * MIB), make_file("b/own", 32 * MIB)
    os.link(shared, tmp_path / "b" / "shared")
    first, second = held(shared, own), held(tmp_path / "b" / "shared", other)
    node = Node(MemoryGroup(CGROUPS, f"{cgroup}/tier"), {A: first, B: second}, budget=GIB)
    await node.until(lambda _: node.resident(A) and node.resident(B))
    node.endpoints = node.endpoints[1:]
    await node.until(lambda _: bool(node.counted.causes))
    assert node.counted.causes == ["window"]
    assert measure(held(own))[0] == 0
    assert measure(second)[0] >= 0.99 * 64 * MIB
    node.endpoints = ()
    await node.until(lambda i: i.memory == MemoryView())
    assert measure(second)[0] == 0
    assert node.group.held() == {}


async def test_a_cgroup_that_a_process_is_still_in_is_removed_once_it_is_gone(cgroup: Path, make_file: Make) -> None:
    node = Node(MemoryGroup(CGROUPS, f"{cgroup}/tier"), {A: held(make_file("weights", MIB))}, budget=GIB)
    await node.until(lambda _: node.resident(A))
    lingers = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        node.group.procs(A).write_text(str(lingers.pid))
        node.endpoints = ()
        await node.until(lambda _: bool(node.counted.causes))
        await node.cycle()
        assert set(node.group.held()) == {A}
    finally:
        lingers.kill()
        await lingers.wait()
    await node.until(lambda _: not node.group.held(), seconds=10)
    assert await node.tier.look() is None  # with nothing to hold, nothing runs


async def test_reading_stops_at_once_for_a_waiting_pod_and_goes_on_where_it_was(cgroup: Path, make_file: Make) -> None:
    files = held(*(make_file(f"w{n}", 128 * MIB) for n in range(4)))
    node = Node(MemoryGroup(CGROUPS, f"{cgroup}/tier"), {A: files}, budget=GIB)
    await node.until(lambda _: measure(files)[0] > 16 * MIB)
    cold = replace(node.endpoints[0].models[0], name="cold", digest=B)
    waits = replace(node.endpoints[0], key=EndpointKey(namespace="team", name="cold"), models=(cold,), memory=False)
    node.missing, node.waiting = (waits,), frozenset({waits.key})
    started = time.monotonic()
    await node.cycle()
    assert time.monotonic() - started < 5
    there = measure(files)[0]
    await asyncio.sleep(0.5)
    assert measure(files)[0] == there
    node.missing, node.waiting = (), frozenset()
    await node.until(lambda _: node.resident(A))
    assert node.counted.causes == []


async def test_pods_that_request_the_memory_take_the_budget_away(cgroup: Path, make_file: Make) -> None:
    files = held(make_file("weights", 64 * MIB))
    node = Node(MemoryGroup(CGROUPS, f"{cgroup}/tier"), {A: files}, budget=None)
    node.requests.set(Requests(allocatable_bytes=4 * GIB, requested_bytes=GIB))
    await node.until(lambda _: node.resident(A))
    node.requests.set(Requests(allocatable_bytes=4 * GIB, requested_bytes=4 * GIB - 64 * MIB))
    told = await node.until(lambda _: bool(node.counted.causes))
    assert node.counted.causes == ["budget"]
    assert told.models[A].reason == (
        "not kept in memory: needs 84.2 MB, and 67.1 MB of 67.1 MB are left (pods request 4.23 GB of 4.29 GB allocatable)"
    )
    assert measure(files)[0] == 0


@pytest.mark.parametrize(
    "short",
    [
        Machine(total_bytes=8 * GIB, available_bytes=4 * GIB, stalled_percent=40),
        Machine(total_bytes=8 * GIB, available_bytes=500 * MIB),
    ],
)
async def test_a_machine_that_runs_short_gets_everything_back(cgroup: Path, make_file: Make, short: Machine) -> None:
    files = held(make_file("weights", 64 * MIB))
    machines = [Machine(total_bytes=8 * GIB, available_bytes=4 * GIB)]
    node = Node(MemoryGroup(CGROUPS, f"{cgroup}/tier"), {A: files}, budget=GIB, machine=lambda: machines[-1])
    await node.until(lambda _: node.resident(A))
    machines.append(short)
    told = await node.until(lambda _: bool(node.counted.causes))
    assert node.counted.causes == ["pressure"]
    assert measure(files)[0] == 0
    assert "not kept in memory: needs 84.2 MB, and 0 B of 0 B are left" in told.models[A].reason
    machines.append(machines[0])
    await node.cycle()
    await node.cycle()
    assert measure(files)[0] == 0  # not at once again


async def test_an_agent_that_restarts_finds_what_it_held_and_reads_nothing_again(cgroup: Path, make_file: Make) -> None:
    files = held(make_file("weights", 64 * MIB))
    group = MemoryGroup(CGROUPS, f"{cgroup}/tier")
    first = Node(group, {A: files}, budget=GIB)
    await first.until(lambda _: first.resident(A))
    charged = group.used_bytes()
    second = Node(group, {A: files}, budget=GIB)
    running = asyncio.create_task(second.tier.run(), name="memory")
    try:
        await asyncio.sleep(0.2)  # its plan is not known yet
        assert measure(files)[0] >= 0.99 * 64 * MIB
    finally:
        running.cancel()
        await asyncio.wait({running})
    await second.until(lambda _: second.resident(A))
    assert abs(group.used_bytes() - charged) < 2 * MIB
    second.endpoints = ()
    await second.until(lambda _: bool(second.counted.causes))
    assert measure(files)[0] == 0


async def test_without_a_cgroup_nothing_is_read_and_the_reason_says_so(tmp_path: Path, make_file: Make) -> None:
    files = held(make_file("weights", MIB))
    node = Node(MemoryGroup(tmp_path / "no-cgroups", "tier"), {A: files}, budget=GIB)
    told = await node.until(lambda i: "no memory cgroup" in i.models[A].reason)
    assert told.memory.budget_bytes is None
    assert measure(files)[0] == 0


def test_the_machine_s_memory_is_read(tmp_path: Path) -> None:
    found = read_machine()
    assert 0 < found.available_bytes <= found.total_bytes
    (tmp_path / "pressure").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    500 kB\n")
    (tmp_path / "pressure" / "memory").write_text("some avg10=12.34 avg60=0.00 avg300=0.00 total=1\nfull avg10=1.00\n")
    assert read_machine(tmp_path).stalled_percent == 12.34
    (tmp_path / "pressure" / "memory").unlink()
    assert read_machine(tmp_path).available_bytes == 500 * 1024
