"""The GPU service with its real child process: unmodified pynvml on a C stub of the library."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from agent.config import Settings
from agent.core.clock import SystemClock
from agent.core.heartbeat import Heartbeat
from agent.core.inventory import GpuReport, GpuVerdict
from agent.core.latest import Latest
from agent.gpu.events import XidClass
from agent.gpu.observation import Outcome
from agent.gpu.probe import Child, OnEvent, start_prober
from agent.gpu.service import GpuRoom, GpuService, Seams
from agent.gpu.tester import CudaTest
from tests.bed import nvml
from tests.bed.process import descendants

PATIENCE_SECONDS = 30.0  # a busy machine; every test ends as soon as it sees what it waits for
HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN, NONE = (
    GpuVerdict.HEALTHY,
    GpuVerdict.DEGRADED,
    GpuVerdict.UNHEALTHY,
    GpuVerdict.UNKNOWN,
    GpuVerdict.NONE,
)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.build(tmp_path_factory.mktemp("nvml"))


class Node:
    """A node with stub GPUs, on its bus too, and the service on it."""

    def __init__(self, directory: Path, library: Path, gpus: int = 2) -> None:
        self.control = nvml.Control(directory / "control", gpus=gpus)
        self.directory = directory
        self.pci = nvml.fake_pci(directory, gpus)
        self.log = directory / "kmsg"
        self.log.touch()
        self.environment = self.control.environment(library)
        self.cell = Latest(GpuReport())
        self.tainted: Latest[bool | None] = Latest(False)
        self.heartbeat = Heartbeat()
        self.xids: list[XidClass] = []
        self.tests: list[Outcome] = []
        self.children: list[Child] = []
        self.wrap: Callable[[Child], Child] = lambda child: child
        self.libraries = ""
        self.uptime_seconds = 1e6
        self._task: asyncio.Task[None] | None = None

    def xid(self, kind: XidClass) -> None:
        self.xids.append(kind)

    def gpu_test(self, outcome: Outcome) -> None:
        self.tests.append(outcome)

    async def start_child(self, on_event: OnEvent) -> Child:
        child = self.wrap(await start_prober(on_event, libraries=self.libraries, environment=self.environment))
        self.children.append(child)
        return child

    def start(
        self, *, gpus: str = "auto", timeout_seconds: float = 20.0, test: bool = False, poll_seconds: float = 0.1
    ) -> None:
        settings = Settings(
            pci_devices=self.pci,
            gpus=gpus,
            gpu_poll_seconds=poll_seconds,
            gpu_timeout_seconds=timeout_seconds,
            gpu_test=test,
            kernel_log=self.log,
            root=self.directory,
        )
        service = GpuService(
            GpuRoom(settings=settings, boot_id="boot-1", tainted=self.tainted, gpu=self.cell),
            clock=SystemClock(),
            heartbeat=self.heartbeat,
            observer=self,
            seams=Seams(
                start=self.start_child,
                run_test=CudaTest(
                    libraries=lambda: "", environment=self.environment, megabytes=4, size=64, deadline_seconds=20
                ),
                uptime_seconds=lambda: self.uptime_seconds,
                rng=random.Random(1),
            ),
        )
        self._task = asyncio.create_task(service.run(), name="gpu")

    def logged(self, text: str, *, seq: int = 1) -> None:
        """A line of the kernel log."""
        with self.log.open("a") as log:
            log.write(f"4,{seq},1000,-;{text}\n SUBSYSTEM=pci\n")

    async def until(self, verdict: GpuVerdict, words: str = "", *, seconds: float = PATIENCE_SECONDS) -> GpuReport:
        try:
            async with asyncio.timeout(seconds):
                async for report in self.cell.follow():
                    if report.verdict is verdict and words in report.reason:
                        return report
        except TimeoutError:
            pytest.fail(f"no {verdict.value} {words!r} within {seconds:g} s: {self.cell.get()}")
        raise AssertionError

    async def beats(self, count: int) -> None:
        """Return after that many completed cycles."""
        last = self.heartbeat.ages_seconds(0)["gpu"]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while count:
                await asyncio.sleep(0.01)
                now = self.heartbeat.ages_seconds(0)["gpu"]
                count, last = count - (now != last), now

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


@pytest_asyncio.fixture
async def node(tmp_path: Path, library: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path, library)
    yield made
    await made.stop()
    await eventually(lambda: all(child.exited for child in made.children if not isinstance(child, Unreapable)))


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not true():  # noqa: ASYNC110 (what is watched is outside this loop)
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_node_whose_gpus_all_answer_is_healthy(node: Node) -> None:
    node.start()
    report = await node.until(HEALTHY)
    assert report.count == 2
    await node.beats(3)
    assert len(node.children) == 1  # one standing child serves every poll


async def test_nothing_is_claimed_before_the_first_answer(node: Node) -> None:
    node.control.hang("nvmlInitWithFlags")
    node.start()
    assert node.cell.get().verdict is UNKNOWN
    assert node.heartbeat.ages_seconds(0)["gpu"] == float("inf")


async def test_the_recovery_action_is_published_and_clears(node: Node) -> None:
    node.start()
    await node.until(HEALTHY)
    node.control.recovery(1, 2)
    await node.until(UNHEALTHY, "GPU 1")
    node.control.recovery(1, 0)
    await node.until(HEALTHY)


async def test_a_field_that_is_not_supported_is_not_read_as_no_action(node: Node) -> None:
    node.control.field(0, nvml.RECOVERY_ACTION, 0, ret=3)
    node.control.field(1, nvml.RECOVERY_ACTION, 2, ret=3)
    node.start()
    await node.until(HEALTHY, "2 without a recovery action")


async def test_a_lost_gpu_is_named(node: Node) -> None:
    node.start()
    await node.until(HEALTHY)
    node.control.lost(1)
    await node.until(UNHEALTHY, "GPU 1 (GPU-00000000-0000-4000-8000-000000000001): recovery: the GPU is lost (code 15)")


async def test_a_gpu_that_is_lost_from_the_start_and_comes_back_is_healthy(node: Node) -> None:
    node.control.lost(1)
    node.start()
    await node.until(UNHEALTHY, "GPU 1: nvmlDeviceGetHandleByIndex: the GPU is lost (code 15)")
    node.control.clear(gpus=2)
    await node.until(HEALTHY)


@pytest.mark.parametrize("code", [9, 18, 999])
async def test_a_driver_that_refuses_to_start_is_unhealthy_and_a_fresh_child_sees_it_repaired(
    node: Node, code: int
) -> None:
    node.control.set("nvmlInitWithFlags", err=code)
    node.start()
    await node.until(UNHEALTHY, "NVML refused to start")
    node.control.set("nvmlInitWithFlags", err=0)
    await node.until(HEALTHY)
    assert len({child.pid for child in node.children}) > 1


async def test_a_driver_that_is_absent_soon_after_the_boot_is_awaited(
    node: Node, tmp_path: Path, library: Path
) -> None:
    node.environment["LD_LIBRARY_PATH"] = str(tmp_path)
    node.uptime_seconds = 599
    node.start()
    await node.until(UNKNOWN, "not installed yet")
    node.uptime_seconds = 600
    await node.until(UNHEALTHY, "libnvidia-ml.so.1 was not found")
    node.libraries = f"/nowhere:{library.parent}"  # where an operator's driver container would put it
    await node.until(HEALTHY)


async def test_a_missing_library_where_the_bus_shows_gpus_is_unhealthy(node: Node, tmp_path: Path) -> None:
    node.environment["LD_LIBRARY_PATH"] = str(tmp_path)
    node.start()
    await node.until(UNHEALTHY, "libnvidia-ml.so.1 was not found")


async def test_a_missing_library_and_an_empty_bus_is_no_gpu_and_keeps_no_child(node: Node, tmp_path: Path) -> None:
    node.environment["LD_LIBRARY_PATH"] = str(tmp_path)
    nvml.fake_pci(node.directory, 0)
    node.start()
    await node.until(NONE)
    assert [child.exited for child in node.children] == [True]


async def test_a_missing_library_where_the_setting_names_gpus_is_unhealthy(node: Node, tmp_path: Path) -> None:
    node.environment["LD_LIBRARY_PATH"] = str(tmp_path)
    nvml.fake_pci(node.directory, 0)
    node.start(gpus="2")
    await node.until(UNHEALTHY, "libnvidia-ml.so.1 was not found")


async def test_gpus_that_only_nvml_shows_are_judged_by_nvml(node: Node) -> None:
    nvml.fake_pci(node.directory, 0)
    node.start()
    await node.until(HEALTHY)


async def test_a_gpu_that_leaves_nvml_but_not_the_bus_is_missed(node: Node) -> None:
    node.start()
    await node.until(HEALTHY)
    node.control.gpus(1)
    await node.until(UNHEALTHY, "NVML shows 1 of the 2 GPUs")


async def test_fewer_gpus_than_the_setting_names_is_unhealthy(node: Node) -> None:
    node.start(gpus="3")
    await node.until(UNHEALTHY, "the setting gpus wants 3")


async def test_a_fatal_xid_is_published_within_a_second_and_clears_with_a_fresh_child(node: Node) -> None:
    node.start()
    await node.until(HEALTHY)
    first = node.children[0].pid
    began = time.monotonic()
    node.control.xid(1, 79)
    report = await node.until(UNHEALTHY, "Xid 79")
    assert time.monotonic() - began < 3.0
    assert (report.reason, report.count) == ("GPU 1 (GPU-00000000-0000-4000-8000-000000000001): Xid 79", 2)
    await node.until(HEALTHY)
    assert node.children[-1].pid != first
    assert node.xids == [XidClass.FATAL]


async def test_a_fatal_xid_does_not_clear_while_the_driver_asks_for_a_reset(node: Node) -> None:
    node.start()
    await node.until(HEALTHY)
    node.control.recovery(0, 1)
    node.control.xid(0, 119)
    await node.until(UNHEALTHY, "Xid 119")
    await node.beats(5)
    assert node.cell.get().verdict is UNHEALTHY


async def test_an_application_xid_is_counted_and_changes_nothing(node: Node) -> None:
    node.start()
    await node.until(HEALTHY)
    node.control.xid(0, 31)
    await eventually(lambda: bool(node.xids))
    await node.beats(2)
    assert (node.xids, node.cell.get().verdict, len(node.children)) == ([XidClass.APPLICATION], HEALTHY, 1)


async def test_an_xid_in_the_kernel_log_is_heard(node: Node) -> None:
    node.control.event_types(0, 0)
    node.control.event_types(1, 0)
    node.start()
    await node.until(HEALTHY)
    began = time.monotonic()
    node.logged("NVRM: Xid (PCI:0000:11:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.")
    await node.until(UNHEALTHY, "GPU 1 (GPU-00000000-0000-4000-8000-000000000001): Xid 79")
    assert time.monotonic() - began < 4.0
    assert node.xids == [XidClass.FATAL]
    await node.until(HEALTHY)


async def test_an_xid_from_before_the_start_counts_until_it_is_proved_and_not_again(node: Node) -> None:
    node.logged("NVRM: Xid (PCI:0000:10:00): 48, pid=7, name=python, DBE", seq=7)
    node.control.recovery(0, 1)
    node.start()
    await node.until(UNHEALTHY, "Xid 48")
    node.control.recovery(0, 0)
    await node.until(HEALTHY)
    await eventually((node.directory / "gpu-proofs.json").exists)
    await node.stop()
    node.cell.set(GpuReport())
    node.start()  # an agent that was updated
    await node.until(HEALTHY)
    node.logged("NVRM: Xid (PCI:0000:10:00): 48, pid=7, name=python, DBE", seq=8)
    await node.until(UNHEALTHY, "Xid 48")


async def test_gpus_without_events_are_still_polled(node: Node) -> None:
    node.control.event_types(0, 0)
    node.control.event_types(1, 0)
    node.start()
    await node.until(HEALTHY)
    node.control.recovery(0, 2)
    await node.until(UNHEALTHY, "reboot the node")


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2", "nvmlDeviceGetFieldValues"])
async def test_a_hanging_call_is_told_and_its_process_killed_and_the_loop_goes_on(node: Node, function: str) -> None:
    node.control.hang(function)
    node.start(timeout_seconds=1.0)
    await node.until(UNHEALTHY, "hung")
    assert not alive(node.children[0].pid)
    await node.beats(1)
    node.control.clear(gpus=2)
    await node.until(HEALTHY)


async def test_a_healthy_node_that_hangs_is_unhealthy_at_the_deadline(node: Node) -> None:
    node.start(timeout_seconds=1.5)
    await node.until(HEALTHY)
    began = time.monotonic()
    node.control.hang("nvmlDeviceGetFieldValues", gpu=1)
    await node.until(UNHEALTHY, "hung")
    assert time.monotonic() - began < 1.5 + 0.1 + 4.0


class Unreapable:
    """A prober that SIGKILL does not end, as one in uninterruptible sleep: `release` lets the kernel reap it."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.exited = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._child, name)

    async def close(self) -> bool:
        await self._child.close()
        return self.exited

    def release(self) -> None:
        self.exited = True


