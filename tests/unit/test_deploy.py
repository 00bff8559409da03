"""deploy/ grants exactly what the code uses, and its policies know exactly the names that the code writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from agent.config import Settings
from agent.core import names
from agent.core.inventory import GpuVerdict
from agent.demand.history_shards import SHARDS
from agent.fleet.arrivals import NAME
from agent.fleet.history_store import shard_name
from agent.kube.placeholders import PRIORITY_CLASS
from agent.kube.scalers import SCALERS
from agent.node.readiness import readiness
from tests.fakes.virtual_time import START
from tests.unit.node.making import assigned, warm

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
POLICIES = ("policies/agent.yaml", "policies/planner.yaml", "provision/provision.yaml")
Grant = tuple[str, str, str, str]  # role, resource with its group, names ("" for any), verb

# Each line with the code that needs it. A change here is a change of what a stolen token can do: say why in the review.
GRANTED: dict[tuple[str, str, str], str] = {
    ("ClusterRole/prewarm-agent", "nodes", ""): "list watch patch",  # kube/watch, writers.patch_taints
    ("ClusterRole/prewarm-agent", "nodes/status", ""): "patch",  # writers.patch_status
    ("ClusterRole/prewarm-agent", "pods", ""): "list watch",  # observe/coldstart
    ("ClusterRole/prewarm-agent", "prewarm.dev/nodewarmups", ""): "list watch",
    ("ClusterRole/prewarm-agent", "prewarm.dev/nodewarmups/status", ""): "patch",  # writers.write_status
    ("ClusterRole/prewarm-planner", "apps/deployments", ""): "list watch",  # fleet/sources
    ("ClusterRole/prewarm-planner", "apps/statefulsets", ""): "list watch",
    ("ClusterRole/prewarm-planner", "serving.knative.dev/services", ""): "list watch",
    ("ClusterRole/prewarm-planner", "serving.kserve.io/inferenceservices", ""): "list watch",
    ("ClusterRole/prewarm-planner", "leaderworkerset.x-k8s.io/leaderworkersets", ""): "list watch",
    ("ClusterRole/prewarm-planner", "nodes", ""): "list watch",
    ("ClusterRole/prewarm-planner", "node.k8s.io/runtimeclasses", ""): "list watch",
    ("ClusterRole/prewarm-planner", "nodes/status", ""): "patch",  # fleet/withdraw, fleet/keeper
    ("ClusterRole/prewarm-planner", "events", ""): "create get patch",  # kube/events
    ("ClusterRole/prewarm-planner", "prewarm.dev/nodewarmups", ""): "list watch create patch",  # fleet/publish
    ("ClusterRole/prewarm-planner", "autoscaling/horizontalpodautoscalers", ""): "list patch",  # fleet/scaler
    ("ClusterRole/prewarm-planner", "keda.sh/scaledobjects", ""): "list patch",
    ("ClusterRole/prewarm-planner", "autoscaling.internal.knative.dev/podautoscalers", ""): "list patch",
    ("Role/prewarm-planner", "pods", ""): "list watch",  # the agents, in its own namespace
    (
        "Role/prewarm-planner",
        "configmaps",
        "",
    ): "list watch create",  # fleet/calendars, ledger_keeper, in its own namespace
    ("Role/prewarm-planner", "configmaps", "prewarm-ledger"): "get patch",  # fleet/ledger_keeper
    (
        "Role/prewarm-planner",
        "configmaps",
        ",".join(map(shard_name, range(SHARDS))),
    ): "get update",  # fleet/history_store
    ("Role/prewarm-planner", "coordination.k8s.io/leases", ""): "create",  # kube/lease
    ("Role/prewarm-planner", "coordination.k8s.io/leases", "prewarm-planner"): "get update",
}


def documents(*files: str) -> Iterator[dict[str, Any]]:
    for file in files:
        yield from yaml.safe_load_all((DEPLOY / file).read_text())


def grants(file: str = "rbac.yaml") -> Iterator[tuple[tuple[str, str, str], str]]:
    for role in documents(file):
        for rule in role.get("rules", []):
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    key = f"{role['kind']}/{role['metadata']['name']}", f"{group}/{resource}".lstrip("/")
                    yield (*key, ",".join(rule.get("resourceNames", []))), " ".join(rule["verbs"])


def policies() -> dict[str, dict[str, Any]]:
    found = documents(*POLICIES)
    return {p["metadata"]["name"]: p["spec"] for p in found if p["kind"] == "ValidatingAdmissionPolicy"}


def test_the_roles_grant_exactly_what_the_code_uses() -> None:
    assert dict(grants()) == GRANTED
    assert len(list(grants())) == len(GRANTED)


def test_what_provisioning_needs_is_granted_beside_and_no_more() -> None:
    assert dict(grants("provision/provision.yaml")) == {
        ("Role/prewarm-planner-provision", "pods", ""): "list watch create delete",  # kube/watch, fleet/provisioner
        ("Role/prewarm-planner-provision", "configmaps", NAME): "get patch",  # fleet/arrivals
        ("ClusterRole/prewarm-planner-provision", "scheduling.k8s.io/priorityclasses", PRIORITY_CLASS): "get",
    }
    found = {d["kind"]: d for d in documents("provision/provision.yaml")}
    settings = Settings()
    assert settings.provision_nodes == 0
    assert (
        found["Role"]["metadata"]["namespace"] == settings.provision_namespace == found["Namespace"]["metadata"]["name"]
    )
    assert found["Namespace"]["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    assert (found["ConfigMap"]["metadata"]["name"], "data" in found["ConfigMap"]) == (NAME, False)
    made = found["PriorityClass"]
    assert (made["metadata"]["name"], made["value"], made["preemptionPolicy"]) == (PRIORITY_CLASS, -10, "Never")
    assert re.search(r"\(ledger\|arrivals\|", str(policies()["prewarm-planner-configmaps"]))
    assert f"'{names.LABEL_PLACEHOLDER}' in" in str(policies()["prewarm-planner-pods"])
    assert f"== '{PRIORITY_CLASS}'" in str(policies()["prewarm-planner-pods"])


def test_each_account_is_bound_to_its_roles_alone() -> None:
    bindings = [d for d in documents("rbac.yaml") if d["kind"].endswith("RoleBinding")]
    bound = {
        (b["kind"], b["roleRef"]["kind"], b["roleRef"]["name"], s["name"]) for b in bindings for s in b["subjects"]
    }
    assert bound == {
        ("ClusterRoleBinding", "ClusterRole", "prewarm-agent", "prewarm-agent"),
        ("ClusterRoleBinding", "ClusterRole", "prewarm-planner", "prewarm-planner"),
        ("RoleBinding", "Role", "prewarm-planner", "prewarm-planner"),
    }


def test_every_policy_denies_and_concerns_one_account() -> None:
    bindings = [d for d in documents(*POLICIES) if d["kind"].endswith("PolicyBinding")]
    assert {b["spec"]["policyName"]: b["spec"]["validationActions"] for b in bindings} == {
        p: ["Deny"] for p in policies()
    }
    for name, spec in policies().items():
        account = name.rpartition("-")[0]
        (condition,) = spec["matchConditions"]
        assert condition["expression"].endswith(f".endsWith(':' + '{account}')"), name
        assert spec["failurePolicy"] == "Fail"
        assert "paramKind" not in spec  # without its parameters a policy would refuse everybody's writes
        assert {v.get("reason") for v in spec["validations"]} == {"Forbidden"}


def test_the_resources_with_a_status_are_covered_with_it() -> None:
    for name, spec in policies().items():
        for rule in spec["matchConstraints"]["resourceRules"]:
            kind = rule["resources"][0]
            assert rule["resources"] == ([kind] if kind == "configmaps" else [kind, f"{kind}/status"])
            assert rule["operations"] == ["CREATE", "UPDATE", "DELETE"]
            assert kind == name.rpartition("-")[2] or name == "prewarm-planner-scalers"


def test_the_planner_s_policies_cover_all_that_it_may_patch_in_the_cluster() -> None:
    covered = {
        f"{group}/{rule['resources'][0]}".lstrip("/")
        for name, spec in policies().items()
        for rule in spec["matchConstraints"]["resourceRules"]
        for group in rule["apiGroups"]
        if name.startswith("prewarm-planner")
    }
    patched = {
        resource.removesuffix("/status")
        for (role, resource, _), verbs in grants()
        if role == "ClusterRole/prewarm-planner" and "patch" in verbs.split()
    }
    assert patched - covered == {"events"}


def test_the_scalers_policy_knows_every_field_that_the_planner_writes() -> None:
    text = str(policies()["prewarm-planner-scalers"])
    for knob, resource in SCALERS.items():
        assert f"'{knob.word}'" in text
        assert resource.plural in text
    assert f"'{names.LABEL_RAISED_FROM}'" in text


def test_the_agents_policy_knows_every_name_and_value_that_the_agent_writes() -> None:
    text = str(policies()["prewarm-agent-nodes"])
    told = set(re.findall(r"'((?:endpoint\.)?prewarm\.dev/[\w-]*)'", text))
    said = readiness(assigned(), warm(), START)
    written = {*said.annotations, names.ANNOTATION_TAINT_LIFTED, names.TAINT_NOT_READY, names.LABEL_GPU}
    assert told == {*written, *(c.type for c in said.conditions), names.ENDPOINT_PREFIX}
    assert said.labels.keys() - {names.LABEL_GPU} == {k for k in said.labels if k.startswith(names.ENDPOINT_PREFIX)}
    values = re.search(r"variables\.labels\[k\] in \[([^]]*)\]", text)
    assert values is not None
    assert set(re.findall(r"\w+", values[1])) == {str(v) for v in GpuVerdict}


def test_the_planners_policy_lets_it_take_back_what_the_agents_lets_it_set() -> None:
    own, its = (
        set(re.findall(r"'((?:endpoint\.)?prewarm\.dev/[\w-]*)'", str(policies()[f"prewarm-{a}-nodes"])))
        for a in ("agent", "planner")
    )
    assert own - its == {names.TAINT_NOT_READY}
    assert its <= own
