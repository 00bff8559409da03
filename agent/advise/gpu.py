"""`doctor gpu`: what keeps nodes from proving their GPUs, pods from going where it is warm, and the accounts from being held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from agent.advise.advice import Advice, Kind
from agent.advise.policies import AGENT_PODS, PLANNER_PODS, accounts, policy_advice
from agent.advise.tolerations import untolerating
from agent.core.errors import Permanent, cut
from agent.core.names import ENDPOINT_PREFIX, READY
from agent.kube.api import KubeApi, Resource
from agent.kube.errors import NotFound
from agent.kube.objects import NodeView
from agent.kube.resources import DAEMONSETS, NODES, PODS, POLICIES, POLICY_BINDINGS

T = TypeVar("T")


async def examine(kubeconfig: str, names: Sequence[str] = ()) -> tuple[Advice, ...]:
    """Look at a cluster as the person that `kubeconfig` is; what that person may not see becomes advice, too.

    Raises:
        PrewarmError: there is no usable kubeconfig, or the API server does not answer.
    """
    del names  # it is about the cluster, not about one object
    async with await KubeApi.connect(kubeconfig) as api:
        look = _Look(api)
        daemonsets, nodes = await look.at(DAEMONSETS), await look.at(NODES)
        found = [*untolerating(daemonsets or ()), *outweighed(nodes or ())]
        policies, bindings = await look.at(POLICIES), await look.at(POLICY_BINDINGS)
        agents, planners = await look.at(PODS, AGENT_PODS), await look.at(PODS, PLANNER_PODS)
        if policies is not None and bindings is not None:
            users = {"agent": accounts(agents or ()), "planner": accounts(planners or ())}
            found += policy_advice(policies, bindings, users)
    return (*found, *look.unseen)


def outweighed(nodes: Iterable[NodeView]) -> Iterator[Advice]:
    """Yield advice for warm nodes that the scheduler avoids: TaintToleration weighs 3, the NodeAffinity of a claim 2."""
    for node in sorted(nodes, key=lambda n: n.name):
        soft = [t for t in node.taints if t.effect == "PreferNoSchedule"]
        if soft and any(k.startswith(ENDPOINT_PREFIX) and v == READY for k, v in node.labels.items()):
            names = ", ".join(f"{t.key}:{t.effect}" for t in soft)
            removed = " ".join(f"{t.key}:{t.effect}-" for t in soft)
            yield Advice(
                about=f"node {node.name}",
                message=f"it is warm, but pods avoid it: {names} outweighs any preference for a warm node",
                cure=f"kubectl taint node {node.name} {removed}, or let the endpoint's pods tolerate it",
            )


class _Look:
    """Lists what can be listed and remembers what cannot."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self._unseen: dict[str, Advice] = {}

    @property
    def unseen(self) -> tuple[Advice, ...]:
        """What could not be looked at."""
        return tuple(self._unseen.values())

    async def at(self, resource: Resource[T], labels: str = "") -> tuple[T, ...] | None:
        """Return all objects of a kind, None where that is not known."""
        try:
            return (await self._api.list(resource, label_selector=labels)).items
        except NotFound:
            message, cure = (
                "this API server does not serve them",
                "prewarm needs Kubernetes 1.30 or later for its policies",
            )
        except Permanent as error:
            message, cure = cut(error), f"ask as somebody who may list {resource.plural} in all namespaces"
        self._unseen[resource.plural] = Advice(about=resource.plural, message=message, cure=cure, kind=Kind.UNSEEN)
        return None