async def test_a_child_that_cannot_be_killed_is_told_and_not_replaced_until_it_ends(node: Node) -> None:
    node.wrap = Unreapable  # type: ignore[assignment]
    node.control.hang("nvmlDeviceGetUUID")
    node.start(timeout_seconds=3.0)
    await node.until(UNHEALTHY, "cannot be killed")
    node.control.clear(gpus=2)
    await node.beats(5)
    assert len(node.children) == 1
    stuck = node.children[0]
    assert isinstance(stuck, Unreapable)
    node.wrap = lambda child: child
    stuck.release()
    await node.until(HEALTHY)
    assert len(node.children) == 2


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetUUID"])
async def test_a_crashing_driver_is_unknown_then_unhealthy_and_restarts_are_few(node: Node, function: str) -> None:
    node.control.crash(function)
    node.start()
    await node.until(UNKNOWN, "signal 6")
    await node.until(UNHEALTHY, "signal 6")
    assert len(node.children) == 2
    node.control.clear(gpus=2)
    await node.until(HEALTHY)


async def test_a_child_killed_by_somebody_is_replaced(node: Node) -> None:
    node.start()
    await node.until(HEALTHY)
    os.kill(node.children[0].pid, signal.SIGKILL)
    await node.until(UNKNOWN, "signal 9")
    await node.until(HEALTHY)
    assert len(node.children) == 2


@pytest.mark.parametrize("witness", ["NVML", "kernel"])
async def test_a_new_driver_version_gets_a_fresh_child(node: Node, witness: str) -> None:
    node.start()
    await node.until(HEALTHY)
    if witness == "NVML":
        node.control.driver("999.1")
    else:
        (node.directory / "drivers" / "nvidia" / "module" / "version").write_text("999.1\n")
    await eventually(lambda: len(node.children) == 2)
    await node.beats(2)
    assert (node.children[0].exited, node.cell.get().verdict) == (True, HEALTHY)


async def test_a_new_gpu_gets_a_fresh_child_that_hears_its_events(node: Node) -> None:
    node.start()
    await node.until(HEALTHY)
    node.control.gpus(3)
    nvml.fake_pci(node.directory, 3)
    await eventually(lambda: len(node.children) == 2 and node.cell.get().count == 3)
    await node.beats(2)
    node.control.xid(2, 48)
    await node.until(UNHEALTHY, "Xid 48")


async def test_a_driver_replaced_under_a_running_child_is_a_mismatch_until_the_library_follows(node: Node) -> None:
    node.start()
    await node.until(HEALTHY)
    for function in ("nvmlSystemGetDriverVersion", "nvmlInitWithFlags"):
        node.control.set(function, err=18)
    await node.until(UNHEALTHY, "different versions")
    node.control.clear(gpus=2)
    node.control.driver("999.1")
    await node.until(HEALTHY)


