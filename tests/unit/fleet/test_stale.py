"""Which claims are stale, and the brake."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from agent.fleet.stale import AgentState, Verdict, allowance, claims, judge, observe_agents
from agent.fleet.withdraw import withdrawal
from agent.kube.objects import Condition, ContainerStatusView, NodeView, PodView

NOW = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
GRACE = timedelta(seconds=20)
READY = Condition(type="Ready", status="True")
LABELS = {"endpoint.prewarm.dev/shop.chat": "ready", "prewarm.dev/gpu": "healthy", "pool": "gpu"}


def node(name: str = "n1", **changes: object) -> NodeView:
    view = NodeView(
        name=name,
        labels=LABELS,
        annotations={"prewarm.dev/boot-id": "b1"},
        boot_id="b1",
        conditions=(READY, Condition(type="prewarm.dev/GPUHealthy", status="True")),
    )
    return replace(view, **changes)  # type: ignore[arg-type]


def pod(ready: str, since: datetime | None = None, on: str = "n1", **changes: object) -> PodView:
    condition = Condition(type="Ready", status=ready, since=since)
    view = PodView(namespace="prewarm", name="agent", uid="u", node=on, phase="Running", conditions=(condition,))
    return replace(view, **changes)  # type: ignore[arg-type]


def reasons(verdict: Verdict) -> dict[str, str]:
    return {s.node: s.reason for s in verdict.stale}


def seen(since_seconds: float, *, exists: bool = True) -> dict[str, AgentState]:
    return {"n1": AgentState(unready_since=NOW - timedelta(seconds=since_seconds), exists=exists)}


def test_sound_node_is_left_alone() -> None:
    assert judge([node()], {"n1": AgentState()}, NOW, GRACE) == Verdict(claiming=1)


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_not_ready_node_is_stale_at_once(status: str) -> None:
    dead = node(conditions=(Condition(type="Ready", status=status),))
    assert reasons(judge([dead], {"n1": AgentState()}, NOW, GRACE)) == {"n1": "NodeNotReady"}


def test_node_that_claims_nothing_is_never_stale() -> None:
    conditions = (
        Condition(type="Ready", status="False"),
        Condition(type="prewarm.dev/CacheReady", status="Unknown"),
        Condition(type="other.dev/Healthy", status="True"),
    )
    idle = node(labels={"pool": "gpu", "prewarm.dev/inject": "x"}, conditions=conditions)
    assert judge([idle], seen(1000), NOW, GRACE) == Verdict()


def test_a_lone_condition_is_a_claim() -> None:
    assert claims(node(labels={}))
    assert not claims(node(labels={}, conditions=(READY,)))


@pytest.mark.parametrize(
    ("annotations", "boot_id", "reason"),
    [
        ({"prewarm.dev/boot-id": "b0"}, "b1", {"n1": "NodeRebooted"}),
        ({}, "b1", {"n1": "NoBootId"}),
        ({"prewarm.dev/boot-id": "b1"}, "b1", {}),
        ({"prewarm.dev/boot-id": "b0"}, "", {}),  # the kubelet has not said
    ],
)
def test_claims_of_another_boot(annotations: dict[str, str], boot_id: str, reason: dict[str, str]) -> None:
    found = judge([node(annotations=annotations, boot_id=boot_id)], {"n1": AgentState()}, NOW, GRACE)
    assert reasons(found) == reason


def test_agent_not_ready_is_stale_after_the_grace_period() -> None:
    early = judge([node()], seen(19), NOW, GRACE)
    assert early == Verdict(claiming=1, wake_at=NOW + timedelta(seconds=1))
    assert reasons(judge([node()], seen(20), NOW, GRACE)) == {"n1": "AgentNotReady"}
    gone = judge([node()], seen(25, exists=False), NOW, GRACE)
    assert reasons(gone) == {"n1": "AgentGone"}
    assert gone.stale[0].message == "no agent has run on this node for 25 s"


def test_rolling_update_counts_from_the_last_ready_pod() -> None:
    states = observe_agents(["n1"], [pod("True")], {}, NOW)
    states = observe_agents(["n1"], [], states, NOW + timedelta(seconds=2))
    new = pod("False", NOW + timedelta(seconds=9))
    states = observe_agents(["n1"], [new], states, NOW + timedelta(seconds=10))
    assert states["n1"] == AgentState(unready_since=NOW + timedelta(seconds=2))
    states = observe_agents(["n1"], [pod("True")], states, NOW + timedelta(seconds=12))
    assert states["n1"] == AgentState()


def test_new_leader_takes_the_pods_word_for_how_long() -> None:
    old = NOW - timedelta(minutes=9)
    assert observe_agents(["n1"], [pod("False", old)], {}, NOW)["n1"].unready_since == old
    assert observe_agents(["n1"], [], {}, NOW)["n1"] == AgentState(unready_since=NOW, exists=False)
    ahead = pod("False", NOW + timedelta(hours=1))  # the node's clock is wrong
    assert observe_agents(["n1"], [ahead], {}, NOW)["n1"].unready_since == NOW


def test_one_ready_pod_of_two_is_enough_and_a_failed_one_counts_for_nothing() -> None:
    assert observe_agents(["n1"], [pod("False", NOW), pod("True")], {}, NOW)["n1"] == AgentState()
    evicted = pod("True", phase="Failed")
    assert observe_agents(["n1"], [evicted], {}, NOW)["n1"] == AgentState(unready_since=NOW, exists=False)
    assert observe_agents(["n1"], [pod("True", on="n2")], {}, NOW)["n1"].unready_since == NOW


@pytest.mark.parametrize(
    ("claiming", "recent_seconds", "allowed"),
    [
        (1, [], 3),
        (3, [], 3),
        (2, [30], 2),  # three a minute ago, one withdrawn
        (2, [61], 3),
        (2, [5, 10, 15], 0),
        (10, [], 3),
        (8, [10, 5], 1),
        (1000, [], 300),
    ],
)
def test_brake(claiming: int, recent_seconds: list[int], allowed: int) -> None:
    recent = [NOW - timedelta(seconds=s) for s in recent_seconds]
    assert allowance(claiming, recent, 0.3, NOW) == allowed


def test_withdrawal_takes_back_all_of_ours_and_nothing_else() -> None:
    stale = judge([node()], seen(30), NOW, GRACE).stale[0]
    assert withdrawal(node(), stale, NOW) == {
        "metadata": {"labels": {"endpoint.prewarm.dev/shop.chat": None, "prewarm.dev/gpu": None}},
        "status": {
            "conditions": [
                {
                    "type": "prewarm.dev/GPUHealthy",
                    "status": "Unknown",
                    "reason": "AgentNotReady",
                    "message": "withdrawn by the planner: the agent has not been Ready for 30 s",
                    "lastTransitionTime": "2026-03-02T08:00:00Z",
                    "lastHeartbeatTime": "2026-03-02T08:00:00Z",
                }
            ]
        },
    }


def test_a_restarted_agent_has_fifteen_seconds_to_become_ready() -> None:
    """What it claims by then it has proved again; taking it back would make the label flap."""
    restarted = ContainerStatusView(name="agent", restarts=1, started_at=NOW - timedelta(seconds=5))
    pods = [pod("False", NOW - timedelta(seconds=70), containers=(restarted,))]
    agents = observe_agents(["n1"], pods, seen(70), NOW)
    verdict = judge([node()], agents, NOW, GRACE)
    assert (reasons(verdict), verdict.wake_at) == ({}, NOW + timedelta(seconds=10))
    assert reasons(judge([node()], agents, NOW + timedelta(seconds=10), GRACE)) == {"n1": "AgentNotReady"}


def test_a_crash_loop_gains_nothing_by_its_starts() -> None:
    crashed = ContainerStatusView(name="agent", restarts=3)  # waiting: nothing runs
    agents = observe_agents(["n1"], [pod("False", containers=(crashed,))], seen(21), NOW)
    assert reasons(judge([node()], agents, NOW, GRACE)) == {"n1": "AgentNotReady"}


def test_a_stopped_agent_that_started_long_ago_gets_no_further_grace() -> None:
    stopped = ContainerStatusView(name="agent", started_at=NOW - timedelta(hours=1))
    agents = observe_agents(["n1"], [pod("False", containers=(stopped,))], seen(21), NOW)
    assert reasons(judge([node()], agents, NOW, GRACE)) == {"n1": "AgentNotReady"}


def test_what_claims_most_is_withdrawn_first() -> None:
    """The brake may hold the rest for a minute: pods must not be drawn to a dead endpoint meanwhile."""
    dead = (Condition(type="Ready", status="False"),)
    nodes = [node("n1", labels={"prewarm.dev/gpu": "healthy"}, conditions=dead), node("n2", conditions=dead)]
    assert list(reasons(judge(nodes, {}, NOW, GRACE))) == ["n2", "n1"]
