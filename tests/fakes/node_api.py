"""An API server that holds one Node: applies the publisher's two patches as the real one does, echoes them on a watch, can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from agent.core.errors import PrewarmError, Transient
from agent.core.latest import Latest
from agent.kube.objects import Condition, NodeView, Taint


@dataclass(frozen=True)
class Write:
    """One call as it arrived."""

    at: float
    kind: str  # "status" or "taints"
    body: Any


@dataclass
class NodeApi:
    """`node` is the truth, `watched` what the watch has shown; `failure` is raised, after `latency` seconds."""

    node: NodeView
    watched: Latest[NodeView | None]
    failure: PrewarmError | None = None
    latency: float = 0.0
    lag: float | None = 0.0  # of the watch; None: it is stuck
    writes: list[Write] = field(default_factory=list)

    async def patch_status(self, node: str, body: Mapping[str, object]) -> None:
        """Apply a strategic-merge patch: maps merge, null removes, conditions merge by type."""
        await self._arrive("status", body)
        patch: Any = body
        meta = patch.get("metadata", {})
        if meta.get("uid", self.node.uid) != self.node.uid:
            raise Transient("uid conflict")
        conditions = {c.type: c for c in self.node.conditions}
        for c in patch.get("status", {}).get("conditions", []):
            since = datetime.fromisoformat(c["lastTransitionTime"])
            conditions[c["type"]] = Condition(
                type=c["type"], status=c["status"], reason=c["reason"], message=c["message"], since=since
            )
        self.change(
            labels=_merge(self.node.labels, meta.get("labels", {})),
            annotations=_merge(self.node.annotations, meta.get("annotations", {})),
            conditions=tuple(conditions.values()),
        )

    async def patch_taints(self, node: str, ops: Sequence[Mapping[str, object]]) -> None:
        """Apply a JSON patch; a failed test is a conflict."""
        await self._arrive("taints", list(ops))
        document: Any = {
            "metadata": {"annotations": dict(self.node.annotations), "resourceVersion": self.node.resource_version},
            "spec": {"taints": [{"key": t.key, "effect": t.effect, "value": t.value} for t in self.node.taints]},
        }
        try:
            for op in ops:
                _apply(document, op)
        except (IndexError, KeyError) as error:  # the path is not there (any more)
            raise Transient(f"the patch does not fit: {error}") from error
        taints = tuple(
            Taint(key=t["key"], effect=t["effect"], value=t.get("value", "")) for t in document["spec"]["taints"]
        )
        self.change(taints=taints, annotations=document["metadata"]["annotations"])

    def change(self, **fields: Any) -> None:
        """Change the Node as anybody may, and tell the watch."""
        version = str(int(self.node.resource_version or "0") + 1)
        self.node = replace(self.node, resource_version=version, **fields)
        if self.lag == 0:
            self.watched.set(self.node)
        elif self.lag is not None:
            asyncio.get_running_loop().call_later(self.lag, self._show, self.node)

    def _show(self, node: NodeView) -> None:
        """A watch may be late, it never goes back."""
        shown = self.watched.get()
        if shown is None or int(node.resource_version) > int(shown.resource_version or "0"):
            self.watched.set(node)

    async def _arrive(self, kind: str, body: object) -> None:
        self.writes.append(Write(asyncio.get_running_loop().time(), kind, body))
        if self.latency:
            await asyncio.sleep(self.latency)
        if self.failure:
            raise self.failure


def _merge(old: Mapping[str, str], patch: Mapping[str, str | None]) -> dict[str, str]:
    merged: dict[str, str | None] = {**old, **patch}
    return {k: v for k, v in merged.items() if v is not None}


def _apply(document: Any, op: Mapping[str, Any]) -> None:
    *path, last = [p.replace("~1", "/") for p in op["path"].split("/")[1:]]
    at = document
    for part in path:
        at = at[int(part)] if isinstance(at, list) else at[part]
    if op["op"] == "test":
        found = at[int(last)] if isinstance(at, list) else at[last]
        if found != op["value"]:
            raise Transient(f"test of {op['path']} failed")
    elif op["op"] == "remove":
        del at[int(last)]
    elif isinstance(at, list):
        at.append(op["value"])
    else:
        at[last] = op["value"]
