"""The watched Node held against what it may say."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from agent.core.inventory import GpuReport, GpuVerdict, Inventory
from agent.kube.objects import Condition, NodeView, Taint
from agent.node.changes import Changes, changes, status_body, taint_ops
from agent.node.readiness import Readiness, TaintWish, readiness
from tests.fakes.virtual_time import START
from tests.unit.node.making import LABEL, assigned, warm

TAINT = Taint(key="prewarm.dev/not-ready", effect="NoSchedule")
OTHER = Taint(key="node.kubernetes.io/other", effect="NoExecute", value="x")
UNKNOWN = GpuReport(verdict=GpuVerdict.UNKNOWN)


def wanted(inventory: Inventory | None = None) -> Readiness:
    return readiness(assigned(), inventory or warm(), START)


def standing(boot: str = "boot-1", **other: object) -> NodeView:
    """A Node that says all that `wanted()` says, and a few things of others."""
    full: dict[str, object] = {
        "labels": {LABEL: "ready", "prewarm.dev/gpu": "healthy", "zone": "a", "prewarm.dev/mine": "x"},
        "annotations": {"prewarm.dev/boot-id": boot, "their": "own"},
        "conditions": (*wanted().conditions, Condition(type="Ready", status="True")),
    } | other
    return NodeView(name="n1", uid="u1", resource_version="7", **full)  # type: ignore[arg-type]


def test_nothing_is_written_that_already_stands() -> None:
    assert changes(standing(), wanted(), grace=False) == Changes()


def test_a_bare_node_gets_everything() -> None:
    found = changes(NodeView(name="n1"), wanted(), grace=True)
    assert found.labels == {LABEL: "ready", "prewarm.dev/gpu": "healthy"}
    assert found.annotations == {"prewarm.dev/boot-id": "boot-1"}
    assert [c.type for c in found.conditions] == ["prewarm.dev/GPUHealthy", "prewarm.dev/CacheReady"]
    assert found.withdraws == frozenset()


def test_what_is_not_proved_is_removed_and_labels_of_others_stay() -> None:
    found = changes(standing(), wanted(warm(images={})), grace=False)
    assert found.labels == {LABEL: None}
    assert LABEL in found.withdraws


def test_claims_of_an_earlier_boot_go_at_once_even_in_grace() -> None:
    unproved = wanted(warm(proved=False, images={}, models={}, gpu=UNKNOWN))
    found = changes(standing(boot="boot-0"), unproved, grace=True)
    assert found.labels == {LABEL: None, "prewarm.dev/gpu": "unknown"}
    assert found.annotations == {"prewarm.dev/boot-id": "boot-1"}
    assert found.withdraws >= {LABEL, "prewarm.dev/gpu", "prewarm.dev/GPUHealthy", "prewarm.dev/CacheReady"}


def test_undecided_claims_of_this_boot_stand_during_grace_and_no_longer() -> None:
    unproved = wanted(warm(proved=False, images={}, models={}, gpu=UNKNOWN))
    assert changes(standing(), unproved, grace=True) == Changes()
    assert changes(standing(), unproved, grace=False).labels == {LABEL: None, "prewarm.dev/gpu": "unknown"}


def test_with_no_assignment_known_yet_endpoint_claims_stand_during_grace() -> None:
    unknown = readiness(None, warm(), START)
    assert changes(standing(), unknown, grace=True).labels == {}
    assert changes(standing(), unknown, grace=False).labels == {LABEL: None}


def test_a_contradicted_claim_goes_during_grace() -> None:
    sick = wanted(warm(proved=False, images={}, gpu=GpuReport(verdict=GpuVerdict.UNHEALTHY)))
    found = changes(standing(), sick, grace=True)
    assert found.labels == {"prewarm.dev/gpu": "unhealthy"}
    assert "prewarm.dev/gpu" in found.withdraws


def test_a_standing_label_that_nobody_asks_for_goes_during_grace() -> None:
    found = changes(standing(), readiness(assigned(), warm(proved=False), START), grace=True)
    other = changes(
        standing(labels={"endpoint.prewarm.dev/gone.x": "ready", "prewarm.dev/gpu": "healthy"}), wanted(), grace=True
    )
    assert found.labels == {}
    assert other.labels == {LABEL: "ready", "endpoint.prewarm.dev/gone.x": None}


def test_claims_in_flight_are_withdrawn_like_those_that_stand() -> None:
    bare = standing(labels={"prewarm.dev/gpu": "unhealthy"})
    sick = wanted(warm(images={}, gpu=GpuReport(verdict=GpuVerdict.UNHEALTHY)))
    assert changes(bare, sick, grace=False).labels == {}
    found = changes(bare, sick, grace=False, in_flight=frozenset({LABEL, "prewarm.dev/gpu"}))
    assert found.labels == {LABEL: None, "prewarm.dev/gpu": "unhealthy"}
    assert found.withdraws >= {LABEL, "prewarm.dev/gpu"}


def test_one_patch_carries_labels_annotations_and_conditions() -> None:
    bare = NodeView(name="n1", uid="u1")
    body = status_body(changes(bare, wanted(), grace=False), bare, START)
    assert body["metadata"] == {
        "uid": "u1",
        "labels": {LABEL: "ready", "prewarm.dev/gpu": "healthy"},
        "annotations": {"prewarm.dev/boot-id": "boot-1"},
    }
    conditions = body["status"]["conditions"]  # type: ignore[index]
    assert conditions[0] == {
        "type": "prewarm.dev/GPUHealthy",
        "status": "True",
        "reason": "Healthy",
        "message": "all 8 answer",
        "lastTransitionTime": "2026-03-02T08:00:00Z",
        "lastHeartbeatTime": "2026-03-02T08:00:00Z",
    }


def test_the_transition_time_moves_only_with_the_status() -> None:
    since = START - timedelta(hours=5)
    node = standing(conditions=tuple(replace(c, since=since) for c in wanted().conditions))
    other_words = wanted(warm(gpu=GpuReport(verdict=GpuVerdict.HEALTHY, reason="all 7 answer")))
    degraded = wanted(warm(gpu=GpuReport(verdict=GpuVerdict.DEGRADED, reason="slow")))
    for found, at in ((other_words, "2026-03-02T03:00:00Z"), (degraded, "2026-03-02T08:00:00Z")):
        body = status_body(changes(node, found, grace=False), node, START)
        (condition,) = body["status"]["conditions"]  # type: ignore[index]
        assert condition["lastTransitionTime"] == at


def test_lifting_tests_what_it_removes_and_remembers_it() -> None:
    ops = taint_ops(standing(taints=(OTHER, TAINT)), TaintWish.LIFT)
    assert ops == [
        {"op": "test", "path": "/spec/taints/1/key", "value": "prewarm.dev/not-ready"},
        {"op": "test", "path": "/spec/taints/1/effect", "value": "NoSchedule"},
        {"op": "remove", "path": "/spec/taints/1"},
        {"op": "add", "path": "/metadata/annotations/prewarm.dev~1taint-lifted", "value": "true"},
    ]


def test_the_taint_comes_back_only_where_an_agent_lifted_it() -> None:
    sick = wanted(warm(gpu=GpuReport(verdict=GpuVerdict.UNHEALTHY)))
    born_without = standing()
    lifted = standing(annotations={"prewarm.dev/taint-lifted": "true"})
    assert changes(born_without, sick, grace=False).taint is TaintWish.LEAVE
    found = changes(lifted, sick, grace=False)
    assert found.taint is TaintWish.ADD
    assert "prewarm.dev/not-ready" in found.withdraws


def test_adding_the_taint_never_replaces_the_list_of_others() -> None:
    ours = {"key": "prewarm.dev/not-ready", "effect": "NoSchedule"}
    assert taint_ops(standing(taints=(OTHER,)), TaintWish.ADD) == [
        {"op": "test", "path": "/spec/taints/0/key", "value": OTHER.key},
        {"op": "add", "path": "/spec/taints/-", "value": ours},
    ]
    assert taint_ops(standing(), TaintWish.ADD) == [
        {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
        {"op": "add", "path": "/spec/taints", "value": [ours]},
    ]
    assert taint_ops(standing(taints=(TAINT,)), TaintWish.ADD) == []
    assert taint_ops(standing(), TaintWish.LIFT) == []


def down(node: NodeView, status: str = "Unknown") -> NodeView:
    others = [c for c in node.conditions if c.type != "Ready"]
    return replace(node, conditions=(*others, Condition(type="Ready", status=status)))


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_a_node_that_is_not_ready_claims_nothing_however_well_it_is_proved(status: str) -> None:
    found = changes(down(standing(), status), wanted(), grace=True)
    assert found.labels == {LABEL: None, "prewarm.dev/gpu": None}
    assert {(c.type, c.status, c.reason) for c in found.conditions} == {
        ("prewarm.dev/GPUHealthy", "Unknown", "NodeNotReady"),
        ("prewarm.dev/CacheReady", "Unknown", "NodeNotReady"),
    }
    assert found.withdraws == {LABEL, "prewarm.dev/gpu", "prewarm.dev/GPUHealthy", "prewarm.dev/CacheReady"}


def test_what_the_planner_withdrew_of_a_node_that_is_not_ready_stays_as_it_left_it() -> None:
    told = tuple(
        replace(c, status="Unknown", reason="NodeNotReady", message="by the planner") for c in wanted().conditions
    )
    withdrawn = down(standing(labels={"zone": "a"}, conditions=told))
    assert changes(withdrawn, wanted(), grace=False) == Changes()


def test_a_node_that_is_not_ready_keeps_its_taint_and_may_get_it_back() -> None:
    assert changes(down(standing(taints=(TAINT,))), wanted(), grace=False).taint is TaintWish.LEAVE
    sick = wanted(warm(gpu=GpuReport(verdict=GpuVerdict.UNHEALTHY)))
    lifted = down(standing(annotations={"prewarm.dev/taint-lifted": "true"}))
    assert changes(lifted, sick, grace=False).taint is TaintWish.ADD


def test_claims_in_flight_to_a_node_that_is_not_ready_are_withdrawn_too() -> None:
    bare = down(standing(labels={}, conditions=()))
    assert changes(bare, wanted(), grace=False).labels == {}
    in_flight = frozenset({LABEL, "prewarm.dev/gpu"})
    assert changes(bare, wanted(), grace=False, in_flight=in_flight).labels == {LABEL: None, "prewarm.dev/gpu": None}
