"""Memory as the API server counts it: quantities, what a pod requests, and what the pods of a node request together. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from agent.kube.objects import NodeView, PodView

Json = Mapping[str, Any]
_QUANTITY = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)(?:e([0-9]{1,2})|(m|k|[MGTPE]|[KMGTPE]i))?")
_FACTORS = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(1000), "Ki": Decimal(1024)} | {
    f"{prefix}{binary}": Decimal((1024 if binary else 1000) ** n)
    for n, prefix in enumerate("MGTPE", 2)
    for binary in ("", "i")
}


def parse_quantity(value: object) -> int:
    """Return a Kubernetes quantity in whole units, rounded up as the scheduler does; 0 for what is none."""
    found = _QUANTITY.fullmatch(str(value))
    if not found:
        return 0
    number = Decimal(found[1]) * Decimal(10) ** int(found[2] or 0) * _FACTORS[found[3] or ""]
    return int(number.to_integral_value(rounding="ROUND_CEILING"))


def pod_memory_request(spec: Json) -> int:
    """Return what the scheduler counts for a pod, in bytes.

    Containers and sidecars together, or an init container with the sidecars started before it if that is more; a request of
    the whole pod counts instead; the overhead of the runtime on top (KEP-753, KEP-2837).
    """
    sidecars = most = 0
    for item in _maps(spec, "initContainers"):
        if item.get("restartPolicy") == "Always":
            sidecars += _request(item)
            most = max(most, sidecars)
        else:
            most = max(most, sidecars + _request(item))
    usual = sidecars + sum(_request(item) for item in _maps(spec, "containers"))
    whole = _request(spec)
    return (whole or max(most, usual)) + parse_quantity(_map(spec, "overhead").get("memory", 0))


def memory_requests(node: NodeView | None, pods: Iterable[PodView]) -> tuple[int, int] | None:
    """Return a node's allocatable memory and what its pods request of it, in bytes; None while the node does not say."""
    allocatable = parse_quantity(node.allocatable.get("memory", "")) if node else 0
    running = (p for p in pods if p.phase not in ("Succeeded", "Failed"))
    return (allocatable, sum(p.memory_request_bytes for p in running)) if allocatable else None


def _request(item: Json) -> int:
    resources = _map(item, "resources")
    asked = _map(resources, "requests").get("memory")
    return parse_quantity(_map(resources, "limits").get("memory", 0) if asked is None else asked)


def _map(item: Json, key: str) -> Json:
    value = item.get(key)
    return value if isinstance(value, dict) else {}


def _maps(item: Json, key: str) -> Iterable[Json]:
    value = item.get(key)
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []
