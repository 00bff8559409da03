"""Bad news at once, good news with proof."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.inventory import GpuVerdict
from agent.core.names import ANNOTATION_TAINT_LIFTED, TAINT_NOT_READY
from agent.gpu.events import XidClass, meaning, xid_class
from agent.gpu.findings import Around
from agent.gpu.health import Health, after_event, after_sample, after_test, recovered, unproved
from agent.gpu.observation import (
    Answer,
    Died,
    Event,
    Hung,
    LogEvent,
    Observation,
    Outcome,
    PciGpus,
    Refused,
    Sample,
    TestResult,
    parse_message,
)
from agent.gpu.questions import QUICK
from agent.gpu.reasons import Code
from agent.gpu.report import Policy
from agent.kube.objects import NodeView, Taint
from tests.unit.gpu.making import BUS, gpu, sample

U, H, K, D, NONE = (
    GpuVerdict.UNHEALTHY,
    GpuVerdict.HEALTHY,
    GpuVerdict.UNKNOWN,
    GpuVerdict.DEGRADED,
    GpuVerdict.NONE,
)
PASSIVE, TESTED = Policy(test=False), Policy()
AROUND = Around(pci=BUS)
PASSED = TestResult(outcome=Outcome.PASSED)


def run(health: Health, *seen: Observation, policy: Policy = PASSIVE, around: Around = AROUND) -> list[GpuVerdict]:
    verdicts = []
    for at, each in enumerate(seen):
        health = after_sample(health, each, around, float(at), policy)
        verdicts.append(health.report.verdict)
    return verdicts


def grown(health: Health, *seen: Observation, policy: Policy = PASSIVE, around: Around = AROUND) -> Health:
    for at, each in enumerate(seen):
        health = after_sample(health, each, around, float(at), policy)
    return health


def xid(code: int, uuid: str = "GPU-0") -> Event:
    return Event(uuid=uuid, type=0x8, data=code)


def line(code: int, *, nonfatal: bool = False) -> LogEvent:
    return LogEvent(pci="0000:10:00.0", xid=code, nonfatal=nonfatal)


def codes(health: Health) -> set[Code]:
    return {code for code, _ in health.faults}


HEALTHY = grown(Health(), sample())


def test_nothing_is_claimed_before_the_first_sample_and_one_clean_sample_is_enough_at_start() -> None:
    assert Health().report.verdict is K
    assert run(Health(), sample()) == [H]


def test_unhealthy_at_once_and_healthy_after_three_clean_samples_in_a_row() -> None:
    sick = sample(gpu(0, 2), gpu(1))
    seen = (sample(), sick, sample(), sample(), sick, sample(), sample(), sample())
    assert run(Health(), *seen) == [H, U, U, U, U, U, U, H]


def test_an_unreadable_sample_breaks_the_row_and_stays_unhealthy() -> None:
    sick = sample(gpu(0, 1), gpu(1))
    seen: list[Observation] = [sick, sample(), sample(), Refused(code=4), sample(), sample(), sample()]
    assert run(Health(), *seen) == [U, U, U, U, U, U, H]


def test_a_hang_is_over_after_three_answers() -> None:
    assert run(Health(), Hung(pid=1, seconds=10), sample(), sample(), sample()) == [U, U, U, H]


def test_a_child_that_cannot_be_killed_names_it() -> None:
    stuck = grown(HEALTHY, Hung(pid=7, seconds=10, unkillable=True))
    assert (stuck.report.verdict, "process 7" in stuck.report.reason) == (U, True)


def test_one_death_of_the_prober_is_unknown_two_are_unhealthy() -> None:
    assert run(HEALTHY, Died(status=-6), Died(status=-6, times=2)) == [K, U]


def test_the_report_does_not_change_while_recovery_is_awaited() -> None:
    sick = grown(HEALTHY, sample(gpu(0, 2), gpu(1)))
    assert sick.report.reason == "GPU 0 (GPU-0): the driver asks to reboot the node"
    assert grown(sick, sample(), sample()).report == sick.report


def test_the_worst_gpu_gives_the_reason() -> None:
    sick = grown(HEALTHY, sample(gpu(0, 5), gpu(1, 2)))
    assert sick.report.reason == "GPU 1 (GPU-1): the driver asks to reboot the node (and 1 more)"
    assert [state.verdict for state in sick.report.gpus] == [D, U]


def test_a_fatal_xid_is_unhealthy_although_the_samples_stay_clean() -> None:
    sick = after_event(HEALTHY, xid(79), PASSIVE)
    assert (sick.report.verdict, sick.report.reason, sick.report.count) == (U, "GPU 0 (GPU-0): Xid 79", 2)
    assert run(sick, sample(), sample(), sample()) == [U, U, H]


def test_an_application_xid_changes_nothing() -> None:
    assert after_event(HEALTHY, xid(31), PASSIVE) == HEALTHY


def test_the_same_xid_by_nvml_and_the_kernel_log_is_one_fault() -> None:
    once = after_event(HEALTHY, xid(79), PASSIVE)
    assert after_event(once, line(79), PASSIVE).report == once.report
    assert after_event(once, LogEvent(pci="0000:10:00.0"), PASSIVE).report == once.report


@pytest.mark.parametrize("order", [(xid(145), line(145, nonfatal=True)), (line(145, nonfatal=True), xid(145))])
def test_an_nvlink_xid_that_the_log_calls_nonfatal_matters_to_endpoints_of_several_gpus_only(
    order: tuple[Event | LogEvent, ...],
) -> None:
    health = HEALTHY
    for event in order:
        health = after_event(health, event, PASSIVE)
    assert codes(health) == {Code.XID_NVLINK_NONFATAL}
    assert (health.report.verdict, health.report.verdict_for(1), health.report.verdict_for(2)) == (D, H, D)


def test_an_nvlink_xid_that_nobody_calls_nonfatal_is_unhealthy() -> None:
    assert after_event(HEALTHY, line(145), PASSIVE).report.verdict is U
    assert after_event(HEALTHY, xid(74), PASSIVE).report.verdict is U


def test_a_line_from_before_the_first_sample_is_laid_to_its_gpu() -> None:
    early = after_event(Health(), line(48), PASSIVE)
    assert (early.report.verdict, early.report.reason) == (U, "GPU at 0000:10:00.0: Xid 48")
    assert grown(early, sample(gpu(0, 1), gpu(1))).report.gpus[0].verdict is U
    assert run(early, sample(), sample(), sample()) == [U, U, H]


def test_a_gpu_with_a_fatal_xid_and_no_readable_recovery_action_does_not_recover_by_samples() -> None:
    blind = sample(gpu(0, None), gpu(1))
    assert run(after_event(Health(), xid(48), PASSIVE), *[blind] * 5) == [U] * 5
    assert run(after_event(Health(), xid(48, "GPU-1"), PASSIVE), *[blind] * 3) == [U, U, H]


def test_a_gpu_with_a_fatal_xid_that_is_no_longer_shown_does_not_recover() -> None:
    assert run(after_event(Health(), xid(48, "GPU-7"), PASSIVE), *[sample()] * 4) == [U] * 4


def test_an_event_that_names_no_gpu_suspects_all() -> None:
    blind = sample(gpu(0), gpu(1, None))
    assert run(after_event(Health(), xid(48, ""), PASSIVE), *[blind] * 3) == [U] * 3


def test_a_bad_sample_does_not_forget_the_suspect() -> None:
    sick = grown(after_event(Health(), xid(48), PASSIVE), sample(gpu(0, 2), gpu(1)))
    assert run(sick, *[sample(gpu(0, None), gpu(1))] * 4) == [U] * 4


def test_a_quick_sample_clears_nothing_that_it_has_not_asked() -> None:
    failed = sample(replace(gpu(0), answers=dict(gpu(0, remap=(0, 0, 0, 1)).answers)), gpu(1))
    sick = grown(HEALTHY, failed, failed)
    quick = sample(gpu(0), gpu(1), depth=QUICK)
    assert run(sick, *[quick] * 5) == [U] * 5
    assert run(sick, *[sample(gpu(0, remap=(0, 0, 0, 0)), gpu(1))] * 3) == [U, U, H]


def test_what_is_no_longer_answered_is_not_cleared() -> None:
    failed = sample(gpu(0, remap=(0, 0, 0, 1)), gpu(1))
    assert run(grown(HEALTHY, failed, failed), *[sample()] * 5) == [U] * 5


def test_a_lost_gpu_keeps_its_name() -> None:
    sick = grown(HEALTHY, sample(gpu(0), gpu(1, code=15)))
    assert sick.report.reason.startswith("GPU 1 (GPU-1): nvmlDeviceGetHandleByIndex: the GPU is lost")
    unknown = grown(Health(), sample(gpu(0), gpu(1, code=15)))
    assert unknown.report.reason.startswith("GPU 1: nvmlDeviceGetHandleByIndex: the GPU is lost")
    assert run(unknown, sample(), sample(), sample()) == [U, U, H]


def test_recovery_needs_the_active_test_where_it_is_on() -> None:
    sick = after_event(HEALTHY, xid(79), TESTED)
    assert sick.due(TESTED) == ()
    clean = grown(sick, sample(), sample(), sample(), policy=TESTED)
    assert (clean.report.verdict, [g.uuid for g in clean.due(TESTED)]) == (U, ["GPU-0"])
    assert after_test(clean, "GPU-0", TestResult(outcome=Outcome.SKIPPED, text="busy"), TESTED).report.verdict is U
    assert after_test(clean, "GPU-0", TestResult(outcome=Outcome.SKIPPED, lasting=True), TESTED).report.verdict is U
    done = after_test(clean, "GPU-0", PASSED, TESTED)
    assert (done.report.verdict, recovered(clean, done)) == (H, frozenset({"GPU-0"}))


def test_a_test_that_passed_before_the_cause_was_cleared_proves_nothing() -> None:
    sick = grown(after_event(HEALTHY, xid(79), TESTED), sample(), policy=TESTED)
    assert after_test(sick, "GPU-0", PASSED, TESTED).report.verdict is U


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.HUNG])
def test_a_failed_test_is_a_fault_that_only_a_later_test_clears(outcome: Outcome) -> None:
    sick = grown(after_event(HEALTHY, xid(79), TESTED), sample(), sample(), sample(), policy=TESTED)
    failed = after_test(sick, "GPU-0", TestResult(outcome=outcome, text="wrong"), TESTED)
    assert failed.due(TESTED) == ()
    again = grown(failed, *[sample()] * 5, policy=TESTED)
    assert (again.report.verdict, [g.uuid for g in again.due(TESTED)]) == (U, ["GPU-0"])
    assert after_test(again, "GPU-0", PASSED, TESTED).report.verdict is H


def test_new_memory_errors_are_cleared_by_a_reset_or_by_the_test() -> None:
    def with_errors(count: int) -> Sample:
        return sample(gpu(0, ecc=(count,)), gpu(1))

    sick = grown(Health(), with_errors(0), with_errors(1), with_errors(1), policy=TESTED)
    assert (sick.report.verdict, codes(sick)) == (U, {Code.ECC_UNCORRECTED})
    assert run(sick, *[with_errors(0)] * 3, policy=TESTED) == [U, U, H]
    assert [g.uuid for g in sick.due(TESTED)] == ["GPU-0"]
    passed = after_test(sick, "GPU-0", PASSED, TESTED)
    assert passed.report.verdict is H
    assert run(passed, *[with_errors(1)] * 3, policy=TESTED) == [H] * 3
    assert run(passed, with_errors(2), with_errors(2), policy=TESTED) == [H, U]


def test_under_the_start_up_taint_every_gpu_is_tested_or_cannot_be() -> None:
    tainted = Around(pci=BUS, tainted=True)
    first = grown(Health(), sample(), policy=TESTED, around=tainted)
    assert (first.report.verdict, len(first.due(TESTED))) == (K, 2)
    one = after_test(first, "GPU-0", PASSED, TESTED)
    assert one.report.verdict is K
    never = TestResult(outcome=Outcome.SKIPPED, text="MIG is on", lasting=True)
    both = after_test(one, "GPU-1", never, TESTED)
    assert both.report.verdict is H
    assert [r.code for r in both.report.gpus[1].reasons] == [Code.TEST_SKIPPED]
    assert run(both, sample(), policy=TESTED, around=tainted) == [H]


def test_whether_the_taint_stands_is_awaited_but_not_for_ever() -> None:
    unknown = Around(pci=BUS, tainted=None)
    assert run(Health(), sample(), policy=TESTED, around=unknown) == [K]
    assert run(Health(), sample(), policy=TESTED, around=replace(unknown, presumed=True)) == [H]
    assert run(Health(), sample(), policy=PASSIVE, around=unknown) == [H]


def test_a_taint_that_the_agent_put_back_asks_for_no_test_of_healthy_gpus() -> None:
    assert run(
        grown(HEALTHY, sample(), policy=TESTED), sample(), policy=TESTED, around=replace(AROUND, tainted=True)
    ) == [H]


@pytest.mark.parametrize("wanted", [None, 0])
def test_no_gpu_anywhere_is_none(wanted: int | None) -> None:
    nowhere, policy = Around(pci=PciGpus()), Policy(wanted=wanted)
    for seen in (Refused(code=12), Refused(code=9), Sample()):
        assert run(Health(), seen, policy=policy, around=nowhere) == [NONE]
    assert run(Health(), Sample(), policy=Policy(wanted=2), around=nowhere) == [U]
    unreadable = replace(nowhere, pci=PciGpus(readable=False))
    assert run(Health(), Refused(code=12), policy=policy, around=unreadable) == [K]
    assert run(HEALTHY, Refused(code=12), policy=policy, around=nowhere) == [U]  # they were there
    lost = after_event(Health(), line(79), PASSIVE)
    assert run(lost, Refused(code=12), policy=policy, around=nowhere) == [U]  # the log has seen one


@pytest.mark.parametrize("code", [9, 12, 18, 999, 15])
def test_a_refused_start_where_gpus_are_expected_is_unhealthy(code: int) -> None:
    assert run(Health(), Refused(code=code)) == [U]
    assert run(Health(), Refused(code=code), policy=Policy(wanted=1), around=Around(pci=PciGpus())) == [U]


@pytest.mark.parametrize("code", [9, 12])
def test_a_driver_is_awaited_for_ten_minutes_after_the_boot(code: int) -> None:
    soon = replace(AROUND, uptime_seconds=599.0)
    assert run(Health(), Refused(code=code), around=soon) == [K]
    assert grown(Health(), Refused(code=code), around=soon).report.reason.startswith("not installed yet")
    assert run(Health(), Refused(code=18), around=soon) == [U]


@pytest.mark.parametrize("code", [1, 4, 10, 777])
def test_a_refusal_that_says_nothing_of_the_hardware_is_unknown(code: int) -> None:
    assert run(Health(), Refused(code=code)) == [K]
    assert run(Health(), Refused(code=code), around=Around(pci=PciGpus())) == [K]


def test_fewer_than_the_setting_names_is_unhealthy_and_more_is_told() -> None:
    assert run(Health(), sample(), policy=Policy(wanted=3)) == [U]
    more = grown(Health(), sample(), policy=Policy(wanted=1))
    assert (more.report.verdict, "the setting gpus wants 1" in more.report.reason) == (H, True)


def test_with_a_quorum_a_sick_gpu_degrades_and_leaves_the_others_to_endpoints() -> None:
    policy = Policy(quorum=1, test=False)
    one = grown(Health(), sample(gpu(0, 2), gpu(1)), policy=policy).report
    assert (one.verdict, one.usable, one.verdict_for(1), one.verdict_for(2)) == (D, 1, H, D)
    assert run(Health(), sample(gpu(0, 2), gpu(1, 2)), policy=policy) == [U]
    assert run(Health(), Hung(pid=1, seconds=10), policy=policy) == [U]


@pytest.mark.parametrize("code", [46, 48, 54, 62, 64, 78, 79, 95, 109, 110, 119, 120, 136, 140, 142, 143, 151, 155, 156, 158,
                                  159, 167])  # fmt: skip
def test_fatal_xids(code: int) -> None:
    assert xid_class(code) is XidClass.FATAL


@pytest.mark.parametrize(
    ("code", "kind"),
    [(13, XidClass.APPLICATION), (31, XidClass.APPLICATION), (94, XidClass.APPLICATION), (43, XidClass.IGNORED),
     (45, XidClass.IGNORED), (63, XidClass.IGNORED), (154, XidClass.IGNORED), (56, XidClass.UNLISTED)],
)  # fmt: skip
def test_other_xids(code: int, kind: XidClass) -> None:
    assert (xid_class(code), meaning(xid(code))) == (kind, None)


def test_events_other_than_xids() -> None:
    assert meaning(Event(uuid="GPU-0", type=0x4000)) == (Code.EVENT_FATAL, "the GPU became unavailable")
    assert [bool(meaning(Event(uuid="", type=t))) for t in (0x200, 0x400, 0x800, 0x1000, 0x2000, 0x8000)] == [
        False, False, True, False, True, False,
    ]  # fmt: skip


def test_what_an_idle_h100_answers_is_healthy() -> None:
    """Recorded on one: driver 580.159.04, no NVLink, no fabric, retired pages not supported."""
    seen = parse_message(b" ".join((Path(__file__).parent / "h100.json").read_bytes().split()))
    assert isinstance(seen, Sample)
    bus = PciGpus(present=("0000:00:06.0",), bound=("0000:00:06.0",), driver="580.159.04")

    health = grown(Health(), seen, around=Around(pci=bus))

    assert health.report.verdict is H
    assert not health.faults
    assert not health.doubts
    assert {name for name, answer in seen.gpus[0].answers.items() if answer.code} == {
        "retired_sbe", "retired_dbe", "retire_pending", "links"
    }  # fmt: skip


FAILED = TestResult(outcome=Outcome.FAILED, text="a product is wrong")


@pytest.mark.parametrize(
    "sick",
    [
        after_test(HEALTHY, "GPU-0", FAILED, TESTED),
        after_test(HEALTHY, "GPU-0", replace(FAILED, outcome=Outcome.HUNG), TESTED),
        after_event(HEALTHY, Event(uuid="GPU-0", type=0x2000), TESTED),
        after_event(HEALTHY, xid(79), TESTED),
        grown(HEALTHY, sample(replace(gpu(0), answers={"recovery": Answer(15)}), gpu(1)), policy=TESTED),
    ],
    ids=["failed", "hung", "poison", "xid", "lost"],
)
def test_what_only_a_test_ends_stands_for_the_next_agent_too(sick: Health) -> None:
    again = grown(Health(faults=unproved(sick)), sample(), policy=TESTED)
    assert again.report.verdict is U
    again = grown(again, *[sample()] * 4, policy=TESTED)
    assert (again.report.verdict, codes(again)) == (U, codes(sick))
    assert again.report.gpus[0].verdict is U
    assert [each.uuid for each in again.due(TESTED)] == ["GPU-0"]
    assert after_test(again, "GPU-0", PASSED, TESTED).report.verdict is H


def test_what_the_samples_tell_of_is_left_to_the_next_agents_samples() -> None:
    sick = grown(HEALTHY, Hung(pid=1, seconds=10), policy=TESTED)
    assert unproved(grown(sick, sample(gpu(0, temperature=(200, 90))), policy=TESTED)) == {}


def test_a_new_agent_that_knows_of_a_sick_gpu_says_nothing_before_it_has_looked_and_counts_the_others() -> None:
    quorum = replace(TESTED, quorum=1)
    again = Health(faults=unproved(after_test(HEALTHY, "GPU-0", FAILED, quorum)))
    assert again.report.verdict is K
    again = grown(again, sample(), policy=quorum)
    assert (again.report.verdict, again.report.verdict_for(1)) == (D, H)


@pytest.mark.parametrize(
    ("annotations", "tested"), [({}, ["GPU-0", "GPU-1"]), ({ANNOTATION_TAINT_LIFTED: "true"}, ["GPU-0"])]
)
def test_an_agent_that_starts_under_a_taint_that_was_put_back_tests_sick_gpus_only(
    annotations: dict[str, str], tested: list[str]
) -> None:
    node = NodeView(name="n", annotations=annotations, taints=(Taint(key=TAINT_NOT_READY, effect="NoSchedule"),))
    around = replace(AROUND, tainted=node.starts_up)
    health = grown(after_event(Health(), line(79), TESTED), *[sample()] * 4, policy=TESTED, around=around)
    assert [each.uuid for each in health.due(TESTED)] == tested
    assert (after_test(health, "GPU-0", PASSED, TESTED).report.verdict is H) == bool(annotations)
