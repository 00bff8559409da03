"""Active tests: on an idle GPU only, one at a time, in a child with a deadline, and never sooner than the last result allows.

Which GPU may be tested at all (under the start-up taint, or to recover) is decided by `Health.due`.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import structlog

from agent.core.clock import Clock
from agent.core.errors import PrewarmError
from agent.core.latest import Signal
from agent.gpu.children import ChildProcess, Gone, NoAnswer
from agent.gpu.observation import Gpu, Outcome, TestResult

DEADLINE_SECONDS = 30.0  # a test takes 3 s, a first context without persistence mode some more; beyond this it hangs
RETRY_SECONDS, MOST_RETRY_SECONDS = 60.0, 3600.0
BUSY_BYTES = 500 << 20  # in use by somebody, whoever it is
MEGABYTES, SIZE = 256, 1024
# GB/s of one lane, one way, raw, by PCIe generation
LANE_RATE = {1: 0.25, 2: 0.5, 3: 15.8 / 16, 4: 31.5 / 16, 5: 63.0 / 16, 6: 121.0 / 16}

log = structlog.get_logger(__name__)

OnResult = Callable[[Gpu, TestResult], None]


class RunTest(Protocol):
    """Runs one test."""

    def __call__(self, gpu: Gpu) -> Awaitable[TestResult]:
        """Return how it ended; never raises a PrewarmError."""
        ...


def why_not_now(gpu: Gpu) -> str:
    """Return why a GPU, as just asked, cannot be tested now; "" if it can. What cannot be seen counts as busy."""
    memory, processes = gpu.values("memory"), gpu.value("processes")
    if memory is None or processes is None:
        return "it cannot be seen who uses it"
    if processes:
        return f"{processes} processes use it"
    return "its memory is in use" if memory[0] > BUSY_BYTES else ""


def why_never(gpu: Gpu) -> str:
    """Return why a GPU cannot be tested as it is set up; "" if it can."""
    if gpu.value("mig"):
        return "MIG is on"
    return "its compute mode is exclusive" if gpu.value("compute_mode") else ""


def link_rate(gpu: Gpu) -> float:
    """Return the raw rate of its PCIe link at its best, one way, in GB/s; 0 if unknown."""
    (_, generation), (_, lanes) = gpu.values("pcie_generation") or (0, 0), gpu.values("pcie_width") or (0, 0)
    return LANE_RATE.get(generation, 0.0) * lanes


class Tester:
    """Takes the GPUs that are due, tests one at a time, and tells the result."""

    name = "active tests"

    def __init__(self, run_test: RunTest, on_result: OnResult, *, clock: Clock) -> None:
        self._run_test = run_test
        self._on_result = on_result
        self._clock = clock
        self._wake = Signal()
        self._next: Gpu | None = None
        self._not_before: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    def wants(self, due: Sequence[Gpu]) -> bool:
        """Say whether a test of one of them could start, if it were found idle."""
        return self._next is None and any(self._is_time(gpu) for gpu in due)

    def offer(self, due: Sequence[Gpu]) -> None:
        """Start with the first that is idle and may be tested again."""
        for gpu in due:
            if self._next is None and self._is_time(gpu):
                if reason := why_never(gpu):
                    self._ended(gpu, TestResult(outcome=Outcome.SKIPPED, text=reason, lasting=True))
                elif not why_not_now(gpu):
                    self._next = gpu
                    self._wake.fire()

    async def run(self) -> None:
        """Run the tests until cancelled."""
        while True:
            await self._wake.wait()
            if (gpu := self._next) is not None:
                result = await self._run_test(gpu)
                self._next = None
                self._ended(gpu, result)

    def _is_time(self, gpu: Gpu) -> bool:
        return self._clock.monotonic() >= self._not_before.get(gpu.uuid, float("-inf"))

    def _ended(self, gpu: Gpu, result: TestResult) -> None:
        log.info("active test ended", gpu=gpu.index, uuid=gpu.uuid, outcome=result.outcome.value, result=result.text)
        failures = 0 if result.outcome is Outcome.PASSED else self._failures.get(gpu.uuid, 0) + 1
        self._failures[gpu.uuid] = failures
        pause = min(RETRY_SECONDS * 2.0 ** max(0, failures - 1), MOST_RETRY_SECONDS)
        self._not_before[gpu.uuid] = self._clock.monotonic() + pause
        self._on_result(gpu, result)


class CudaTest:
    """`RunTest` in a child process; while one cannot be killed, none is started."""

    def __init__(
        self, *, libraries: Callable[[], str], environment: Mapping[str, str] | None = None, megabytes: int = MEGABYTES,
        size: int = SIZE, deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:  # fmt: skip
        self._libraries = libraries
        self._environment = environment or {}
        self._megabytes = megabytes
        self._size = size
        self._deadline_seconds = deadline_seconds
        self._stuck: ChildProcess | None = None

    async def __call__(self, gpu: Gpu) -> TestResult:
        """See `RunTest`."""
        if self._stuck and not self._stuck.exited:
            return TestResult(outcome=Outcome.HUNG, text=f"process {self._stuck.pid} sits in the driver")
        self._stuck = None
        try:
            child = await self._start(gpu)
        except PrewarmError as error:
            return TestResult(outcome=Outcome.SKIPPED, text=str(error))
        try:
            answer = await child.answer(self._deadline_seconds)
        except NoAnswer:
            return TestResult(outcome=Outcome.HUNG, text=f"no answer for {self._deadline_seconds:g} s")
        except Gone as error:
            return TestResult(outcome=Outcome.FAILED, text=f"the test process died (status {error.status})")
        except PrewarmError as error:
            return TestResult(outcome=Outcome.FAILED, text=str(error))
        finally:
            if not await child.close():
                log.error("active test cannot be killed", pid=child.pid)
                self._stuck = child
        if not isinstance(answer, TestResult):
            return TestResult(outcome=Outcome.FAILED, text="the test process said something else")
        return answer

    async def _start(self, gpu: Gpu) -> ChildProcess:
        libraries, given = self._libraries(), {**os.environ, **self._environment}
        environment = {
            "CUDA_VISIBLE_DEVICES": gpu.uuid,
            "CUDA_CACHE_DISABLE": "1",  # the driver would write compiled kernels into somebody's home
            # the driver finds its PTX compiler by name only
            "LD_LIBRARY_PATH": ":".join(p for p in (given.get("LD_LIBRARY_PATH", ""), libraries) if p),
        }
        arguments = (f"{link_rate(gpu):g}", str(self._megabytes), str(self._size), libraries)
        return await ChildProcess().start("cuda_test", *arguments, environment={**self._environment, **environment})
