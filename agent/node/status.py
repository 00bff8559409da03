"""What the NodeWarmup's status says of this node: assignment, inventory and plan as JSON. Pure.

`render_status` is bounded (256 KiB); `signature` tells two statuses apart by level and reason only, so that progress in
bytes is written along but never causes a write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from agent.core.assignment import Assignment, EndpointWant, ImageWant, ModelWant
from agent.core.assignment_json import format_time
from agent.core.errors import cut
from agent.core.inventory import GpuVerdict, ImageLevel, ImageState, Inventory, ModelLevel, ModelState
from agent.core.names import READY, endpoint_label
from agent.core.units import format_size
from agent.node.readiness import Readiness
from agent.plan.decision import NodePlan, Stage
from agent.plan.lacking import model_digest

Status = Mapping[str, object]
LIMIT_BYTES = 256 * 1024
_MAX_ITEMS = 1000
_TEXT_LIMIT = 300
_WARM = (*(str(i) for i in ImageLevel if i.warm), *(str(m) for m in ModelLevel if m.committed))
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?: ?[kMGTP]?B\b)?")


def render_status(
    assignment: Assignment, inventory: Inventory, plan: NodePlan, readiness: Readiness, now: datetime
) -> Status:
    """Return the status as JSON values; None where a field is to be removed."""
    ready = {e.key for e in assignment.endpoints if readiness.labels.get(_label(e)) == READY}
    due = min((w.ready_by for e in assignment.endpoints for w in e.windows if w.ready_by > now), default=None)
    status: dict[str, object] = {
        "observedGeneration": assignment.generation,
        "phase": _phase(assignment, inventory, plan, ready_count=len(ready)),
        "ready": f"{len(ready)}/{len(assignment.endpoints)}",
        "reason": _reason(assignment, inventory, plan, readiness),
        "nextReadyBy": format_time(due) if due else None,
        "cache": {
            "used": format_size(inventory.cache.used_bytes),
            "capacity": format_size(inventory.cache.capacity_bytes),
            "capacityBytes": inventory.cache.capacity_bytes,
        },
        "paceBytesPerSecond": round(inventory.pace_bytes_per_second),
        "memory": _memory(inventory),
        "gpu": {"verdict": str(inventory.gpu.verdict), "reason": cut(inventory.gpu.reason, _TEXT_LIMIT)},
        "endpoints": [
            {"key": str(e.want.key), "stage": str(e.stage), "reason": cut(e.reason, _TEXT_LIMIT)}
            | ({"readyAt": format_time(e.ready_at)} if e.ready_at else {})
            for e in plan.endpoints
        ],
        "items": sorted(_items(assignment, inventory, now), key=lambda i: (i["level"] in _WARM, str(i["ref"]))),
    }
    return _bounded(status)


def signature(status: Status) -> str:
    """Return what a change of must be written: levels and reasons, without the numbers in them."""
    kept = {k: v for k, v in status.items() if k not in ("cache", "memory", "paceBytesPerSecond", "items", "endpoints")}
    rows = [
        {k: row.get(k) for k in ("key", "stage", "ref", "level", "reason", "error")} | {"late": "readyAt" in row}
        for part in (status.get("endpoints"), status.get("items"))
        for row in (part if isinstance(part, list) else ())
    ]
    for row in (kept, *rows):
        for key in ("reason", "error"):
            row[key] = _NUMBER.sub("#", str(row.get(key) or ""))
    return json.dumps([kept, rows], sort_keys=True, default=str)


def loses_readiness(before: Status | None, after: Status) -> bool:
    """True if `after` takes back something that `before` said was ready: such a write does not wait."""
    if before is None:
        return False
    was, now = (_ready_count(s) for s in (before, after))
    return now < was or (before.get("phase") == "Ready" and after.get("phase") != "Ready")


def _ready_count(status: Status) -> int:
    return int(str(status.get("ready", "0/0")).partition("/")[0])


def _label(endpoint: EndpointWant) -> str:
    key = endpoint.key
    return endpoint_label(key.namespace, key.name)


def _phase(assignment: Assignment, inventory: Inventory, plan: NodePlan, *, ready_count: int) -> str:
    """Ready: everything assigned is proved. Unready: a person should look. Warming: neither, the plan is at work."""
    if inventory.gpu.verdict is GpuVerdict.UNHEALTHY or not inventory.proved:
        return "Unready"
    if ready_count == len(assignment.endpoints):
        return "Ready"
    troubled = any(e.stage in (Stage.FAILING, Stage.LATE) for e in plan.endpoints)
    return "Unready" if troubled else "Warming"


def _reason(assignment: Assignment, inventory: Inventory, plan: NodePlan, readiness: Readiness) -> str:
    """One sentence: the worst that holds."""
    if not inventory.proved:
        return "the proof of what is on this node is not through"
    if inventory.gpu.verdict is GpuVerdict.UNHEALTHY:
        return cut(f"GPUs are unhealthy: {inventory.gpu.reason}", _TEXT_LIMIT)
    for stage in (Stage.FAILING, Stage.LATE, Stage.WARMING, Stage.SCHEDULED, Stage.IDLE):
        for told in plan.endpoints:
            if told.stage is stage and readiness.labels.get(_label(told.want)) != READY:
                return cut(f"{told.want.key} is {stage}: {told.reason}", _TEXT_LIMIT)
    return "everything assigned is proved warm" if assignment.endpoints else "no endpoint is assigned to this node"


def _memory(inventory: Inventory) -> dict[str, str] | None:
    """Say what the memory tier holds; None while nothing asks for it."""
    memory = inventory.memory
    if memory.budget_bytes is None:
        return None
    return {"held": format_size(memory.held_bytes), "budget": format_size(memory.budget_bytes)}


def _items(assignment: Assignment, inventory: Inventory, now: datetime) -> Iterator[dict[str, object]]:
    images = {i.ref: i for e in assignment.endpoints for i in e.images}
    models = {str(m.uri): m for e in assignment.endpoints for m in e.models}
    yield from (_image_item(i, inventory.images.get(i.ref), now) for i in images.values())
    for want in models.values():
        digest = model_digest(want, inventory)
        yield _model_item(want, inventory.models.get(digest) if digest else None, inventory, now)


def _image_item(want: ImageWant, state: ImageState | None, now: datetime) -> dict[str, object]:
    if state is None:
        return {"ref": str(want.ref), "level": str(ImageLevel.ABSENT), "reason": "not looked at yet"}
    eta = eta_of(state, now)
    full: dict[str, object] = {
        "ref": str(want.ref),
        "level": str(state.level),
        "bytes": state.done_bytes,
        "total": state.total_bytes,
        "eta": format_time(eta) if eta else "",
        "reason": cut(state.reason, _TEXT_LIMIT),
        "error": cut(state.error, _TEXT_LIMIT),
    }
    return {k: v for k, v in full.items() if v not in ("", 0)}


def _model_item(want: ModelWant, state: ModelState | None, inventory: Inventory, now: datetime) -> dict[str, object]:
    if state is None:
        reason = "not looked at yet" if want.digest else "its version is not resolved yet"
        item: dict[str, object] = {"ref": str(want.uri), "level": str(ModelLevel.ABSENT), "reason": reason}
        error = inventory.unresolved.get(str(want.uri))
        return item | {"error": cut(error, _TEXT_LIMIT)} if error else item
    eta = eta_of(state, now)
    full: dict[str, object] = {
        "ref": str(want.uri),
        "level": str(state.level),
        "bytes": state.done_bytes,
        "total": state.total_bytes or want.size_bytes,
        "resident": state.resident_bytes,
        "eta": format_time(eta) if eta else "",
        "reason": cut(state.reason, _TEXT_LIMIT),
        "error": cut(state.error, _TEXT_LIMIT),
    }
    return {k: v for k, v in full.items() if v not in ("", 0)}


def eta_of(state: ModelState | ImageState, now: datetime) -> datetime | None:
    """Return when a running download ends at its present rate; None if nothing can be said (or only nonsense)."""
    if not state.busy or state.rate_bytes_per_second < 1 or state.done_bytes >= state.total_bytes:
        return None
    left = max(0, state.total_bytes - state.done_bytes) / state.rate_bytes_per_second
    return now + timedelta(seconds=left) if left < 365 * 86400 else None


def _bounded(status: dict[str, object]) -> Status:
    """Keep within the limits: first the reasons of what is warm go, then items from the end; the reason tells how many."""
    items = status["items"]
    if not isinstance(items, list):
        return status
    total = len(items)
    items = items[:_MAX_ITEMS]
    if _size(status) > LIMIT_BYTES:
        items = [{k: v for k, v in i.items() if k != "reason" or i["level"] not in _WARM} for i in items]
    room = LIMIT_BYTES - _size(status | {"items": []}) - 200
    sizes = [_size(i) + 2 for i in items]
    while items and sum(sizes) > room:
        items.pop()
        sizes.pop()
    if len(items) < total:
        status["reason"] = f"{status['reason']} ({total - len(items)} items not listed)"
    return status | {"items": items}


def _size(value: object) -> int:
    return len(json.dumps(value).encode())
