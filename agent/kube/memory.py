"""What pods request, as the scheduler counts it: quantities, a pod, and the memory of a node's pods together. Pure."""

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
    return _up(_exact(value))


def pod_memory_request(spec: Json) -> int:
    """Return what the scheduler counts for a pod, in bytes: the overhead of the runtime comes on top."""
    return _up(_requested(spec, "memory")) + parse_quantity(_map(spec, "overhead").get("memory", 0))


def pod_requests(spec: Json) -> Mapping[str, str]:
    """Return what a pod requests of each resource, as quantities; the overhead of its runtime is the API server's to add."""
    items: list[Json] = [spec, *_maps(spec, "initContainers"), *_maps(spec, "containers")]
    asked = {
        name for item in items for each in _map(item, "resources").values() if isinstance(each, dict) for name in each
    }
    found = {name: _requested(spec, name) for name in sorted(asked)}
    return {name: f"{_up(n * 1000)}m" if name == "cpu" else str(_up(n)) for name, n in found.items() if n}


def memory_requests(node: NodeView | None, pods: Iterable[PodView]) -> tuple[int, int] | None:
    """Return a node's allocatable memory and what its pods request of it, in bytes; None while the node does not say."""
    allocatable = parse_quantity(node.allocatable.get("memory", "")) if node else 0
    running = (p for p in pods if p.phase not in ("Succeeded", "Failed"))
    return (allocatable, sum(p.memory_request_bytes for p in running)) if allocatable else None


def _requested(spec: Json, resource: str) -> Decimal:
    """Return what the scheduler counts of one resource, without overhead.

    Containers and sidecars together, or an init container with the sidecars started before it if that is more; a request of
    the whole pod counts instead (KEP-753, KEP-2837).
    """
    sidecars = most = Decimal(0)
    for item in _maps(spec, "initContainers"):
        if item.get("restartPolicy") == "Always":
            sidecars += _request(item, resource)
            most = max(most, sidecars)
        else:
            most = max(most, sidecars + _request(item, resource))
    usual = sidecars + sum((_request(item, resource) for item in _maps(spec, "containers")), Decimal(0))
    return _request(spec, resource) or max(most, usual)


def _request(item: Json, resource: str) -> Decimal:
    resources = _map(item, "resources")
    asked = _map(resources, "requests").get(resource)
    return _exact(_map(resources, "limits").get(resource, 0) if asked is None else asked)


def _exact(value: object) -> Decimal:
    found = _QUANTITY.fullmatch(str(value))
    if not found:
        return Decimal(0)
    return Decimal(found[1]) * Decimal(10) ** int(found[2] or 0) * _FACTORS[found[3] or ""]


def _up(number: Decimal) -> int:
    return int(number.to_integral_value(rounding="ROUND_CEILING"))


def _map(item: Json, key: str) -> Json:
    value = item.get(key)
    return value if isinstance(value, dict) else {}


def _maps(item: Json, key: str) -> Iterable[Json]:
    value = item.get(key)
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []
