"""The API server itself holds the accounts of agent and planner to what is theirs: every attempt of `attempts.py`, with real tokens.

Nodes without a kubelet stand in, so that nobody else writes to them meanwhile; the planner that would is away.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from agent.core.names import KEEP_ANNOTATIONS
from tests.bed import Api, Bed, Object
from tests.bed.bed import PROJECT
from tests.cluster.attempts import AGENT, HPAS, NODES, PLANNER, WARMUPS, Answer, Attempt, unbound
from tests.cluster.product import NAMESPACE, Product, wait_until

pytestmark = pytest.mark.cluster

POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
ACCOUNTS = ("prewarm-agent", "prewarm-planner")
KINDS = ("Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Two Nodes with their NodeWarmups, and a pod of each account on the first."""

    bed: Bed
    own: str
    other: str
    namespace: str = NAMESPACE
    prefix: str = ""

    def account(self, name: str, *, bound: bool = True) -> Api:
        """An account of prewarm, by a token as its pod on the first node has it."""
        return self.bed.api.as_account(self.prefix + name, self.namespace, self.pod(name) if bound else "")

    def pod(self, account: str) -> str:
        return f"{account}-{self.own}"

    def add_pods(self) -> None:
        """A pod for each account; none of them ever runs."""
        for name in ACCOUNTS:
            spec = {
                "serviceAccountName": self.prefix + name,
                "nodeName": self.own,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "c", "image": "registry.bed/pause:1"}],
            }
            body = {"metadata": {"name": self.pod(name)}, "spec": spec}
            self.bed.api.post(f"/api/v1/namespaces/{self.namespace}/pods", body)

    def remove_pods(self) -> None:
        for name in ACCOUNTS:
            self.bed.api.delete(f"/api/v1/namespaces/{self.namespace}/pods/{self.pod(name)}?gracePeriodSeconds=0")

    def wrong(self, api: Api, attempts: tuple[Attempt, ...]) -> list[str]:
        """The attempts that were not answered as they should be."""
        answers = [(a, *a.make(api, self.own, self.other, self.namespace)) for a in attempts]
        return [f"{a.what}: {found}, not {a.answer}: {words}" for a, found, words in answers if found is not a.answer]


@pytest.fixture(scope="module")
def stage(bed: Bed, product: Product) -> Iterator[Stage]:
    """The installed policies, two nodes nobody else cares about, and no planner that would tidy them up."""
    scale = ("-n", NAMESPACE, "scale", "deployment/prewarm-planner")
    planners = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/component=planner"
    bed.kubectl(*scale, "--replicas=0")
    wait_until(lambda: not bed.api.get(planners)["items"], 60, "no planner runs")
    own, other = (f"policy-{uuid.uuid4().hex[:6]}" for _ in range(2))
    for name in (own, other):
        keep = {"keep/me": "1", "kubernetes.io/hostname": name}
        taints = [{"key": "keep/me", "effect": "PreferNoSchedule"}]
        kept = {KEEP_ANNOTATIONS[0]: "true"} if name == other else {}
        metadata = {"name": name, "labels": keep, "annotations": {"keep/me": "1"} | kept}
        bed.api.post(NODES, {"metadata": metadata, "spec": {"taints": taints, "unschedulable": False}})
        bed.api.post(WARMUPS, warmup(name))
    bed.api.post(HPAS, autoscaler(own))
    made = Stage(bed=bed, own=own, other=other)
    made.add_pods()
    yield made
    made.remove_pods()
    for name in (own, other):
        bed.api.delete(f"{WARMUPS}/{name}")
        bed.api.delete(f"{NODES}/{name}")
    bed.api.delete(f"{HPAS}/{own}")
    bed.kubectl(*scale, "--replicas=2")
    bed.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/prewarm-planner", "--timeout=90s")


@pytest.mark.parametrize("attempt", AGENT, ids=lambda a: a.what)
def test_the_agent_writes_what_is_its_own_and_nothing_else(stage: Stage, attempt: Attempt) -> None:
    assert stage.wrong(stage.account("prewarm-agent"), (attempt,)) == []


@pytest.mark.parametrize("attempt", PLANNER, ids=lambda a: a.what)
def test_the_planner_takes_back_and_sets_nothing(stage: Stage, attempt: Attempt) -> None:
    stage.bed.api.patch(f"{NODES}/{stage.own}", claimed())
    assert stage.wrong(stage.account("prewarm-planner"), (attempt,)) == []


