"""Which nodes claim what nobody stands behind any more, and how fast the planner may act on it. Pure.

A node claims if it carries a label `endpoint.prewarm.dev/…` or `prewarm.dev/gpu`, or one of our conditions that is not
Unknown. Its claims are stale

- at once, if its Node is not Ready, or the claims were made in another boot than the kubelet reports;
- after a grace period, if no agent pod on it is Ready (a rolling update restarts agents within it).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from agent.core.names import ANNOTATION_BOOT_ID, CONDITION_CACHE, CONDITION_GPU, ENDPOINT_PREFIX, LABEL_GPU
from agent.kube.objects import NodeView, PodView

RESTART = timedelta(seconds=15)  # an agent proves standing claims again within 10 s, and is probed every 5 s
BRAKE_WINDOW = timedelta(minutes=1)
FEW = 3  # nodes the brake never holds: what a fleet of ten loses at a brake of 0.3
WITHDRAWN = "withdrawn by the planner: "  # so begin the messages of conditions that it took back
_CONDITIONS = (CONDITION_GPU, CONDITION_CACHE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """Why a node's claims are withdrawn: a CamelCase reason for the conditions, and a sentence."""

    node: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """A node's agent: since when no pod of it has been Ready (None while one is), and whether there is a pod at all.

    `started_at` is when its container was started, if that runs now.
    """

    unready_since: datetime | None = None
    exists: bool = True
    started_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is stale now, and when more will be if nothing changes."""

    stale: tuple[Stale, ...] = ()
    claiming: int = 0
    wake_at: datetime | None = None


def claimed_labels(node: NodeView) -> tuple[str, ...]:
    """Return the labels by which a node claims something."""
    return tuple(k for k in node.labels if k == LABEL_GPU or k.startswith(ENDPOINT_PREFIX))


def claimed_conditions(node: NodeView) -> tuple[str, ...]:
    """Return the types of our conditions that say something."""
    return tuple(c.type for c in node.conditions if c.type in _CONDITIONS and c.status != "Unknown")


def claims(node: NodeView) -> bool:
    """Say whether a node claims anything."""
    return bool(claimed_labels(node) or claimed_conditions(node))


def lately_withdrawn(nodes: Iterable[NodeView], now: datetime) -> dict[str, datetime]:
    """Return when nodes were withdrawn within BRAKE_WINDOW, as their conditions say: a change of leader lets go of no brake."""
    return {
        node.name: c.since
        for node in nodes
        for c in node.conditions
        if c.type in _CONDITIONS and c.message.startswith(WITHDRAWN) and c.since and now - BRAKE_WINDOW < c.since <= now
    }


def observe_agents(
    nodes: Iterable[str], pods: Iterable[PodView], before: Mapping[str, AgentState], now: datetime
) -> Mapping[str, AgentState]:
    """Return the state of each node's agent.

    The time without a Ready pod counts from when this process saw the last one, across replaced pods. A process that never
    saw one takes the pods' own word for it, so that a new leader does not grant the grace period again.
    """
    by_node: defaultdict[str, list[PodView]] = defaultdict(list)
    for pod in pods:
        by_node[pod.node].append(pod)
    return {name: _agent(by_node[name], before.get(name), now) for name in nodes}


def judge(nodes: Iterable[NodeView], agents: Mapping[str, AgentState], now: datetime, grace: timedelta) -> Verdict:
    """Return every stale node: those that claim most endpoints first, for the brake may hold the rest; then by name."""
    claiming = [node for node in nodes if claims(node)]
    stale, later = [], []
    for node in sorted(claiming, key=lambda n: (-len(claimed_labels(n)), n.name)):
        agent = agents.get(node.name, AgentState())
        found = _node_reason(node)
        ends = _grace_ends(agent, grace)
        if not found and ends and ends <= now:
            found = _agent_reason(agent, now)
        elif not found and ends:
            later.append(ends)
        if found:
            stale.append(Stale(node=node.name, reason=found[0], message=found[1]))
    return Verdict(stale=tuple(stale), claiming=len(claiming), wake_at=min(later, default=None))


def allowance(claiming: int, recent: Collection[datetime], brake: float, now: datetime) -> int:
    """Return how many more nodes may be withdrawn now: the brake.

    Within any minute at most the share `brake` of the nodes that claim (or did, a minute ago), rounded down, but always
    FEW: three agents that die together lose their claims as fast as one. A planner that sees wrongly is caught by the alert
    on what is held back before it has cleared a fleet.
    """
    used = sum(now - BRAKE_WINDOW < at for at in recent)
    most = max(FEW, math.floor(brake * (claiming + used)))
    return max(0, most - used)


def _grace_ends(agent: AgentState, grace: timedelta) -> datetime | None:
    """Return when an agent's time without a Ready pod is over.

    One that was just started has RESTART to become Ready, whatever was before: what it claims by then it has proved again. A
    crash loop gains nothing by it, for between its starts nothing runs.
    """
    if agent.unready_since is None:
        return None
    ends = agent.unready_since + grace
    return max(ends, agent.started_at + RESTART) if agent.started_at else ends


def _agent(pods: Sequence[PodView], before: AgentState | None, now: datetime) -> AgentState:
    ready = [pod.condition("Ready") for pod in pods if pod.phase not in ("Failed", "Succeeded")]
    if any(c and c.status == "True" for c in ready):
        return AgentState()
    if before is not None:
        since = before.unready_since or now
    else:
        since = max([c.since for c in ready if c and c.since], default=now)
    started = max([c.started_at for pod in pods for c in pod.containers if c.started_at], default=None)
    return AgentState(unready_since=min(since, now), exists=bool(ready), started_at=started)


def _node_reason(node: NodeView) -> tuple[str, str] | None:
    if not node.ready:
        return "NodeNotReady", "the Node is not Ready"
    claimed = node.annotations.get(ANNOTATION_BOOT_ID, "")
    if not node.boot_id or claimed == node.boot_id:
        return None
    if not claimed:
        return "NoBootId", f"the claims carry no {ANNOTATION_BOOT_ID}, so no agent of this version made them"
    return "NodeRebooted", f"the claims are of boot {claimed[:40]}, the node is in boot {node.boot_id[:40]}"


def _agent_reason(agent: AgentState, now: datetime) -> tuple[str, str]:
    seconds = round((now - (agent.unready_since or now)).total_seconds())
    if not agent.exists:
        return "AgentGone", f"no agent has run on this node for {seconds} s"
    return "AgentNotReady", f"the agent has not been Ready for {seconds} s"
