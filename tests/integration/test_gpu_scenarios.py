"""What each answer of NVML does to the verdict: one prober with unmodified pynvml on the C stub, driven through a table."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest

from agent.core.inventory import GpuReport, GpuVerdict
from agent.gpu.children import child_command
from agent.gpu.findings import Around
from agent.gpu.health import Health, after_sample
from agent.gpu.observation import PciGpus, Sample, Started, parse_message
from agent.gpu.questions import SLOW
from agent.gpu.reasons import CATALOGUE, Code
from agent.gpu.report import Policy
from tests.bed import nvml

HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN = (
    GpuVerdict.HEALTHY,
    GpuVerdict.DEGRADED,
    GpuVerdict.UNHEALTHY,
    GpuVerdict.UNKNOWN,
)
Given = Callable[[nvml.Control], object]
BUS = PciGpus(present=("0000:10:00.0", "0000:11:00.0"), bound=("0000:10:00.0", "0000:11:00.0"))


class Prober:
    """A prober process, asked without an event loop."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            child_command("prober", ""),
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started = self._read()
        assert isinstance(started, Started)
        assert started.init == 0

    def sample(self) -> Sample:
        assert self.process.stdin
        self.process.stdin.write(b"%d\n" % SLOW)
        self.process.stdin.flush()
        sample = self._read()
        assert isinstance(sample, Sample)
        return sample

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _read(self) -> object:
        assert self.process.stdout
        return parse_message(self.process.stdout.readline())


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> tuple[nvml.Control, dict[str, str]]:
    directory = tmp_path_factory.mktemp("nvml")
    control = nvml.Control(directory / "control", gpus=2)
    return control, control.environment(nvml.build(directory))


@pytest.fixture(scope="module")
def standing(stub: tuple[nvml.Control, dict[str, str]]) -> Iterator[Prober]:
    prober = Prober(stub[1])
    yield prober
    prober.end()


@pytest.fixture
def control(stub: tuple[nvml.Control, dict[str, str]]) -> nvml.Control:
    stub[0].clear(gpus=2)
    return stub[0]


