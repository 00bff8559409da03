"""Do the admission policies of deploy/policies hold the accounts that agent and planner run as? Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from agent.advise.advice import Advice
from agent.kube.objects import PodView, PolicyBindingView, PolicyView

WANTED = {  # by the end of its name, for an overlay may put a prefix before it; whom it holds
    "prewarm-agent-nodes": "agent",
    "prewarm-agent-nodewarmups": "agent",
    "prewarm-planner-nodes": "planner",
    "prewarm-planner-nodewarmups": "planner",
    "prewarm-planner-configmaps": "planner",
    "prewarm-planner-scalers": "planner",
}
AGENT_PODS = "app.kubernetes.io/name=prewarm,app.kubernetes.io/component=agent"  # as in deploy/
PLANNER_PODS = "app.kubernetes.io/name=prewarm,app.kubernetes.io/component=planner"
_APPLY = "kubectl apply -k deploy/policies"


def accounts(pods: Iterable[PodView]) -> frozenset[str]:
    """Return the names of the service accounts that pods run as."""
    return frozenset(pod.spec.service_account for pod in pods)


def policy_advice(
    policies: Collection[PolicyView],
    bindings: Collection[PolicyBindingView],
    users: Mapping[str, Collection[str]],
) -> Iterator[Advice]:
    """Yield advice for each policy that is missing or does not do its work; `users` are the accounts by who runs as them."""
    denying = {b.policy for b in bindings if b.denies}
    for wanted, who in WANTED.items():
        found = [p for p in policies if p.name.endswith(wanted)]
        if not found:
            message = (
                f"missing: nothing but RBAC holds the {who}, and RBAC cannot say which node, label or name is its own"
            )
            yield Advice(about=f"policy {wanted}", message=message, cure=_APPLY)
            continue
        for policy in found:
            yield from _weak(policy, denying)
        for account in sorted(users[who]):
            if not any(f"'{account}'" in text for policy in found for text in policy.concerns):
                yield Advice(
                    about=f"policy {wanted}",
                    message=f"it does not name the account {account} that the {who} runs as, so it does not hold it",
                    cure="carry the account's name into the policy: docs/security.md, another namespace, other names",
                )


def _weak(policy: PolicyView, denying: Collection[str]) -> Iterator[Advice]:
    about = f"policy {policy.name}"
    if policy.name not in denying:
        yield Advice(about=about, message="no binding lets it deny anything", cure=_APPLY)
    if not policy.fails_closed:
        yield Advice(
            about=about, message="what it cannot evaluate it lets through", cure=f"failurePolicy: Fail ({_APPLY})"
        )
    for warning in policy.warnings:
        yield Advice(about=about, message=f"the type checker warns: {warning}", cure=_APPLY)