async def test_a_recovered_gpu_needs_a_passed_test_on_the_idle_gpu(node: Node) -> None:
    node.start(test=True)
    await node.until(HEALTHY)
    node.control.processes(1, 1)
    node.control.xid(1, 79)
    await node.until(UNHEALTHY, "ready again once the active test passes")
    await node.beats(8)
    assert (node.cell.get().verdict, node.tests) == (UNHEALTHY, [])
    node.control.processes(1, 0)
    await node.until(HEALTHY)
    assert node.tests == [Outcome.PASSED]


async def test_a_gpu_that_computes_wrongly_stays_unhealthy(node: Node) -> None:
    node.control.cuda(wrong="product")
    node.start(test=True)
    await node.until(HEALTHY)  # never tested while warm
    node.control.xid(0, 79)
    await node.until(UNHEALTHY, "the active test failed: a product of integer matrices is wrong")
    await node.beats(5)
    assert (node.cell.get().verdict, node.tests) == (UNHEALTHY, [Outcome.FAILED])


async def test_a_restarted_agent_remembers_what_only_a_test_ends(node: Node) -> None:
    node.control.cuda(wrong="product")
    node.start(test=True)
    await node.until(HEALTHY)
    node.control.xid(0, 79)
    await node.until(UNHEALTHY, "the active test failed")
    await node.stop()
    node.cell.set(GpuReport())
    node.start(test=True)
    await node.until(UNHEALTHY, "the active test failed")
    await node.beats(3)
    assert (node.cell.get().verdict, node.cell.get().count) == (UNHEALTHY, 2)


async def test_under_the_start_up_taint_every_gpu_is_tested_before_it_is_healthy(node: Node) -> None:
    node.tainted.set(None)
    node.start(test=True)
    await node.until(UNKNOWN, "not known yet whether the start-up taint stands")
    node.tainted.set(True)
    await node.until(UNKNOWN, "the active test has to pass")
    await node.until(HEALTHY)
    assert node.tests == [Outcome.PASSED] * 2


async def test_without_the_taint_no_gpu_is_tested(node: Node) -> None:
    node.start(test=True)
    await node.until(HEALTHY)
    await node.beats(15)
    assert node.tests == []


async def test_eight_gpus_are_judged_within_a_second(tmp_path: Path, library: Path) -> None:
    best = float("inf")
    for _ in range(6):  # a busy machine delays one or the other
        if best < 1.0:
            break
        node = Node(tmp_path, library, gpus=8)
        began = time.monotonic()
        node.start()
        assert (await node.until(HEALTHY)).count == 8
        best = min(best, time.monotonic() - began)
        await node.stop()
    assert best < 1.0


def resident_bytes(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_thousand_cycles_cost_no_memory(node: Node) -> None:
    node.start(poll_seconds=0.001)
    await node.until(HEALTHY)
    await node.beats(100)
    growth: list[tuple[int, int]] = []
    for _ in range(3):  # a leak grows each time; this process has other tests' garbage to collect, once
        own, child = resident_bytes("self"), resident_bytes(node.children[0].pid)
        await node.beats(1000)
        growth.append((resident_bytes("self") - own, resident_bytes(node.children[0].pid) - child))
        if max(growth[-1]) < 1 << 20:
            break
    assert len(node.children) == 1
    assert max(growth[-1]) < 1 << 20, growth


async def test_cancellation_kills_the_child_even_when_it_hangs(node: Node) -> None:
    node.control.hang("nvmlDeviceGetCount_v2")
    node.start()
    await eventually(lambda: bool(node.children))
    pid = node.children[0].pid
    await node.stop()
    assert not alive(pid)


async def test_cancellation_at_any_step_leaves_no_child(tmp_path: Path, library: Path) -> None:
    before = set(descendants(os.getpid()))
    for steps in range(0, 60, 2):
        node = Node(tmp_path, library)
        node.start()
        for _ in range(steps):
            await asyncio.sleep(0)
        await node.stop()
        assert {pid for pid in set(descendants(os.getpid())) - before if alive(pid)} == set()


@pytest.mark.parametrize("hanging", [False, True])
async def test_the_child_dies_with_its_parent(tmp_path: Path, library: Path, hanging: bool) -> None:
    control = nvml.Control(tmp_path / "control")
    if hanging:
        control.hang("nvmlInitWithFlags")
    code = (
        "import asyncio, agent.gpu.probe as p\n"
        "async def main():\n"
        "    child = await p.start_prober(print)\n"
        f"    {'' if hanging else 'await child.started(20)'}\n"
        "    print(child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        env={**os.environ, **control.environment(library)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout
    pid = int(await parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    await parent.wait()
    await eventually(lambda: not alive(pid))
