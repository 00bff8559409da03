"""The active test's process: what it says, when it is killed. Its kernels are emulated by the stub (see tests/unit/gpu/test_ptx.py)."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from agent.gpu.children import ChildProcess
from agent.gpu.observation import Answer, Gpu, Outcome, TestResult
from agent.gpu.tester import CudaTest, why_never, why_not_now
from tests.bed import nvml

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
GPU = Gpu(index=0, uuid="GPU-0", answers={"pcie_generation": Answer(0, (1, 1)), "pcie_width": Answer(0, (1, 1))})


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.build(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def control(tmp_path: Path) -> nvml.Control:
    return nvml.Control(tmp_path / "control")


async def outcome(control: nvml.Control, library: Path, gpu: Gpu = GPU, *, deadline: float = 20) -> TestResult:
    run = CudaTest(
        libraries=lambda: "",
        environment=control.environment(library),
        megabytes=1,
        size=64,
        deadline_seconds=deadline,
    )
    return await run(gpu)


async def test_a_gpu_that_does_everything_right_passes_and_says_how_fast(control: nvml.Control, library: Path) -> None:
    found = await outcome(control, library)
    assert (found.outcome, "1 MiB of patterns" in found.text, "product exact" in found.text) == (
        Outcome.PASSED,
        True,
        True,
    )


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("memory", "1 of 262144 words of memory are wrong"),
        ("copy", "is not what it was"),
        ("product", "matrices is wrong"),
    ],
)
async def test_a_wrong_word_fails(control: nvml.Control, library: Path, wrong: str, text: str) -> None:
    control.cuda(wrong=wrong)
    found = await outcome(control, library)
    assert (found.outcome, text in found.text) == (Outcome.FAILED, True), found


async def test_copies_below_seventy_per_cent_of_the_link_fail(control: nvml.Control, library: Path) -> None:
    control.cuda(slow=100)  # 64 MiB in a tenth of a second are 0.67 GB/s
    fast = Gpu(index=0, uuid="GPU-0", answers={"pcie_generation": Answer(0, (3, 3)), "pcie_width": Answer(0, (1, 1))})
    found = await outcome(control, library, fast)
    assert (found.outcome, "copies to the GPU run at 0." in found.text) == (Outcome.FAILED, True), found
    unknown = Gpu(index=0, uuid="GPU-0")
    assert (await outcome(control, library, unknown)).outcome is Outcome.PASSED


@pytest.mark.parametrize(
    ("function", "code", "expected", "lasting"),
    [
        ("cuInit", 802, Outcome.FAILED, False),  # the fabric is not up
        ("cuInit", 999, Outcome.FAILED, False),
        ("cuDevicePrimaryCtxRetain", 46, Outcome.SKIPPED, False),
        ("cuMemAlloc_v2", 2, Outcome.SKIPPED, False),
        ("cuModuleLoadData", 222, Outcome.SKIPPED, True),
        ("cuLaunchKernel", 700, Outcome.FAILED, False),
        ("cuCtxSynchronize", 719, Outcome.FAILED, False),
    ],
)
async def test_codes_of_the_driver(
    control: nvml.Control, library: Path, function: str, code: int, expected: Outcome, lasting: bool
) -> None:
    control.set(function, err=code)
    found = await outcome(control, library)
    assert (found.outcome, found.lasting, function in found.text) == (expected, lasting, True)


async def test_too_little_free_memory_skips(control: nvml.Control, library: Path) -> None:
    control.cuda(free=1 << 30)
    found = await outcome(control, library)
    assert (found.outcome, found.text) == (Outcome.SKIPPED, "only 1024 MiB of its memory are free")


async def test_without_the_library_it_can_never_be_run(control: nvml.Control, tmp_path: Path) -> None:
    found = await outcome(control, tmp_path / "none" / "libnvidia-ml.so.1")
    assert (found.outcome, found.lasting, found.text) == (Outcome.SKIPPED, True, "libcuda.so.1 was not found")


async def test_a_crash_of_the_library_fails(control: nvml.Control, library: Path) -> None:
    control.crash("cuMemcpyDtoHAsync_v2")
    assert await outcome(control, library) == TestResult(
        outcome=Outcome.FAILED, text="the test process died (status -6)"
    )


async def test_a_hang_is_told_at_the_deadline_and_the_process_is_gone(control: nvml.Control, library: Path) -> None:
    control.hang("cuCtxSynchronize")
    found = await outcome(control, library, deadline=1)
    assert found == TestResult(outcome=Outcome.HUNG, text="no answer for 1 s")


async def test_while_one_cannot_be_killed_no_other_is_started(
    control: nvml.Control, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.hang("cuInit")
    killed = ChildProcess.close

    async def survives(child: ChildProcess) -> bool:
        await killed(child)
        child._exit.clear()
        return False

    monkeypatch.setattr(ChildProcess, "close", survives)
    environment = control.environment(library)
    run = CudaTest(libraries=lambda: "", environment=environment, megabytes=1, size=64, deadline_seconds=5)
    assert (await run(GPU)).outcome is Outcome.HUNG
    control.clear()
    assert "sits in the driver" in (await run(GPU)).text
    assert run._stuck
    run._stuck._exit.set()
    monkeypatch.undo()
    assert (await asyncio.wait_for(run(GPU), 30)).outcome is not Outcome.HUNG


def test_what_cannot_be_seen_counts_as_busy() -> None:
    idle = {"memory": Answer(0, (0, 80 << 30, 80 << 30)), "processes": Answer(0, (0,))}
    assert why_not_now(Gpu(index=0, answers=idle)) == ""
    for question, answer in (
        ("processes", Answer(0, (2,))), ("processes", Answer(3)), ("memory", Answer(3)),
        ("memory", Answer(0, (600 << 20, 1, 1))),
    ):  # fmt: skip
        assert why_not_now(Gpu(index=0, answers=idle | {question: answer}))


def test_mig_and_exclusive_modes_are_never_tested() -> None:
    assert why_never(Gpu(index=0, answers={"mig": Answer(0, (0, 0)), "compute_mode": Answer(0, (0,))})) == ""
    assert why_never(Gpu(index=0, answers={"mig": Answer(0, (1, 1))}))
    assert why_never(Gpu(index=0, answers={"compute_mode": Answer(0, (3,))}))
