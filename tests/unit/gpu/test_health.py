"""Bad news at once, good news with proof."""

from __future__ import annotations

import pytest

from agent.core.inventory import GpuVerdict
from agent.gpu.events import XidClass, fatal, xid_class
from agent.gpu.health import Health, after_event, after_sample
from agent.gpu.observation import Event, Gpu, Hung, Observation, PciGpus, Refused, Sample

BUS = PciGpus(present=("a", "b"), bound=("a", "b"))


def sample(first: int | None = 0, second: int | None = 0) -> Sample:
    gpus = tuple(Gpu(index=i, uuid=f"GPU-{i}", recovery=action) for i, action in enumerate((first, second)))
    return Sample(driver="580", count=2, gpus=gpus)


def run(health: Health, *seen: Observation) -> list[GpuVerdict]:
    verdicts = []
    for each in seen:
        health = after_sample(health, each, BUS, None)
        verdicts.append(health.report.verdict)
    return verdicts


def xid(code: int, uuid: str = "GPU-0") -> Event:
    return Event(uuid=uuid, type=0x8, data=code)


U, H, K, D = GpuVerdict.UNHEALTHY, GpuVerdict.HEALTHY, GpuVerdict.UNKNOWN, GpuVerdict.DEGRADED


def test_nothing_is_claimed_before_the_first_sample_and_one_clean_sample_is_enough_at_start() -> None:
    assert Health().report.verdict is K
    assert run(Health(), sample()) == [H]


def test_unhealthy_at_once_and_healthy_after_three_clean_samples_in_a_row() -> None:
    assert run(Health(), sample(), sample(2), sample(), sample(), sample(2), sample(), sample(), sample()) == [
        H, U, U, U, U, U, U, H,
    ]  # fmt: skip


def test_degraded_comes_and_goes_at_once() -> None:
    assert run(Health(), sample(3), sample(0)) == [D, H]


def test_an_unreadable_sample_breaks_the_row_and_stays_unhealthy() -> None:
    seen: list[Observation] = [sample(1), sample(), sample(), Refused(code=4), sample(), sample(), sample()]
    assert run(Health(), *seen) == [U, U, U, U, U, U, H]


def test_a_hang_is_over_after_three_answers() -> None:
    assert run(Health(), Hung(pid=1, seconds=10), sample(), sample(), sample()) == [U, U, U, H]


def test_the_reason_does_not_change_while_recovery_is_awaited() -> None:
    sick = after_sample(Health(), sample(2), BUS, None)
    first = after_sample(sick, sample(), BUS, None)
    second = after_sample(first, sample(), BUS, None)
    assert first.report == second.report
    assert first.report.reason.startswith("GPU 0 (GPU-0): the driver asks to reboot the node; healthy again after")


def test_a_fatal_xid_is_unhealthy_although_the_samples_stay_clean() -> None:
    sick = after_event(after_sample(Health(), sample(), BUS, None), xid(79))
    assert (sick.report.verdict, sick.report.reason, sick.report.count) == (U, "Xid 79 on GPU-0", 2)
    assert run(sick, sample(), sample(), sample()) == [U, U, H]


def test_an_application_xid_changes_nothing() -> None:
    healthy = after_sample(Health(), sample(), BUS, None)
    assert after_event(healthy, xid(31)) == healthy


def test_a_gpu_with_a_fatal_xid_and_no_readable_recovery_action_does_not_recover() -> None:
    sick = after_event(Health(), xid(48))
    assert run(sick, *[sample(None, 0)] * 5) == [U] * 5
    assert run(after_event(Health(), xid(48, "GPU-1")), *[sample(None, 0)] * 3) == [U, U, H]


def test_a_gpu_with_a_fatal_xid_that_is_no_longer_shown_does_not_recover() -> None:
    assert run(after_event(Health(), xid(48, "GPU-7")), *[sample()] * 4) == [U] * 4


def test_an_event_that_names_no_gpu_suspects_all() -> None:
    assert run(after_event(Health(), xid(48, "")), *[sample(0, None)] * 3) == [U] * 3


def test_a_bad_sample_does_not_forget_the_suspect() -> None:
    sick = after_sample(after_event(Health(), xid(48)), sample(2, 0), BUS, None)
    assert run(sick, *[sample(None, 0)] * 4) == [U] * 4


@pytest.mark.parametrize("code", [46, 48, 54, 62, 64, 74, 78, 79, 95, 109, 110, 119, 120, 136, 140, 142, 143, 144, 150,
                                  151, 155, 156, 158, 159, 167])  # fmt: skip
def test_fatal_xids(code: int) -> None:
    assert xid_class(code) is XidClass.FATAL


@pytest.mark.parametrize(
    ("code", "kind"),
    [(13, XidClass.APPLICATION), (31, XidClass.APPLICATION), (94, XidClass.APPLICATION), (43, XidClass.IGNORED),
     (45, XidClass.IGNORED), (63, XidClass.IGNORED), (154, XidClass.IGNORED), (56, XidClass.UNLISTED)],
)  # fmt: skip
def test_other_xids(code: int, kind: XidClass) -> None:
    assert (xid_class(code), fatal(xid(code))) == (kind, "")


def test_events_other_than_xids() -> None:
    assert fatal(Event(uuid="GPU-0", type=0x4000)) == "the GPU became unavailable on GPU-0"
    assert [bool(fatal(Event(uuid="", type=t))) for t in (0x200, 0x400, 0x800, 0x1000, 0x2000, 0x8000)] == [
        False, False, True, False, True, False,
    ]  # fmt: skip
