"""The optional injection gives a labelled pod what `prewarm affinity --wait` prints, and takes nothing from it.

Tried with failurePolicy Fail: the shipped Ignore would hide a mutation that went wrong halfway.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bed import Bed, Object
from tests.bed.bed import PROJECT
from tests.cluster import product as installed
from tests.cluster.product import Product, deployment, node_labels, prewarm, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

POLICY = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies/prewarm-inject"
IMAGE = "registry.bed/inject-server:1"
WAIT = "prewarm-wait"


@pytest.fixture(scope="module")
def bed_with_injection(bed: Bed, product: Product) -> Iterator[Bed]:
    bed.kubectl("apply", "-k", str(PROJECT / "deploy" / "inject"))
    bed.api.patch(POLICY, {"spec": {"failurePolicy": "Fail"}})
    wait_until(lambda: WAIT in json.dumps(create(bed, "default", pod())), 30, "the policy is in force")
    yield bed
    bed.kubectl("delete", "-k", str(PROJECT / "deploy" / "inject"))


def pod(spec: Object | None = None, **metadata: Any) -> Object:
    """A pod that asks for injection; `spec` is added to it."""
    labels = {"prewarm.dev/inject": "true", "prewarm.dev/endpoint": "chat"}
    meta = {"labels": labels, "annotations": {"prewarm.dev/models": "llm=s3://models/x/"}} | metadata
    containers = [{"name": "server", "image": IMAGE}, {"name": "sidecar", "image": IMAGE}]
    return {"metadata": {"generateName": "inject-", **meta}, "spec": {"containers": containers} | (spec or {})}


def create(bed: Bed, namespace: str, body: Object) -> Object:
    """What the API server would make of it."""
    return bed.api.post(f"/api/v1/namespaces/{namespace}/pods?dryRun=All", body)


def preferred(found: Object) -> list[Object]:
    affinity = found["spec"]["affinity"]["nodeAffinity"]
    terms: list[Object] = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    return terms


def injected(found: Object) -> bool:
    return any(c["name"] == WAIT for c in found["spec"].get("initContainers", []))


def test_a_labelled_pod_gets_what_affinity_prints(bed_with_injection: Bed, namespace: str) -> None:
    found = create(bed_with_injection, namespace, pod())["spec"]
    agents = bed_with_injection.api.get("/apis/apps/v1/namespaces/prewarm/daemonsets/prewarm-agent")
    image = agents["spec"]["template"]["spec"]["containers"][0]["image"]
    arguments = ("--wait", "--image", image, "--container", "server", "--json")
    printed = json.loads(prewarm("affinity", f"{namespace}/chat", *arguments))
    assert found["affinity"] == printed["affinity"]
    (first, *_), (wanted,) = found["initContainers"], printed["initContainers"]
    for field in ("name", "image", "args", "securityContext"):
        assert first[field] == wanted[field]
    assert [drop(e, "apiVersion") for e in first["env"]] == wanted["env"]
    for mount in wanted["volumeMounts"]:
        assert mount in first["volumeMounts"]
    volumes = {v["name"]: v for v in found["volumes"]}
    assert all(volumes[v["name"]] == v for v in printed["volumes"])
    for container in found["containers"]:
        assert all(m in container["volumeMounts"] for m in printed["containers"][0]["volumeMounts"])


def test_what_the_pod_asks_for_and_its_class_stay(bed_with_injection: Bed, namespace: str) -> None:
    exact = {"cpu": "2", "memory": "1Gi"}
    resources = {"requests": exact, "limits": exact | {"nvidia.com/gpu": "1"}}
    small = {"requests": {"cpu": "10m", "memory": "8Mi"}, "limits": {"cpu": "10m", "memory": "8Mi"}}
    containers = [
        {"name": "sidecar", "image": IMAGE, "resources": small},
        {"name": "server", "image": IMAGE, "resources": resources},
    ]
    annotations = {"prewarm.dev/models": "llm=s3://models/x/", "prewarm.dev/container": "server"}
    found = create(bed_with_injection, namespace, pod({"containers": containers}, annotations=annotations))
    assert found["spec"]["initContainers"][0]["resources"] == {"requests": exact, "limits": exact}
    assert found["status"]["qosClass"] == "Guaranteed"
    plain = create(bed_with_injection, namespace, pod())
    assert not plain["spec"]["initContainers"][0].get("resources")
    assert plain["status"]["qosClass"] == "BestEffort"


def test_what_the_pod_has_of_its_own_stays(bed_with_injection: Bed, namespace: str) -> None:
    zone = {"weight": 7, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}}
    required = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]}
    own: Object = {
        "affinity": {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [zone],
                "requiredDuringSchedulingIgnoredDuringExecution": required,
            },
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"labelSelector": {"matchLabels": {"a": "b"}}, "topologyKey": "zone"}
                ]
            },
        },
        "initContainers": [{"name": "own", "image": IMAGE}],
        "volumes": [{"name": "data", "emptyDir": {}}],
        "containers": [{"name": "server", "image": IMAGE, "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
    }
    found = create(bed_with_injection, namespace, pod(own))
    assert [t["weight"] for t in preferred(found)] == [7, 100]
    assert preferred(found)[0] == zone
    assert found["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] == required
    assert "podAntiAffinity" in found["spec"]["affinity"]
    assert [c["name"] for c in found["spec"]["initContainers"]] == [WAIT, "own"]
    paths = {m["mountPath"] for m in found["spec"]["containers"][0]["volumeMounts"]}
    assert paths >= {"/data", "/models", f"/var/lib/prewarm/views/{namespace}/chat"}


def test_only_the_named_container_gets_the_models(bed_with_injection: Bed, namespace: str) -> None:
    annotations = {"prewarm.dev/models": "llm=s3://models/x/", "prewarm.dev/container": "server"}
    found = create(bed_with_injection, namespace, pod(annotations=annotations))["spec"]["containers"]
    assert {c["name"]: any(m["mountPath"] == "/models" for m in c["volumeMounts"]) for c in found} == {
        "server": True,
        "sidecar": False,
    }


@pytest.mark.parametrize(
    "body",
    [
        pod(labels={"prewarm.dev/endpoint": "chat"}),
        pod(labels={"prewarm.dev/inject": "true"}),
        pod(labels={"prewarm.dev/inject": "true", "prewarm.dev/endpoint": "x" * 60}),
        pod(annotations={}),
        pod(
            {"initContainers": [{"name": WAIT, "image": IMAGE}]},
            labels={"prewarm.dev/inject": "true", "prewarm.dev/endpoint": "c"},
        ),
        pod(
            {
                "containers": [{"name": "s", "image": IMAGE, "volumeMounts": [{"name": "m", "mountPath": "/models"}]}],
                "volumes": [{"name": "m", "emptyDir": {}}],
            }
        ),
    ],
    ids=["not asked for", "no endpoint", "too long a key", "no models", "written out", "models of its own"],
)
def test_a_pod_that_it_could_only_harm_is_left_alone(bed_with_injection: Bed, namespace: str, body: Object) -> None:
    found = create(bed_with_injection, namespace, body)["spec"]
    assert "affinity" not in found
    assert not any(v["name"].startswith("prewarm-") for v in found["volumes"])


def test_without_the_agents_daemonset_pods_are_made_as_they_are(bed_with_injection: Bed, namespace: str) -> None:
    binding = POLICY.replace("mutatingadmissionpolicies", "mutatingadmissionpolicybindings")
    bed_with_injection.api.patch(binding, {"spec": {"paramRef": {"name": "nobody"}}})
    try:
        wait_until(lambda: not injected(create(bed_with_injection, namespace, pod())), 30, "nothing is injected")
    finally:
        bed_with_injection.api.patch(binding, {"spec": {"paramRef": {"name": "prewarm-agent"}}})
    wait_until(lambda: injected(create(bed_with_injection, namespace, pod())), 30, "it is injected again")


def test_an_injected_pod_starts_on_the_warm_node_with_its_models(
    bed_with_injection: Bed, namespace: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bed = bed_with_injection
    installed.push_server_image(bed, IMAGE, padding_bytes=1_000_000)
    prefix = f"inject-{os.getpid()}"
    installed.put_model(bed, prefix, 5_000_000, version="v1", directory=tmp_path_factory.mktemp("inject"))
    annotations = {"prewarm.dev/models": f"llm=s3://models/{prefix}/", "prewarm.dev/schedule": "* * * * *"}
    wanted = deployment("chat", annotations, image=IMAGE)
    wanted["spec"]["template"]["metadata"]["labels"]["prewarm.dev/inject"] = "true"
    bed.apply(wanted, namespace)
    label = f"endpoint.prewarm.dev/{namespace}.chat"
    (warm, *_) = wait_until(lambda: [n for n in bed.nodes if node_labels(bed, n).get(label)], 120, "a node is warm")
    bed.kubectl("-n", namespace, "scale", "deployment/chat", "--replicas=1")
    bed.kubectl("-n", namespace, "rollout", "status", "deployment/chat", "--timeout=60s")
    (running,) = bed.api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    assert injected(running)
    assert running["spec"]["nodeName"] == warm


def drop(value: Any, key: str) -> Any:
    """A copy without what the API server fills in."""
    if isinstance(value, dict):
        return {k: drop(v, key) for k, v in value.items() if k != key}
    return value
