"""Do the policies hold the accounts that are in use?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from agent.advise.advice import Advice
from agent.advise.policies import WANTED, policy_advice
from agent.kube.objects import PolicyBindingView, PolicyView
from agent.kube.parse import parse_policy, parse_policy_binding

SHIPPED = [
    document
    for file in ("agent", "planner")
    for document in yaml.safe_load_all(
        (Path(__file__).resolve().parents[3] / f"deploy/policies/{file}.yaml").read_text()
    )
]
POLICIES = [parse_policy(d) for d in SHIPPED if d["kind"] == "ValidatingAdmissionPolicy"]
BINDINGS = [parse_policy_binding(d) for d in SHIPPED if d["kind"] == "ValidatingAdmissionPolicyBinding"]
USERS = {"agent": {"prewarm-agent"}, "planner": {"prewarm-planner"}}


def advice(
    policies: list[PolicyView] = POLICIES,
    bindings: list[PolicyBindingView] = BINDINGS,
    users: dict[str, set[str]] = USERS,
) -> list[Advice]:
    return list(policy_advice(policies, bindings, users))


def test_there_is_nothing_to_say_of_the_policies_as_shipped() -> None:
    assert {p.name for p in POLICIES} == set(WANTED)
    assert advice() == []
    assert advice(users={"agent": set(), "planner": set()}) == []  # nothing runs yet


def test_an_overlay_may_put_a_prefix_before_their_names() -> None:
    renamed = [
        replace(p, name=f"x-{p.name}", concerns=tuple(c.replace("'prewarm-", "'x-prewarm-") for c in p.concerns))
        for p in POLICIES
    ]
    bound = [replace(b, policy=f"x-{b.policy}") for b in BINDINGS]
    assert advice(renamed, bound, {"agent": {"x-prewarm-agent"}, "planner": {"x-prewarm-planner"}}) == []
    assert len(advice(renamed, bound)) == len(WANTED)


@pytest.mark.parametrize("missing", list(WANTED))
def test_a_missing_policy_is_told_of(missing: str) -> None:
    (told,) = advice([p for p in POLICIES if p.name != missing])
    assert told.about == f"policy {missing}"
    assert "missing: nothing but RBAC holds the" in told.message
    assert told.cure == "kubectl apply -k deploy/policies"


def test_a_policy_that_denies_nothing_is_told_of() -> None:
    audits = [replace(b, denies=b.policy != "prewarm-agent-nodes") for b in BINDINGS]
    for bindings in (audits, BINDINGS[1:]):
        (told,) = advice(bindings=bindings)
        assert (told.about, told.message) == ("policy prewarm-agent-nodes", "no binding lets it deny anything")


def test_a_policy_that_fails_open_or_is_doubted_by_the_type_checker_is_told_of() -> None:
    open_one, doubted, *others = POLICIES
    told = advice([replace(open_one, fails_closed=False), replace(doubted, warnings=("undefined field",)), *others])
    assert [t.message for t in told] == [
        "what it cannot evaluate it lets through",
        "the type checker warns: undefined field",
    ]


def test_an_account_that_no_policy_names_is_told_of() -> None:
    told = advice(users=USERS | {"agent": {"prewarm-agent", "my-agent"}})
    assert {t.about for t in told} == {"policy prewarm-agent-nodes", "policy prewarm-agent-nodewarmups"}
    assert all("does not name the account my-agent that the agent runs as" in t.message for t in told)
