"""What a node may say of itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from agent.core.assignment import ModelWant
from agent.core.inventory import GpuReport, GpuVerdict, ImageLevel, ImageState, Inventory, ModelLevel, ModelState
from agent.core.refs import EndpointKey
from agent.node.readiness import Readiness, TaintWish, readiness
from tests.fakes.virtual_time import START
from tests.unit.node.making import DIGEST, IMAGE, IMAGE_DIGEST, LABEL, MODEL, URI, assigned, endpoint, warm

COLD_IMAGE = {IMAGE.ref: ImageState(ref=IMAGE.ref, level=ImageLevel.PRESENT, digest=IMAGE_DIGEST)}
OTHER_IMAGE = {IMAGE.ref: ImageState(ref=IMAGE.ref, level=ImageLevel.UNPACKED, digest="sha256:" + "c" * 64)}
COLD_MODEL = {DIGEST: ModelState(digest=DIGEST, level=ModelLevel.PARTIAL)}


def judge(inventory: Inventory, *, gpus: int = 0, lift_taint: str = "gpu") -> Readiness:
    return readiness(assigned(endpoint(gpus=gpus)), inventory, START, lift_taint=lift_taint)


def test_an_endpoint_is_ready_when_all_of_it_is_proved() -> None:
    found = judge(warm(), gpus=8)
    assert found.labels == {"prewarm.dev/gpu": "healthy", LABEL: "ready"}
    assert found.annotations == {"prewarm.dev/boot-id": "boot-1"}
    assert found.undecided == frozenset()


@pytest.mark.parametrize(
    ("inventory", "reason"),
    [
        (warm(proved=False), "not ready: the proof of what is on this node is not through"),
        (warm(images=COLD_IMAGE), f"not ready: image {IMAGE.ref} is present"),
        (warm(images=OTHER_IMAGE), f"not ready: image {IMAGE.ref} is sha256:{'c' * 64} here, not {IMAGE_DIGEST}"),
        (warm(images={}), f"not ready: image {IMAGE.ref} is not proved yet"),
        (warm(models=COLD_MODEL), "not ready: model llama is partial"),
        (warm(models={}, images={}), f"not ready: image {IMAGE.ref} is not proved yet (and 1 more)"),
        (
            warm(gpu=GpuReport(verdict=GpuVerdict.DEGRADED, reason="a link is slow")),
            "not ready: it needs 8 GPU and the verdict is degraded: a link is slow",
        ),
    ],
)
def test_whatever_is_not_proved_keeps_the_label_away_and_says_why(inventory: Inventory, reason: str) -> None:
    found = judge(inventory, gpus=8)
    assert LABEL not in found.labels
    assert found.reasons[LABEL] == reason


def test_images_in_another_snapshotter_than_the_runtime_uses_prove_nothing() -> None:
    there = warm(elsewhere={"kata": "devmapper"})
    for handler, ready in (("", True), ("nvidia", True), ("kata", False)):
        found = readiness(assigned(endpoint(runtime_handler=handler)), there, START, lift_taint="gpu")
        assert (LABEL in found.labels) is ready
    assert "devmapper" in found.reasons[LABEL]


def test_sick_gpus_concern_only_endpoints_that_need_one() -> None:
    sick = warm(gpu=GpuReport(verdict=GpuVerdict.UNHEALTHY, reason="Xid 79"))
    assert judge(sick, gpus=0).labels[LABEL] == "ready"
    assert LABEL not in judge(sick, gpus=1).labels


@pytest.mark.parametrize(
    ("report", "ready_for"),
    [
        ({"verdict": GpuVerdict.DEGRADED, "alone": GpuVerdict.HEALTHY}, {1}),  # a link between GPUs is down
        ({"verdict": GpuVerdict.DEGRADED, "together": GpuVerdict.HEALTHY}, {2, 8}),
        ({"verdict": GpuVerdict.HEALTHY, "alone": GpuVerdict.UNKNOWN, "together": GpuVerdict.UNHEALTHY}, set()),
        (
            {"verdict": GpuVerdict.DEGRADED, "alone": GpuVerdict.HEALTHY, "together": GpuVerdict.HEALTHY, "usable": 7},
            {1, 2},
        ),
    ],
)
def test_gpus_are_judged_by_what_the_endpoint_uses(report: dict[str, object], ready_for: set[int]) -> None:
    found = warm(gpu=GpuReport(count=8, **report))  # type: ignore[arg-type]
    assert {n for n in (1, 2, 8) if LABEL in judge(found, gpus=n).labels} == ready_for


def test_an_unresolved_model_counts_once_the_agent_has_resolved_it() -> None:
    want = assigned(endpoint(models=(ModelWant(name="llama", uri=URI),)))
    assert LABEL not in readiness(want, warm(), START).labels
    assert readiness(want, warm(resolved={str(URI): DIGEST}), START).labels[LABEL] == "ready"


def test_an_endpoint_that_asks_for_nothing_is_never_ready() -> None:
    assert LABEL not in readiness(assigned(endpoint(images=(), models=())), warm(), START).labels


@pytest.mark.parametrize("name", ["x" * 63, "a b", "ü", "end-"])
def test_a_key_that_cannot_be_a_label_is_told_and_spoils_nothing(name: str) -> None:
    bad = endpoint(EndpointKey(namespace="team", name=name))
    found = readiness(assigned(bad, endpoint()), warm(), START)
    assert found.labels[LABEL] == "ready"
    assert len(found.labels) == 2
    assert "cannot be a label" in found.reasons[f"endpoint.prewarm.dev/team.{name}"]


def test_before_the_first_proof_only_what_is_contradicted_is_decided() -> None:
    assert judge(warm(proved=False, images={}, models={})).undecided == frozenset({LABEL})
    assert judge(warm(proved=False, images={}, models=COLD_MODEL)).undecided == frozenset()
    assert judge(warm(images={})).undecided == frozenset()
    assert readiness(None, warm(), START).undecided is None


@pytest.mark.parametrize(
    ("verdict", "lift_taint", "wish"),
    [
        (GpuVerdict.HEALTHY, "gpu", TaintWish.LIFT),
        (GpuVerdict.NONE, "gpu", TaintWish.LIFT),
        (GpuVerdict.DEGRADED, "gpu", TaintWish.LEAVE),
        (GpuVerdict.UNKNOWN, "gpu", TaintWish.LEAVE),
        (GpuVerdict.UNHEALTHY, "gpu", TaintWish.ADD),
        (GpuVerdict.UNHEALTHY, "windows", TaintWish.ADD),
        (GpuVerdict.HEALTHY, "off", TaintWish.LEAVE),
        (GpuVerdict.UNHEALTHY, "off", TaintWish.LEAVE),
    ],
)
def test_the_taint_follows_the_gpus(verdict: GpuVerdict, lift_taint: str, wish: TaintWish) -> None:
    assert judge(warm(gpu=GpuReport(verdict=verdict)), lift_taint=lift_taint).taint is wish


def test_with_windows_due_endpoints_delay_the_lifting_and_others_do_not() -> None:
    ahead, due = assigned(endpoint(opens_in=60)), assigned(endpoint(opens_in=-60))
    cold = warm(models=COLD_MODEL)
    assert readiness(ahead, cold, START, lift_taint="windows").taint is TaintWish.LIFT
    assert readiness(due, cold, START, lift_taint="windows").taint is TaintWish.LEAVE
    assert readiness(due, warm(), START, lift_taint="windows").taint is TaintWish.LIFT
    assert readiness(None, warm(), START, lift_taint="windows").taint is TaintWish.LEAVE


def test_conditions_tell_what_is_due_now() -> None:
    def cache(opens_in: float, inventory: Inventory) -> tuple[str, str]:
        found = readiness(assigned(endpoint(opens_in=opens_in)), inventory, START).conditions[1]
        assert found.type == "prewarm.dev/CacheReady"
        return found.status, found.reason

    assert cache(60, warm()) == ("True", "AllWarm")
    assert cache(60, warm(models=COLD_MODEL)) == ("True", "NothingDue")
    assert cache(-60, warm(models=COLD_MODEL)) == ("False", "Cold")
    assert cache(-60, warm(proved=False)) == ("Unknown", "NotProved")


@pytest.mark.parametrize(
    ("verdict", "status"),
    [("healthy", "True"), ("none", "True"), ("degraded", "False"), ("unhealthy", "False"), ("unknown", "Unknown")],
)
def test_the_gpu_condition_has_the_verdict_and_its_reason(verdict: str, status: str) -> None:
    found = judge(warm(gpu=GpuReport(verdict=GpuVerdict(verdict), reason="because"))).conditions[0]
    assert (found.type, found.status, found.message) == ("prewarm.dev/GPUHealthy", status, "because")


def test_it_says_when_time_alone_changes_the_answer() -> None:
    found = readiness(assigned(endpoint(opens_in=60)), warm(), START)
    assert found.wake_at == START + timedelta(seconds=60)
    assert readiness(assigned(endpoint(opens_in=None)), warm(), START).wake_at is None


def test_reasons_from_outside_stay_one_short_line() -> None:
    failed = replace(COLD_MODEL[DIGEST], error="denied\n\x1b[31m" + "x" * 5000)
    reason = judge(warm(models={DIGEST: failed})).reasons[LABEL]
    assert len(reason) <= 900
    assert reason.isprintable()
    assert MODEL.name in reason