AROUND, ALL = Around(pci=BUS), Policy()


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens on a healthy node, after how many seconds it is looked at again, and what must then be said of it."""

    name: str
    given: Given
    verdict: GpuVerdict
    code: Code | None = None
    after: tuple[float, ...] = (10, 11)
    first: Given | None = None  # how the node is to begin with, and is healthy
    then: Given | None = None  # what happens before the last look
    fresh: bool = False  # ask a prober of its own: the standing one remembers the product
    around: Around = AROUND
    policy: Policy = ALL
    alone: GpuVerdict | None = None  # where endpoints of one GPU or of several are judged otherwise
    together: GpuVerdict | None = None


def answer(function: str, *numbers: int) -> Given:
    return lambda c: c.answer(function, *numbers, gpu=1)


def field(number: int, value: int, ret: int = 0) -> Given:
    return lambda c: c.field(1, number, value, ret=ret)


def without_field(gpu: int, number: int, control: nvml.Control) -> None:
    control.field(gpu, number, 0, ret=3)


def failing(function: str, code: int, control: nvml.Control) -> None:
    control.set(function, err=code, gpu=1)


def failing_field(number: int, code: int, control: nvml.Control) -> None:
    control.field(1, number, 0, ret=code)


def both(*givens: Given) -> Given:
    def do(control: nvml.Control) -> None:
        for given in givens:
            given(control)

    return do


def bad(name: str, given: Given, code: Code, **other: object) -> Scenario:
    reason = CATALOGUE[code]
    verdict = reason.verdict or HEALTHY
    if reason.links:
        other = {"alone": HEALTHY, "together": verdict} | other
        verdict = DEGRADED
    return Scenario(name=name, given=given, verdict=verdict, code=code, **other)  # type: ignore[arg-type]


def good(name: str, given: Given, **other: object) -> Scenario:
    return Scenario(name=name, given=given, verdict=HEALTHY, **other)  # type: ignore[arg-type]


CLOCKS, FABRIC, PCIE = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetGpuFabricInfoV", "nvmlDeviceGetCurrPcie"
MEMORY, MODE, MARGIN = "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetComputeMode", "nvmlDeviceGetMarginTemperature"
MINUTES = tuple(float(60 * n) for n in range(1, 8))
NO_MARGIN = both(lambda c: c.set(MARGIN, err=3), *(partial(without_field, n, f) for n in (0, 1) for f in (193, 194)))
FULL_LINK = both(
    answer(f"{PCIE}LinkWidth", 16), answer("nvmlDeviceGetMaxPcieLinkWidth", 16),
    answer(f"{PCIE}LinkGeneration", 5), answer("nvmlDeviceGetMaxPcieLinkGeneration", 5),
)  # fmt: skip
BUSY = both(FULL_LINK, answer("nvmlDeviceGetPerformanceState", 0), answer("nvmlDeviceGetUtilizationRates", 90))
H100 = lambda c: c.product("NVIDIA H100 80GB HBM3")  # noqa: E731
THREE = PciGpus(present=(*BUS.present, "0000:12:00.0"), bound=(*BUS.bound, "0000:12:00.0"))

SCENARIOS = [
    good("nothing wrong", lambda c: None),
    *(bad(f"recovery action {n}", field(230, n), code) for n, code in {
        1: Code.RECOVERY_RESET, 2: Code.RECOVERY_REBOOT, 3: Code.RECOVERY_DRAIN_P2P, 4: Code.RECOVERY_RESET,
        5: Code.RECOVERY_IMEX, 6: Code.RECOVERY_RESET, 7: Code.RECOVERY_REBOOT, 8: Code.RECOVERY_UNKNOWN,
        4096: Code.RECOVERY_UNKNOWN}.items()),
    bad("a recovery action counts at once", field(230, 1), Code.RECOVERY_RESET, after=(5,)),
    good("an unsupported recovery action is no zero", field(230, 2, ret=3)),
    bad("uncorrectable errors rise", field(4, 1), Code.ECC_UNCORRECTED),
    good("uncorrectable errors of its whole life", field(6, 9)),
    bad("a thousand corrected errors a second", field(3, 20_000), Code.ECC_STORM, then=field(3, 40_000)),
    good("some corrected errors", field(3, 500)),
    bad("SRAM threshold", answer("nvmlDeviceGetSramEccErrorStatus", 1), Code.SRAM_THRESHOLD),
    bad("pages wait for retirement", field(93, 1), Code.PAGES_PENDING),
    bad("63 retired pages", both(field(29, 40), field(30, 23)), Code.PAGES_RETIRED),
    good("62 retired pages", both(field(29, 40), field(30, 22))),
    bad("a remap failed", answer("nvmlDeviceGetRemappedRows", 0, 1, 0, 1), Code.REMAP_FAILED),
    bad("a remap is pending", answer("nvmlDeviceGetRemappedRows", 0, 1, 1, 0), Code.REMAP_PENDING),
    bad("512 remapped rows", answer("nvmlDeviceGetRemappedRows", 0, 512, 0, 0), Code.ROWS_REMAPPED),
    good("511 remapped rows", answer("nvmlDeviceGetRemappedRows", 600, 511, 0, 0)),
    bad("no spare row", answer("nvmlDeviceGetRowRemapperHistogram", 639, 0, 0, 0, 1), Code.ROWS_EXHAUSTED),
    good("few spare rows", answer("nvmlDeviceGetRowRemapperHistogram", 639, 0, 0, 1, 0)),
    bad("unrepairable memory", answer("nvmlDeviceGetUnrepairableMemoryFlag_v1", 1), Code.UNREPAIRABLE),
    bad("channel repair", answer("nvmlDeviceGetRepairStatus", 1, 0), Code.REPAIR_PENDING),
    bad("TPC repair", answer("nvmlDeviceGetRepairStatus", 0, 1), Code.REPAIR_PENDING),
    bad("at its slowdown limit", answer(MARGIN, -2), Code.HOT),
    bad("at its shutdown limit", answer(MARGIN, -5), Code.TOO_HOT),
    good("warm", answer(MARGIN, 1)),
    bad("hot, without a margin", both(NO_MARGIN, answer("nvmlDeviceGetTemperature", 90)), Code.HOT),
    good("a margin of 0 on a product without limits is junk", both(NO_MARGIN, lambda c: c.set(MARGIN, err=0), answer(MARGIN, 0))),
    bad("thermal slowdown in six minutes of ten", answer(CLOCKS, 0x40), Code.THROTTLED, after=MINUTES),
    bad("power brake in six minutes of ten", answer(CLOCKS, 0x80), Code.THROTTLED, after=MINUTES),
    good("thermal slowdown in five minutes", answer(CLOCKS, 0x48), after=MINUTES[:5]),
    good("a bare hardware slowdown", answer(CLOCKS, 0x8), after=MINUTES),
    good("idle and power cap are normal", answer(CLOCKS, 0x5), after=MINUTES),
    bad("half the lanes", both(FULL_LINK, answer(f"{PCIE}LinkWidth", 8)), Code.PCIE_NARROW),
    good("idle downshift", both(FULL_LINK, answer(f"{PCIE}LinkGeneration", 1))),
    bad("a low generation under load", both(BUSY, answer(f"{PCIE}LinkGeneration", 4)), Code.PCIE_SLOW),
    good("the full generation under load", BUSY),
    bad("PCIe replays", field(94, 1000), Code.PCIE_REPLAYS, then=field(94, 2000)),
    good("a few PCIe replays", both(FULL_LINK, field(94, 2))),
    bad("a fatal PCIe error", field(180, 1), Code.PCIE_FATAL),
    bad("a link that was up is down", lambda c: c.links(18, down=0b100, gpu=1), Code.NVLINK_DOWN),
    good("links that were never up", lambda c: c.links(12, down=0xFFF), first=lambda c: c.links(12, down=0xFFF)),
    good("no links", lambda c: c.links(0), first=lambda c: c.links(0)),
    bad("links that never came up, on a board that needs them", both(H100, lambda c: c.links(18, down=0b1, gpu=1)), Code.NVLINK_DOWN,
        first=both(H100, lambda c: c.links(18, gpu=1)), fresh=True),
    bad("a link could not recover", field(214, 1), Code.NVLINK_FAILED),
    bad("link recoveries", field(162, 5), Code.NVLINK_ERRORS),
    bad("link replays", field(161, 5), Code.NVLINK_ERRORS),
    good("a fabric that is up", answer(FABRIC, 3, 0, 0, 1)),
    bad("a fabric that does not come up", answer(FABRIC, 2, 0, 0, 0), Code.FABRIC_STUCK, after=(10, 311, 312)),
    bad("a fabric that is not started", answer(FABRIC, 1, 0, 0, 0), Code.FABRIC_STUCK, after=(10, 311, 312)),
    good("a fabric that is coming up", answer(FABRIC, 2, 0, 0, 0), after=(10, 200)),
    bad("a fabric that failed", answer(FABRIC, 3, 999, 0, 0), Code.FABRIC_FAILED),
    bad("an unhealthy fabric", answer(FABRIC, 3, 0, 0, 2), Code.FABRIC_FAILED),
    bad("a limited fabric", answer(FABRIC, 3, 0, 0, 3), Code.FABRIC_LIMITED),
    bad("a fabric of degraded bandwidth", answer(FABRIC, 3, 0, 1, 1), Code.FABRIC_LIMITED),
    bad("an unknown fabric state", answer(FABRIC, 9, 0, 0, 0), Code.FABRIC_UNKNOWN),
    bad("an unknown fabric health", answer(FABRIC, 3, 0, 0, 9), Code.FABRIC_UNKNOWN),
    bad("a fabric told by an older driver", both(lambda c: c.fabric_version(2), answer(FABRIC, 3, 999, 0, 0)), Code.FABRIC_FAILED),
    good("an older driver without fabric health", both(lambda c: c.fabric_version(2), answer(FABRIC, 3, 0, 0, 2))),
    bad("compute mode prohibited", answer(MODE, 2), Code.COMPUTE_PROHIBITED),
    good("compute mode exclusive", answer(MODE, 3)),
    bad("an unknown compute mode", answer(MODE, 7), Code.COMPUTE_UNKNOWN),
    bad("MIG is pending", answer("nvmlDeviceGetMigMode", 0, 1), Code.MIG_PENDING),
    good("MIG is on", answer("nvmlDeviceGetMigMode", 1, 1)),
    good("persistence mode is off", answer("nvmlDeviceGetPersistenceMode", 0)),
    bad("memory used by nobody", answer(MEMORY, 600 << 20), Code.MEMORY_LEAKED, after=(10, 131, 132)),
    good("memory used by nobody for a minute", answer(MEMORY, 600 << 20), after=(10, 70)),
    good("memory used by a process", both(answer(MEMORY, 60 << 30), lambda c: c.processes(1, 1)), after=(10, 131, 132)),
    bad("a lost GPU", lambda c: c.lost(1), Code.LOST, after=(5,)),
    bad("fewer GPUs than on the bus", lambda c: c.gpus(1), Code.GPUS_MISSING, after=(5,)),
    bad("a GPU without driver", lambda c: None, Code.GPUS_WITHOUT_DRIVER, after=(5,),
        around=Around(pci=replace(THREE, bound=BUS.bound))),
    bad("a GPU that NVML does not show", lambda c: None, Code.GPUS_MISSING, after=(5,), around=Around(pci=THREE)),
    bad("a GPU that left the bus", lambda c: c.gpus(1), Code.GPUS_MISSING, after=(5,),
        around=Around(pci=PciGpus(present=BUS.present[:1], bound=BUS.bound[:1]))),
    good("a GPU that was handed to a guest", lambda c: c.gpus(1),
         around=Around(pci=PciGpus(present=BUS.present[:1], bound=BUS.bound[:1], guests=1))),
    bad("an unreadable bus", lambda c: None, Code.BUS_UNREADABLE, after=(5,), around=Around(pci=PciGpus(readable=False))),
    bad("NVML cannot count", lambda c: c.set("nvmlDeviceGetCount_v2", err=999), Code.NVML_FAILED, after=(5,)),
    bad("NVML may not count", lambda c: c.set("nvmlDeviceGetCount_v2", err=4), Code.NVML_REFUSED, after=(5,)),
    bad("no driver version", lambda c: c.set("nvmlSystemGetDriverVersion", err=18), Code.NVML_FAILED, after=(5,)),
    Scenario(name="one sick GPU of two is tolerated where one is enough", given=field(230, 2), verdict=DEGRADED,
             code=Code.RECOVERY_REBOOT, policy=Policy(quorum=1), alone=HEALTHY, together=DEGRADED),
    Scenario(name="two sick GPUs of two are not", given=both(lambda c: c.recovery(0, 2), lambda c: c.recovery(1, 2)), verdict=UNHEALTHY,
             code=Code.RECOVERY_REBOOT, policy=Policy(quorum=1)),
]  # fmt: skip

FUNCTIONS = [
    "nvmlDeviceGetFieldValues", "nvmlDeviceGetRemappedRows", "nvmlDeviceGetRowRemapperHistogram",
    "nvmlDeviceGetUnrepairableMemoryFlag_v1", "nvmlDeviceGetRepairStatus", "nvmlDeviceGetSramEccErrorStatus", MARGIN,
    "nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureThreshold", "nvmlDeviceGetCurrPcieLinkWidth",
    "nvmlDeviceGetMaxPcieLinkWidth", MODE, "nvmlDeviceGetMigMode", FABRIC, "nvmlDeviceGetNvLinkState", CLOCKS,
    "nvmlDeviceGetPersistenceMode", "nvmlDeviceGetMaxPcieLinkGeneration", "nvmlDeviceGetPerformanceState",
    "nvmlDeviceGetUtilizationRates", MEMORY, "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
]  # fmt: skip
ANSWERS = {
    3: (HEALTHY, None), 13: (HEALTHY, None), 4: (UNKNOWN, Code.CALL_FAILED), 10: (UNKNOWN, Code.CALL_FAILED),
    15: (UNHEALTHY, Code.LOST), 16: (UNHEALTHY, Code.RESET_REQUIRED), 999: (UNHEALTHY, Code.DRIVER_ERROR),
    777: (UNKNOWN, Code.CALL_FAILED),
}  # fmt: skip
FIELDS = (3, 4, 6, 29, 30, 93, 94, 180, 193, 194, 214, 230, 270)


def run(standing: Prober, control: nvml.Control, scenario: Scenario) -> Health:
    if scenario.first:
        scenario.first(control)
    begin = Around(pci=BUS)
    health = after_sample(Health(), standing.sample(), begin, 0.0, scenario.policy)
    assert health.report.verdict is HEALTHY, health.report.reason
    scenario.given(control)
    for at in scenario.after:
        if scenario.then and at == scenario.after[-1]:
            scenario.then(control)
        health = after_sample(health, standing.sample(), scenario.around, at, scenario.policy)
    return health


def reasons(report: GpuReport) -> set[str]:
    return {r.code for r in report.reasons} | {r.code for gpu in report.gpus for r in gpu.reasons}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_the_verdict_and_its_reason(
    stub: tuple[nvml.Control, dict[str, str]], standing: Prober, control: nvml.Control, scenario: Scenario
) -> None:
    if scenario.fresh and scenario.first:
        scenario.first(control)
    prober = Prober(stub[1]) if scenario.fresh else standing
    found = run(prober, control, scenario).report
    if prober is not standing:
        prober.end()
    assert (found.verdict, scenario.code is None or scenario.code in reasons(found)) == (scenario.verdict, True), found
    assert found.verdict_for(1) is (scenario.alone or scenario.verdict)
    assert found.verdict_for(2) is (scenario.together or scenario.verdict)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_code_of_any_call_is_taken_for_fine(standing: Prober, control: nvml.Control, function: str) -> None:
    for code, (verdict, reason) in ANSWERS.items():
        control.clear(gpus=2)
        happens = Scenario(name="", given=partial(failing, function, code), verdict=verdict, after=(5,))
        found = run(standing, control, happens).report
        assert found.verdict is verdict, found
        assert reason is None or reason in reasons(found)


@pytest.mark.parametrize("number", FIELDS)
def test_no_code_of_any_field_is_taken_for_fine(standing: Prober, control: nvml.Control, number: int) -> None:
    for code, (verdict, _) in ANSWERS.items():
        control.clear(gpus=2)
        happens = Scenario(name="", given=partial(failing_field, number, code), verdict=verdict, after=(5,))
        assert run(standing, control, happens).report.verdict is verdict


@pytest.mark.parametrize("code", [4, 15, 16, 777, 999])
@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID", "nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetName"]
)
def test_a_gpu_that_cannot_be_identified_is_not_fine(
    stub: tuple[nvml.Control, dict[str, str]], control: nvml.Control, function: str, code: int
) -> None:
    control.set(function, err=code, gpu=1)
    prober = Prober(stub[1])
    try:
        found = after_sample(Health(), prober.sample(), Around(pci=BUS), 0.0, Policy()).report
    finally:
        prober.end()
    assert (found.verdict, ANSWERS[code][1] in reasons(found)) == (ANSWERS[code][0], True)


def test_uncorrectable_errors_from_before_the_start_degrade(standing: Prober, control: nvml.Control) -> None:
    control.ecc(0, volatile=3)
    found = after_sample(Health(), standing.sample(), Around(pci=BUS), 0.0, Policy()).report
    assert (found.verdict, reasons(found)) == (DEGRADED, {Code.ECC_BEFORE})


def test_a_reason_that_is_not_at_once_needs_two_samples_of_three(standing: Prober, control: nvml.Control) -> None:
    health = after_sample(Health(), standing.sample(), Around(pci=BUS), 0.0, Policy())
    verdicts = []
    for at, lanes in enumerate((8, 16, 16, 8, 16, 8)):
        control.answer("nvmlDeviceGetMaxPcieLinkWidth", 16, gpu=0)
        control.answer("nvmlDeviceGetCurrPcieLinkWidth", lanes, gpu=0)
        health = after_sample(health, standing.sample(), Around(pci=BUS), float(at + 1), Policy())
        verdicts.append(health.report.verdict)
    assert verdicts == [HEALTHY] * 5 + [DEGRADED]


def test_each_reason_of_a_gpu_is_one_of_the_table_or_made_elsewhere() -> None:
    seen = {s.code for s in SCENARIOS} | {code for _, code in ANSWERS.values()}
    elsewhere = {  # by events, the service, the active test, or as information
        Code.HUNG, Code.UNKILLABLE, Code.PROBER_DIED, Code.PROBER_KEEPS_DYING, Code.DRIVER_MISSING, Code.DRIVER_MISMATCH,
        Code.NOT_INSTALLED_YET, Code.GPUS_FEWER, Code.GPUS_MORE, Code.NOT_ALL_ASKED, Code.LOG_UNREADABLE, Code.RECOVERY_BLIND,
        Code.XID_FATAL, Code.XID_NVLINK, Code.XID_NVLINK_NONFATAL, Code.EVENT_FATAL, Code.OFF_THE_BUS, Code.ECC_BEFORE,
        Code.ECC_AGGREGATE, Code.ROWS_LOW, Code.SLOWED, Code.PERSISTENCE_OFF, Code.TEST_AWAITED, Code.TEST_FAILED,
        Code.TEST_HUNG, Code.TEST_SKIPPED,
    }  # fmt: skip
    assert set(Code) == {code for code in seen if code} | elsewhere
    assert set(Code) == set(CATALOGUE)
