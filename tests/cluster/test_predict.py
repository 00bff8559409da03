"""On a real cluster: a forecast from the histories that a new leader reads warms a node where `predict` is on, and nothing in shadow."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime

import pytest

from agent.core.refs import EndpointKey
from agent.demand.history import DAY_SLOTS, Track, slot_of, track_of
from agent.demand.history_shards import SHARDS, Shard, encode
from agent.fleet.history_store import shard_name
from tests.bed import Bed, Object
from tests.bed.layers import Layer
from tests.bed.registry import Registry
from tests.cluster.product import NAMESPACE, Product, deployment, prewarm, wait_until
from tests.cluster.test_history import LEASE, kill_leader

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

DAYS = 14


def test_a_foretold_endpoint_is_ready_without_a_schedule_and_shadow_only_measures(
    bed: Bed, product: Product, namespace: str
) -> None:
    on, shadow = (EndpointKey(namespace=namespace, name=predict) for predict in ("on", "shadow"))
    for key in (on, shadow):
        image = f"{key.name}-{namespace}"
        Registry(bed.registry_address).make_image(image, "1", [Layer(size_bytes=100_000, seed=image)])
        bed.apply(deployment(key.name, {"prewarm.dev/predict": key.name}, image=f"registry.bed/{image}:1"), namespace)
    keep_histories(bed, dict.fromkeys((on, shadow), used_daily()))
    kill_leader(bed)
    wait_until(lambda: ready_on(bed, on), 120, "a node is ready for what is foretold")
    (want,) = assigned(bed, on)
    assert want["windows"]
    assert {w["source"] for w in want["windows"]} == {"predicted"}
    assert "foretold from its history" in prewarm(
        "status", "--fleet", f"--kubeconfig={bed.kubeconfig}", "-n", namespace
    )

    assert [w["windows"] for w in assigned(bed, shadow)] == [[]]
    assert ready_on(bed, shadow) == []
    assert measured(bed, 'prewarm_predicted_windows{predict="shadow"}') >= 1
    met = f'prewarm_predicted_returns{{endpoint="shadow",namespace="{namespace}",outcome="met"}}'
    assert measured(bed, met) > 1, "what it would have done is told"


def used_daily() -> Track:
    """Three hours of requests a day, the next ones due in 40 to 50 minutes."""
    now = slot_of(datetime.now(UTC))
    first = now - DAYS * DAY_SLOTS
    return track_of(first, [(slot - now - 5) % DAY_SLOTS < 18 for slot in range(first, now)])


def keep_histories(bed: Bed, tracks: dict[EndpointKey, Track], shard: int = SHARDS - 1) -> None:
    """Write them as a planner does, into one of the shards that are used last."""
    content = base64.b64encode(encode(Shard(written_at=datetime.now(UTC), tracks=tracks))).decode()
    metadata = {"name": shard_name(shard)}
    bed.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": {"history": content}}, NAMESPACE
    )


def assigned(bed: Bed, key: EndpointKey) -> list[Object]:
    """What nodes are asked for of an endpoint."""
    found = bed.api.get("/apis/prewarm.dev/v1alpha1/nodewarmups")["items"]
    wants = [e for warmup in found for e in warmup["spec"].get("endpoints", [])]
    return [{"windows": [], **e} for e in wants if (e["namespace"], e["name"]) == (key.namespace, key.name)]


def ready_on(bed: Bed, key: EndpointKey) -> list[str]:
    """The nodes that claim to be ready for it."""
    selector = f"labelSelector=endpoint.prewarm.dev/{key}=ready"
    return [node["metadata"]["name"] for node in bed.api.get(f"/api/v1/nodes?{selector}")["items"]]


def measured(bed: Bed, metric: str) -> float:
    """A metric of the planner that leads."""
    leader = bed.api.get(LEASE)["spec"]["holderIdentity"]
    text = bed.kubectl("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{leader}:9808/proxy/metrics")
    found = re.search(rf"^{re.escape(metric)} (\S+)$", text, re.MULTILINE)
    assert found, f"{metric} is not among the metrics of {leader}"
    return float(found[1])
