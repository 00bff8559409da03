"""The verdict of one observation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.inventory import GpuReport, GpuVerdict
from agent.gpu.observation import Died, Gpu, Hung, Observation, PciGpus, Refused, Sample
from agent.gpu.rules import judge, wanted_gpus

HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN, NONE = (
    GpuVerdict.HEALTHY,
    GpuVerdict.DEGRADED,
    GpuVerdict.UNHEALTHY,
    GpuVerdict.UNKNOWN,
    GpuVerdict.NONE,
)
NO_PCI = PciGpus()


def pci(count: int, *, bound: int | None = None) -> PciGpus:
    names = tuple(f"0000:{n:02x}:00.0" for n in range(count))
    return PciGpus(present=names, bound=names if bound is None else names[:bound])


def gpu(index: int = 0, **fields: object) -> Gpu:
    return replace(Gpu(index=index, uuid=f"GPU-{index}", pci="0000:10:00.0", recovery=0), **fields)  # type: ignore[arg-type]


def sample(*gpus: Gpu, **fields: object) -> Sample:
    return replace(Sample(driver="580", count=len(gpus), gpus=gpus), **fields)  # type: ignore[arg-type]


def verdict(seen: Observation, bus: PciGpus = NO_PCI, wanted: int | None = None) -> GpuVerdict:
    return judge(seen, bus, wanted).verdict


def test_gpus_that_all_answer_are_healthy_and_counted() -> None:
    report = judge(sample(gpu(0), gpu(1)), pci(2), None)
    assert report == GpuReport(verdict=HEALTHY, reason="2 GPUs answer; no recovery action is asked for", count=2)


@pytest.mark.parametrize(
    ("action", "expected"),
    [(1, UNHEALTHY), (2, UNHEALTHY), (3, DEGRADED), (4, UNHEALTHY), (5, DEGRADED), (6, UNHEALTHY), (7, UNHEALTHY)],
)
def test_the_recovery_action_of_one_gpu_decides_for_the_node(action: int, expected: GpuVerdict) -> None:
    assert verdict(sample(gpu(0), gpu(1, recovery=action)), pci(2)) is expected


def test_an_unknown_recovery_action_is_unhealthy_and_named() -> None:
    report = judge(sample(gpu(recovery=42)), pci(1), None)
    assert (report.verdict, "recovery action 42" in report.reason) == (UNHEALTHY, True)


@pytest.mark.parametrize("code", [3, 13])
def test_a_field_the_product_does_not_have_is_not_applicable(code: int) -> None:
    report = judge(sample(gpu(recovery=None, recovery_code=code)), pci(1), None)
    assert (report.verdict, report.reason) == (HEALTHY, "1 GPU answers; 1 without a recovery action")


@pytest.mark.parametrize(
    ("code", "expected"), [(4, UNKNOWN), (7, UNKNOWN), (15, UNHEALTHY), (16, UNHEALTHY), (999, UNHEALTHY)]
)
def test_a_failed_call_is_never_healthy(code: int, expected: GpuVerdict) -> None:
    assert verdict(sample(gpu(call="nvmlDeviceGetUUID", code=code)), pci(1)) is expected
    assert verdict(sample(gpu(recovery=None, recovery_code=code)), pci(1)) is expected
    assert verdict(sample(gpu(), driver_code=code), pci(1)) is expected
    assert verdict(sample(count_code=code), pci(1)) is expected


def test_the_worst_gpu_gives_the_reason() -> None:
    report = judge(sample(gpu(0, recovery=3), gpu(1, recovery=None, recovery_code=4), gpu(2, recovery=2)), pci(3), None)
    assert report.reason == "GPU 2 (GPU-2): the driver asks to reboot the node (and 2 more)"


def test_fewer_than_the_bus_shows_is_unhealthy() -> None:
    assert judge(sample(gpu(0)), pci(2), None).reason == "NVML shows 1 of the 2 GPUs that the PCI bus shows"
    assert verdict(sample(gpu(0)), pci(2, bound=1)) is UNHEALTHY


def test_fewer_than_the_setting_names_is_unhealthy_and_more_is_not() -> None:
    assert verdict(sample(gpu(0)), NO_PCI, 2) is UNHEALTHY
    assert verdict(sample(), NO_PCI, 2) is UNHEALTHY
    assert verdict(sample(gpu(0), gpu(1)), NO_PCI, 1) is HEALTHY


def test_gpus_that_nvml_shows_and_the_bus_hides_are_judged_by_nvml() -> None:
    assert verdict(sample(gpu(0))) is HEALTHY
    assert verdict(sample(gpu(0, recovery=2))) is UNHEALTHY


@pytest.mark.parametrize("wanted", [None, 0])
def test_no_gpu_anywhere_is_none(wanted: int | None) -> None:
    assert verdict(Refused(code=12), NO_PCI, wanted) is NONE
    assert verdict(Refused(code=9), NO_PCI, wanted) is NONE
    assert verdict(sample(), NO_PCI, wanted) is NONE


@pytest.mark.parametrize("code", [9, 12, 18, 999, 15])
@pytest.mark.parametrize(("bus", "wanted"), [(pci(1), None), (pci(1, bound=0), None), (pci(1), 0), (NO_PCI, 1)])
def test_a_refused_start_where_gpus_are_expected_is_unhealthy(code: int, bus: PciGpus, wanted: int | None) -> None:
    assert verdict(Refused(code=code), bus, wanted) is UNHEALTHY


@pytest.mark.parametrize("code", [1, 4, 10])
def test_a_refusal_that_says_nothing_of_the_hardware_is_unknown(code: int) -> None:
    assert verdict(Refused(code=code), pci(1)) is UNKNOWN
    assert verdict(Refused(code=code), NO_PCI) is UNKNOWN


def test_a_hang_is_unhealthy_with_its_pid_when_it_cannot_be_killed() -> None:
    assert judge(Hung(pid=7, seconds=10), pci(1), None).reason == "hung: NVML has not answered for 10 s"
    assert "process 7" in judge(Hung(pid=7, seconds=10, unkillable=True), pci(1), None).reason


def test_one_death_of_the_prober_is_unknown_two_are_unhealthy() -> None:
    assert judge(Died(status=-6), pci(1), None) == GpuReport(verdict=UNKNOWN, reason="the NVML prober died (signal 6)")
    assert verdict(Died(status=1, times=2), pci(1)) is UNHEALTHY


def test_the_setting_is_a_number_or_auto() -> None:
    assert (wanted_gpus("auto"), wanted_gpus("8"), wanted_gpus("0")) == (None, 8, 0)
