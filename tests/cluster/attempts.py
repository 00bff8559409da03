"""What the accounts of agent and planner try to write, and whether the API server may let them: read by `test_policies.py`.

`Answer.POLICY` refusals are those that RBAC would let through: only the policies of `deploy/policies` say no.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from agent.core.names import KEEP_ANNOTATIONS
from tests.bed import APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, Api, ApiError, Object

WARMUPS = "/apis/prewarm.dev/v1alpha1/nodewarmups"
NODES = "/api/v1/nodes"
CONFIGMAPS = "/api/v1/namespaces/{namespace}/configmaps"
HPAS = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers"
TAINT = {"key": "prewarm.dev/not-ready", "effect": "NoSchedule"}


class Answer(StrEnum):
    """What the API server says: nothing against it, or which of its parts refuses."""

    ALLOWED = "allowed"
    POLICY = "refused by the policy"
    RBAC = "refused by RBAC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One request; `{own}` and `{other}` in `path` become node names, `{namespace}` becomes prewarm's."""

    what: str
    answer: Answer
    path: str
    body: Any
    method: str = "PATCH"
    content: str = MERGE_PATCH

    def make(self, api: Api, own: str, other: str, namespace: str) -> tuple[Answer | int, str]:
        """Try; returns the answer (another HTTP status as it is) and the server's words."""
        path = self.path.format(own=own, other=other, namespace=namespace)
        try:
            if self.method == "PATCH":
                api.patch(path, self.body, self.content)
            elif self.method == "POST":
                api.post(path, self.body)
            else:
                api.delete(path)
        except ApiError as error:
            if error.status != 403:
                return error.status, str(error)
            return Answer.POLICY if "ValidatingAdmissionPolicy" in str(error) else Answer.RBAC, str(error)
        return Answer.ALLOWED, ""


def _meta(what: str, answer: Answer, *, on: str = "{own}", status: bool = False, **metadata: object) -> Attempt:
    path = f"{NODES}/{on}" + ("/status" if status else "")
    content = STRATEGIC_PATCH if status else MERGE_PATCH
    return Attempt(what=what, answer=answer, path=path, body={"metadata": metadata}, content=content)


def _status(what: str, answer: Answer, on: str = "{own}", **status: object) -> Attempt:
    return Attempt(
        what=what, answer=answer, path=f"{NODES}/{on}/status", body={"status": status}, content=STRATEGIC_PATCH
    )


def _condition(what: str, answer: Answer, kind: str, status: str = "True", on: str = "{own}") -> Attempt:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    told = {"type": kind, "status": status, "reason": "Tried", "message": "", "lastTransitionTime": now}
    return _status(what, answer, on, conditions=[told])


def _spec(what: str, answer: Answer, **spec: object) -> Attempt:
    return Attempt(what=what, answer=answer, path=f"{NODES}/{{own}}", body={"spec": spec})


def _ops(what: str, answer: Answer, *ops: Object) -> Attempt:
    return Attempt(what=what, answer=answer, path=f"{NODES}/{{own}}", body=list(ops), content=JSON_PATCH)


def _warmup(what: str, answer: Answer, name: str, body: Object, *, status: bool = False) -> Attempt:
    return Attempt(what=what, answer=answer, path=f"{WARMUPS}/{name}" + ("/status" if status else ""), body=body)


def _configmap(what: str, answer: Answer, name: str) -> Attempt:
    body = {"metadata": {"name": name}, "binaryData": {"history": ""}}
    return Attempt(what=what, answer=answer, path=f"{CONFIGMAPS}?dryRun=All", body=body, method="POST")


def _add(taint: Object) -> Object:
    return {"op": "add", "path": "/spec/taints/-", "value": taint}


def _keep(what: str, answer: Answer, value: str = "true", *, manager: str = "prewarm-keep", **more: str) -> Attempt:
    """Server-side apply of what keeps a node ("" for nothing), as the planner does it."""
    annotations = dict.fromkeys(KEEP_ANNOTATIONS, value) if value else {}
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"annotations": annotations | more}}
    path = f"{NODES}/{{own}}/status?fieldManager={manager}"
    return Attempt(what=what, answer=answer, path=path, body=body, content=APPLY_PATCH)


