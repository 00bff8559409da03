"""Bad annotations on a real cluster: each gets its Event as soon as it is written, and disturbs no other endpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from agent.core.names import READY, endpoint_label
from tests.bed import Bed, Object
from tests.cluster import product as installed
from tests.cluster.product import Product, deployment, node_labels, wait_label, wait_until
from tests.cluster.watching import LabelWatch

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

IMAGE = "registry.bed/input-server:1"
MODEL = "s3://models/input/v1/"
SELDOM = {"prewarm.dev/schedule": "0 0 1 1 *"}  # no window for long: what is wrong must be told when it is written
ALWAYS = {"prewarm.dev/schedule": "* * * * *"}

BAD: dict[str, tuple[dict[str, str], str, str, tuple[str, ...]]] = {
    # name: annotations, image, the Event's reason, what its message must say
    "bad-cron": (
        {"prewarm.dev/schedule": "every morning"},
        IMAGE,
        "Invalid",
        ("prewarm.dev/schedule", "every morning"),
    ),
    "bad-zone": (SELDOM | {"prewarm.dev/timezone": "Mars/Base"}, IMAGE, "Invalid", ("timezone", "Mars/Base")),
    "bad-window": (SELDOM | {"prewarm.dev/window": "a while"}, IMAGE, "Invalid", ("window", "a while")),
    "bad-nodes": (SELDOM | {"prewarm.dev/nodes": "-3"}, IMAGE, "Invalid", ("nodes", "-3")),
    "bad-uri": (SELDOM | {"prewarm.dev/models": "http://x/y"}, IMAGE, "Invalid", ("models", "http://x/y", "s3://")),
    "bad-path": (SELDOM | {"prewarm.dev/models": "s3://models/../x"}, IMAGE, "Invalid", ("models", "s3://models/../x")),
    "unknown-key": (SELDOM | {"prewarm.dev/shedule": "x"}, IMAGE, "UnknownKey", ("shedule", "prewarm.dev/schedule")),
    "bad-predict": (SELDOM | {"prewarm.dev/predict": "maybe"}, IMAGE, "Invalid", ("predict", "maybe", "shadow")),
    "later-word": (
        SELDOM | {"prewarm.dev/layout": "triton"},
        IMAGE,
        "NotSupported",
        ("layout", "'triton'", "not supported"),
    ),
    "foreign-source": (
        SELDOM | {"prewarm.dev/models": "s3://secrets/m/"},
        IMAGE,
        "Invalid",
        ("s3://secrets/m/", "sources: {namespace}=s3://secrets/m/"),
    ),
    "missing-object": (
        SELDOM | {"prewarm.dev/models": "s3://models/not-there/"},
        IMAGE,
        "Unresolved",
        ("nothing under s3://models/not-there/",),
    ),
    "wrong-tag": (SELDOM, "registry.bed/input-server:none", "Unresolved", ("registry.bed/input-server:none",)),
    "twin-a": (SELDOM, IMAGE, "Invalid", ("Deployment twin-b", "{namespace}.twin")),
    "twin-b": (SELDOM, IMAGE, "Invalid", ("Deployment twin-a", "{namespace}.twin")),
}
REFUSED = [name for name, (_, _, reason, _) in BAD.items() if reason == "Invalid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The namespace after everything bad was written, one good endpoint in its midst."""

    bed: Bed
    namespace: str
    node: str
    image_digest: str
    lost: list[str]

    def assigned(self) -> dict[str, Object]:
        """Endpoints of this namespace in all NodeWarmups, by name."""
        warmups = self.bed.api.get("/apis/prewarm.dev/v1alpha1/nodewarmups")["items"]
        found = [e for w in warmups for e in w.get("spec", {}).get("endpoints", [])]
        return {e["name"]: e for e in found if e["namespace"] == self.namespace}

    def event(self, name: str, reason: str) -> Object:
        """The Event with that reason on that workload."""
        path = f"/api/v1/namespaces/{self.namespace}/events?fieldSelector=involvedObject.name={name},reason={reason}"
        found: Object = wait_until(lambda: next(iter(self.bed.api.get(path)["items"]), None), 15, f"{reason} on {name}")
        return found