@pytest.mark.parametrize(("account", "attempts"), [(ACCOUNTS[0], AGENT), (ACCOUNTS[1], PLANNER)], ids=ACCOUNTS)
def test_a_token_that_is_bound_to_no_pod_may_do_nothing(
    stage: Stage, account: str, attempts: tuple[Attempt, ...]
) -> None:
    put_back(stage)
    assert stage.wrong(stage.account(account, bound=False), tuple(unbound(attempts))) == []


def test_a_taint_sent_through_the_status_changes_nothing(stage: Stage) -> None:
    before = taints(stage)
    stage.account("prewarm-agent").patch(
        f"{NODES}/{stage.own}/status", {"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}}
    )
    assert taints(stage) == before


def test_others_write_as_before(stage: Stage) -> None:
    """The policies are about two accounts: an administrator may write what these may not."""
    node = f"{NODES}/{stage.other}"
    stage.bed.api.patch(node, {"metadata": {"labels": {"team": "x", "prewarm.dev/inject": "true"}}})
    assert stage.bed.api.get(node)["metadata"]["labels"]["team"] == "x"


def test_the_type_checker_has_nothing_against_any_policy(stage: Stage) -> None:
    names = [
        p["metadata"]["name"] for p in documents(PROJECT / "deploy/policies/agent.yaml") if "Binding" not in p["kind"]
    ]
    names += [
        p["metadata"]["name"] for p in documents(PROJECT / "deploy/policies/planner.yaml") if "Binding" not in p["kind"]
    ]
    assert len(names) == 6
    assert {name: type_warnings(stage.bed, name) for name in names} == {name: [] for name in names}


def test_the_type_checker_would_say_so(stage: Stage) -> None:
    """Else the test before this one proved nothing."""
    (policy, *_) = documents(PROJECT / "deploy/policies/agent.yaml")
    policy["metadata"]["name"] = name = f"wrong-{uuid.uuid4().hex[:6]}"
    policy["spec"]["validations"] = [{"expression": "object.spec.tints == oldObject.spec.tints"}]
    stage.bed.api.post(POLICIES, policy)
    try:
        assert "undefined field 'tints'" in str(type_warnings(stage.bed, name))
    finally:
        stage.bed.api.delete(f"{POLICIES}/{name}")


def test_renamed_accounts_in_a_second_namespace_are_held_as_well(stage: Stage, tmp_path: Path) -> None:
    """As `docs/security.md` says how: the overlay there, all but its workloads applied."""
    prefix, namespace = "second-", f"second-{os.getpid()}"
    overlay = security_overlay().replace("DEPLOY", os.path.relpath(PROJECT / "deploy", tmp_path))
    (tmp_path / "kustomization.yaml").write_text(overlay.replace("NAMESPACE", namespace).replace("PREFIX", prefix))
    built = stage.bed.kubectl("kustomize", str(tmp_path))
    wanted = [o for o in yaml.safe_load_all(built) if o["kind"] in KINDS or "Admission" in o["kind"]]
    stage.bed.apply(wanted)
    second = Stage(bed=stage.bed, own=stage.own, other=stage.other, namespace=namespace, prefix=prefix)
    try:
        wait_until(lambda: has_account(second), 30, "the namespace has its accounts")
        second.add_pods()
        agent, planner = (second.account(name) for name in ACCOUNTS)
        refused = (next(a for a in t if a.answer is Answer.POLICY) for t in (AGENT, PLANNER))
        probes = [replace(a, path=a.path + "?dryRun=All") for a in refused]
        wait_until(lambda: not second.wrong(agent, (probes[0],)), 20, "the agent's policy is in force")
        wait_until(lambda: not second.wrong(planner, (probes[1],)), 20, "the planner's policy is in force")
        put_back(stage)
        assert second.wrong(agent, AGENT) == []
        stage.bed.api.patch(f"{NODES}/{stage.own}", claimed())
        assert second.wrong(planner, PLANNER) == []
        put_back(stage)
        assert second.wrong(second.account(ACCOUNTS[0], bound=False), tuple(unbound(AGENT))) == []
    finally:
        stage.bed.kubectl(
            "delete", "--wait=false", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": wanted})
        )


def test_the_same_names_in_another_namespace_are_held_by_the_same_policy(stage: Stage, namespace: str) -> None:
    moved = Stage(bed=stage.bed, own=stage.own, other=stage.other, namespace=namespace)
    binding = {
        "metadata": {"name": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "prewarm-agent"},
        "subjects": [{"kind": "ServiceAccount", "name": "prewarm-agent", "namespace": namespace}],
    }
    bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    for name in ACCOUNTS:
        stage.bed.api.post(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})
    stage.bed.api.post(bindings, binding)
    try:
        moved.add_pods()
        put_back(stage)
        assert moved.wrong(moved.account("prewarm-agent"), AGENT) == []
    finally:
        stage.bed.api.delete(f"{bindings}/{namespace}")