def _hpa(what: str, answer: Answer, body: Object) -> Attempt:
    return Attempt(what=what, answer=answer, path=f"{HPAS}/{{own}}", body=body)


ENDPOINT = "endpoint.prewarm.dev/llm.chat"
OK, POLICY, RBAC = Answer.ALLOWED, Answer.POLICY, Answer.RBAC

AGENT: tuple[Attempt, ...] = (
    _meta("sets its claims", OK, labels={ENDPOINT: "ready", "prewarm.dev/gpu": "healthy"}),
    *(_meta(f"says its GPUs are {v}", OK, labels={"prewarm.dev/gpu": v}) for v in ("degraded", "unknown", "none")),
    _meta("removes a claim", OK, labels={ENDPOINT: None}),
    _meta("notes its boot", OK, annotations={"prewarm.dev/boot-id": "3b2c", "prewarm.dev/taint-lifted": "true"}),
    _meta("a claim of another value", POLICY, labels={ENDPOINT: "soon"}),
    _meta("a GPU verdict of its own invention", POLICY, labels={"prewarm.dev/gpu": "fine"}),
    _meta("another label of prewarm's", POLICY, labels={"prewarm.dev/inject": "true"}),
    _meta("a label of others", POLICY, labels={"team": "x"}),
    _meta("a label of Kubernetes", POLICY, labels={"node-role.kubernetes.io/control-plane": ""}),
    _meta("changes a label of Kubernetes", POLICY, labels={"kubernetes.io/hostname": "elsewhere"}),
    _meta("removes a label of others", POLICY, labels={"keep/me": None}),
    _meta("changes a label of others", POLICY, labels={"keep/me": "2"}),
    _meta("a label of a lookalike prefix", POLICY, labels={"evil-prewarm.dev/gpu": "healthy"}),
    _meta("a label of a lookalike subdomain", POLICY, labels={"x.endpoint.prewarm.dev/a.b": "ready"}),
    _meta("an annotation of others", POLICY, annotations={"team": "x"}),
    _meta("removes an annotation of others", POLICY, annotations={"keep/me": None}),
    _meta("another annotation of prewarm's", POLICY, annotations={"prewarm.dev/models": "x"}),
    _meta("a long annotation", POLICY, annotations={"prewarm.dev/boot-id": "x" * 65}),
    _meta("a finalizer", POLICY, finalizers=["x/y"]),
    _meta("an owner", POLICY, ownerReferences=[{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"}]),
    _meta("claims on another node", POLICY, on="{other}", labels={ENDPOINT: "ready"}),
    _meta("removes another node's claims", POLICY, on="{other}", labels={"prewarm.dev/gpu": None}),
    _spec("cordons", POLICY, unschedulable=True),
    _spec("gives the node an identity", POLICY, providerID="x://y"),
    _spec("a taint list that drops the others", POLICY, taints=[TAINT]),
    _spec("no taints at all", POLICY, taints=[]),
    _ops("adds its taint", OK, _add(TAINT)),
    _ops("adds its taint as NoExecute", POLICY, _add(TAINT | {"effect": "NoExecute"})),
    _ops("adds a taint of others", POLICY, _add({"key": "x/y", "effect": "NoSchedule"})),
    _ops("removes a taint of others", POLICY, {"op": "remove", "path": "/spec/taints/0"}),
    _ops("changes a taint of others", POLICY, {"op": "replace", "path": "/spec/taints/0/effect", "value": "NoExecute"}),
    _condition("says its GPUs are proved", OK, "prewarm.dev/GPUHealthy"),
    _condition("says its cache is warm", OK, "prewarm.dev/CacheReady"),
    _condition("another condition of prewarm's", POLICY, "prewarm.dev/Happy"),
    _condition("says the node is Ready", POLICY, "Ready"),
    _condition("a condition of others", POLICY, "KernelDeadlock", "False"),
    _condition("a condition of another node", POLICY, "prewarm.dev/GPUHealthy", on="{other}"),
    _status("a capacity", POLICY, capacity={"nvidia.com/gpu": "8"}),
    _status("an address", POLICY, addresses=[{"type": "InternalIP", "address": "192.0.2.1"}]),
    _status("another boot", POLICY, nodeInfo={"bootID": "x"}),
    _meta("claims through the status", OK, status=True, labels={ENDPOINT: "ready"}),
    _meta("a label of others through the status", POLICY, status=True, labels={"team": "x"}),
    _meta("a label of Kubernetes through the status", POLICY, status=True, labels={"kubernetes.io/os": "plan9"}),
    _meta("removes others' label through the status", POLICY, status=True, labels={"keep/me": None}),
    _meta("an annotation of others through the status", POLICY, status=True, annotations={"team": "x"}),
    _meta("a finalizer through the status", POLICY, status=True, finalizers=["x/y"]),
    _meta("claims on another node through its status", POLICY, on="{other}", status=True, labels={ENDPOINT: "ready"}),
    Attempt(
        what="labels, annotation and condition in one patch of the status",
        answer=OK,
        path=f"{NODES}/{{own}}/status",
        content=STRATEGIC_PATCH,
        body={
            "metadata": {"labels": {"prewarm.dev/gpu": "unhealthy"}, "annotations": {"prewarm.dev/boot-id": "4d5e"}},
            "status": {"conditions": [{"type": "prewarm.dev/CacheReady", "status": "False", "reason": "Cold"}]},
        },
    ),
    _warmup("its NodeWarmup's status", OK, "{own}", {"status": {"phase": "Warming"}}, status=True),
    _warmup("another NodeWarmup's status", POLICY, "{other}", {"status": {"phase": "Ready"}}, status=True),
    _warmup("its NodeWarmup's spec", RBAC, "{own}", {"spec": {"endpoints": []}}),
    Attempt(what="deletes its NodeWarmup", answer=RBAC, path=f"{WARMUPS}/{{own}}", body=None, method="DELETE"),
    Attempt(what="deletes its node", answer=RBAC, path=f"{NODES}/{{own}}", body=None, method="DELETE"),
    Attempt(what="makes a node", answer=RBAC, path=NODES, body={"metadata": {"name": "made"}}, method="POST"),
)

PLANNER: tuple[Attempt, ...] = (
    Attempt(
        what="withdraws all that a node claims",
        answer=OK,
        path=f"{NODES}/{{own}}/status",
        content=STRATEGIC_PATCH,
        body={
            "metadata": {"labels": {ENDPOINT: None, "prewarm.dev/gpu": None}},
            "status": {"conditions": [{"type": "prewarm.dev/GPUHealthy", "status": "Unknown", "reason": "AgentGone"}]},
        },
    ),
    _meta("removes our annotation", OK, status=True, annotations={"prewarm.dev/boot-id": None}),
    _meta("sets a claim", POLICY, status=True, labels={"endpoint.prewarm.dev/llm.other": "ready"}),
    _meta("says GPUs are healthy", POLICY, status=True, labels={"prewarm.dev/gpu": "healthy"}),
    _meta("says GPUs are unhealthy", POLICY, status=True, labels={"prewarm.dev/gpu": "unhealthy"}),
    _meta("another label of prewarm's", POLICY, status=True, labels={"prewarm.dev/inject": "true"}),
    _meta("a label of others", POLICY, status=True, labels={"team": "x"}),
    _meta("removes a label of others", POLICY, status=True, labels={"keep/me": None}),
    _meta("changes a label of Kubernetes", POLICY, status=True, labels={"kubernetes.io/os": "plan9"}),
    _meta("notes a boot", POLICY, status=True, annotations={"prewarm.dev/boot-id": "4d5e"}),
    _meta("an annotation of others", POLICY, status=True, annotations={"team": "x"}),
    _meta("removes an annotation of others", POLICY, status=True, annotations={"keep/me": None}),
    _meta("a finalizer", POLICY, status=True, finalizers=["x/y"]),
    _keep("asks autoscalers for what is no word of theirs", POLICY, "false"),
    _keep("keeps a node and says something else", POLICY, team="x"),
    _keep("keeps a node", OK),
    _meta("takes back that a node is to be kept", OK, status=True, annotations={KEEP_ANNOTATIONS[0]: None}),
    _meta("changes what keeps a node", POLICY, status=True, annotations={KEEP_ANNOTATIONS[1]: "false"}),
    _keep("lets a node go", OK, ""),
    _meta(
        "removes what keeps a node for others",
        POLICY,
        on="{other}",
        status=True,
        annotations={KEEP_ANNOTATIONS[0]: None},
    ),
    _condition("calls a cache warm", POLICY, "prewarm.dev/CacheReady"),
    _condition("calls a cache cold", POLICY, "prewarm.dev/CacheReady", "False"),
    _condition("another condition of prewarm's", POLICY, "prewarm.dev/Happy", "Unknown"),
    _condition("says the node is not Ready", POLICY, "Ready", "Unknown"),
    _status("a capacity", POLICY, capacity={"nvidia.com/gpu": "8"}),
    _status("an address", POLICY, addresses=[{"type": "InternalIP", "address": "192.0.2.1"}]),
    _meta("a label not through the status", RBAC, labels={ENDPOINT: None}),
    _spec("cordons", RBAC, unschedulable=True),
    _ops("adds a taint", RBAC, _add(TAINT)),
    Attempt(what="deletes a node", answer=RBAC, path=f"{NODES}/{{own}}", body=None, method="DELETE"),
    _warmup("a NodeWarmup's spec", OK, "{own}", {"spec": {"endpoints": []}}),
    _warmup("a NodeWarmup's status", RBAC, "{own}", {"status": {"phase": "Ready"}}, status=True),
    _warmup(
        "a NodeWarmup that something else owns",
        POLICY,
        "{own}",
        {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"}]}},
    ),
    _configmap("makes a history", OK, "prewarm-history-15"),
    _configmap("makes a history of a lookalike name", POLICY, "prewarm-history-15-mine"),
    _configmap("makes a ConfigMap that it does not keep", POLICY, "prewarm-settings-mine"),
    Attempt(
        what="changes the settings",
        answer=RBAC,
        path=f"{CONFIGMAPS}/prewarm-settings",
        body={"data": {"PREWARM_SOURCES": "*=s3://any/"}},
    ),
    Attempt(what="deletes a history", answer=RBAC, path=f"{CONFIGMAPS}/prewarm-history-0", body=None, method="DELETE"),
    Attempt(what="deletes a NodeWarmup", answer=RBAC, path=f"{WARMUPS}/{{own}}", body=None, method="DELETE"),
    _hpa(
        "raises the least number of pods",
        OK,
        {"metadata": {"labels": {"prewarm.dev/raised-from": "1"}}, "spec": {"minReplicas": 2}},
    ),
    _hpa("changes the greatest number of pods", POLICY, {"spec": {"maxReplicas": 9}}),
    _hpa("scales something else", POLICY, {"spec": {"scaleTargetRef": {"name": "other"}}}),
    _hpa(
        "changes how an autoscaler behaves", POLICY, {"spec": {"behavior": {"scaleDown": {"selectPolicy": "Disabled"}}}}
    ),
    _hpa("a label of an autoscaler", POLICY, {"metadata": {"labels": {"team": "x"}}}),
    _hpa("removes a label of an autoscaler", POLICY, {"metadata": {"labels": {"keep/me": None}}}),
    _hpa(
        "an annotation of an autoscaler",
        POLICY,
        {"metadata": {"annotations": {"autoscaling.knative.dev/min-scale": "1"}}},
    ),
    _hpa("a finalizer of an autoscaler", POLICY, {"metadata": {"finalizers": ["x/y"]}}),
    Attempt(what="deletes an autoscaler", answer=RBAC, path=f"{HPAS}/{{own}}", body=None, method="DELETE"),
)


def unbound(account: tuple[Attempt, ...]) -> Iterator[Attempt]:
    """What the account may do with a pod's token, and may not with one that is bound to no pod."""
    for attempt in account:
        if attempt.answer is OK:
            yield replace(attempt, answer=POLICY)