@pytest.fixture(scope="module")
def written(bed: Bed, product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    bed.shape(None)
    digest = installed.push_server_image(bed, IMAGE, padding_bytes=1_000_000)
    installed.put_model(bed, "input/v1", 5_000_000, version="v1", directory=tmp_path_factory.mktemp("input"))
    namespace = f"input-{os.getpid()}"
    bed.api.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
    bed.apply(deployment("good", ALWAYS | {"prewarm.dev/models": f"llm={MODEL}"}, image=IMAGE), namespace)
    label = endpoint_label(namespace, "good")
    node = wait_until(lambda: [n for n in bed.nodes if node_labels(bed, n).get(label)], 60, "good is ready")[0]
    with LabelWatch(bed, node, label, READY) as watch:
        bed.apply([bad(name, namespace) for name in BAD], namespace)
        found = Written(bed=bed, namespace=namespace, node=node, image_digest=digest, lost=watch.lost)
        for name, (_, _, reason, _) in BAD.items():
            found.event(name, reason)
    yield found
    bed.api.delete(f"/api/v1/namespaces/{namespace}")


def bad(name: str, namespace: str) -> Object:
    """The Deployment of a row of BAD; the twins have one endpoint name."""
    annotations, image, _, _ = BAD[name]
    made = deployment(name, annotations, image=image)
    if name.startswith("twin-"):
        made["spec"]["template"]["metadata"]["labels"]["prewarm.dev/endpoint"] = "twin"
    made["metadata"]["namespace"] = namespace
    return made


@pytest.mark.parametrize("name", BAD)
def test_an_event_quotes_what_is_wrong(written: Written, name: str) -> None:
    _, _, reason, said = BAD[name]
    message = written.event(name, reason)["message"]
    for part in said:
        assert part.format(namespace=written.namespace) in message


def test_what_is_invalid_is_assigned_to_no_node_and_the_rest_works(written: Written) -> None:
    assigned = written.assigned()
    assert not assigned.keys() & {*REFUSED, "twin", "missing-object"}
    assert assigned.keys() >= {"good", "unknown-key", "later-word", "wrong-tag"}


def test_nobody_else_is_disturbed(written: Written) -> None:
    assert written.lost == []
    assert node_labels(written.bed, written.node)[endpoint_label(written.namespace, "good")] == READY
    path = f"/api/v1/namespaces/{written.namespace}/events?fieldSelector=involvedObject.name=good,type=Warning"
    assert written.bed.api.get(path)["items"] == []


def test_the_spec_carries_the_digests_of_image_and_model(written: Written) -> None:
    good = written.assigned()["good"]
    assert good["images"] == [{"ref": IMAGE, "digest": written.image_digest}]
    model = good["models"][0]
    assert (model["name"], model["uri"]) == ("llm", MODEL)
    store = written.bed.disk(written.node) / "var/lib/prewarm/store"
    assert (store / model["digest"] / "files" / "config.json").exists()
    assert model["sizeBytes"] > 5_000_000


def test_a_mended_annotation_is_taken_up(written: Written) -> None:
    mended = ALWAYS | {"prewarm.dev/models": f"llm={MODEL}"}
    patch = {"spec": {"template": {"metadata": {"annotations": mended}}}}
    written.bed.kubectl("-n", written.namespace, "patch", "deployment", "missing-object", "-p", json.dumps(patch))
    label = endpoint_label(written.namespace, "missing-object")
    wait_until(lambda: any(node_labels(written.bed, n).get(label) for n in written.bed.nodes), 30, "ready once mended")


def test_of_two_workloads_with_one_key_the_one_left_is_taken_up(written: Written) -> None:
    written.bed.kubectl("-n", written.namespace, "delete", "deployment", "twin-b")
    wait_until(lambda: "twin" in written.assigned(), 15, "the twin that is left is assigned")


def test_a_statefulset_is_served_as_a_deployment_is(written: Written) -> None:
    made = deployment("stateful", ALWAYS | {"prewarm.dev/models": f"llm={MODEL}"}, image=IMAGE)
    made["kind"] = "StatefulSet"
    made["spec"]["serviceName"] = "stateful"
    broken = deployment("stateful-bad", {"prewarm.dev/schedule": "never ever"}, image=IMAGE)
    broken["kind"] = "StatefulSet"
    broken["spec"]["serviceName"] = "stateful-bad"
    written.bed.apply([made, broken], written.namespace)
    label = endpoint_label(written.namespace, "stateful")
    node = wait_until(lambda: [n for n in written.bed.nodes if node_labels(written.bed, n).get(label)], 30, "ready")[0]
    assert written.event("stateful-bad", "Invalid")["involvedObject"]["kind"] == "StatefulSet"
    assert written.assigned()["stateful"]["workload"] == {"kind": "StatefulSet", "name": "stateful"}

    written.bed.kubectl("-n", written.namespace, "delete", "statefulset", "stateful")
    wait_label(written.bed, node, label, None, seconds=10)


def test_status_of_the_fleet_shows_the_endpoint(written: Written) -> None:
    ask = ["status", "--fleet", "--kubeconfig", str(written.bed.kubeconfig), "-n", written.namespace]
    shown = wait_until(
        lambda: next((r for r in json.loads(installed.prewarm(*ask, "--json"))["endpoints"] if ready(r)), None),
        45,  # a NodeWarmup's status is written at most every 30 s
        "the status says ready",
    )
    assert shown["node"] == written.node
    lines = [line.split() for line in installed.prewarm(*ask).splitlines()]
    assert [written.namespace, "good", written.node, "ready"] in [line[:4] for line in lines]


def ready(row: Object) -> bool:
    """Whether a row of the status is that of the good endpoint, ready."""
    return bool(row["name"] == "good" and row["stage"] == "ready")