def test_the_doctor_names_what_is_wrong_here_and_has_nothing_against_the_policies(stage: Stage, namespace: str) -> None:
    labels = {"app": "plugin"}
    path = "/var/lib/kubelet/device-plugins"
    spec = {
        "containers": [{"name": "c", "image": "registry.bed/pause:1"}],
        "volumes": [{"name": "v", "hostPath": {"path": path}}],
    }
    template = {"metadata": {"labels": labels}, "spec": spec}
    body = {"metadata": {"name": "plugin"}, "spec": {"selector": {"matchLabels": labels}, "template": template}}
    stage.bed.api.post(f"/apis/apps/v1/namespaces/{namespace}/daemonsets", body)
    stage.bed.api.patch(f"{NODES}/{stage.own}", claimed())  # it has a PreferNoSchedule taint
    command = [str(Path(sys.executable).parent / "prewarm"), "doctor", "gpu", "--json"]
    done = subprocess.run(
        [*command, "--kubeconfig", str(stage.bed.kubeconfig)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    about = {a["about"] for a in json.loads(done.stdout)}
    assert about >= {f"daemonset {namespace}/plugin", f"node {stage.own}"}
    assert not any(a.startswith("policy ") for a in about)


def warmup(node: str) -> Object:
    return {
        "apiVersion": "prewarm.dev/v1alpha1",
        "kind": "NodeWarmup",
        "metadata": {"name": node},
        "spec": {"endpoints": []},
    }


def autoscaler(name: str) -> Object:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    return {
        "metadata": {"name": name, "labels": {"keep/me": "1"}},
        "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 4},
    }


def claimed() -> Object:
    """What a planner may take back."""
    labels = {"endpoint.prewarm.dev/llm.chat": "ready", "prewarm.dev/gpu": "degraded"}
    return {"metadata": {"labels": labels, "annotations": {"prewarm.dev/boot-id": "3b2c"}}}


def put_back(stage: Stage) -> None:
    """The node's taints as at first: a taint cannot be added twice."""
    ours = [t for t in taints(stage) if t["key"] != "prewarm.dev/not-ready"]
    stage.bed.api.patch(f"{NODES}/{stage.own}", {"spec": {"taints": ours}})


def taints(stage: Stage) -> list[Object]:
    found: list[Object] = stage.bed.api.get(f"{NODES}/{stage.own}")["spec"]["taints"]
    return found


def has_account(stage: Stage) -> bool:
    found = stage.bed.api.get(f"/api/v1/namespaces/{stage.namespace}/serviceaccounts")["items"]
    return {a["metadata"]["name"] for a in found} >= {"default", *(stage.prefix + name for name in ACCOUNTS)}


def type_warnings(bed: Bed, name: str) -> list[Object]:
    """What the type checker has against a policy, once it has looked at it."""

    def checked() -> Object | None:
        found = bed.api.get(f"{POLICIES}/{name}")
        status: Object = found.get("status", {})
        return status if status.get("observedGeneration") == found["metadata"]["generation"] else None

    status: Object = wait_until(checked, 30, f"the type checker has seen {name}")
    warnings: list[Object] = status.get("typeChecking", {}).get("expressionWarnings", [])
    return warnings


def documents(path: Path) -> list[Object]:
    return list(yaml.safe_load_all(path.read_text()))


def security_overlay() -> str:
    """The kustomization that docs/security.md shows."""
    page = (PROJECT / "docs/security.md").read_text()
    return page.partition("```yaml\n")[2].partition("```")[0]
