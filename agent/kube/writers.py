"""The agent's writes: its own Node (status and taints) and the status of its own NodeWarmup. The policy in front allows no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from agent.kube.api import KubeApi, PatchKind, Resource
from agent.kube.resources import NODES, NODEWARMUPS

T = TypeVar("T")


class AgentWriter:
    """Writes by PATCH only."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api

    async def patch_status(self, node: str, body: Mapping[str, object]) -> None:
        """Strategic-merge `body` (labels, annotations, conditions) into `nodes/status`: one atomic write for all three.

        Raises:
            PrewarmError: Transient or Permanent, as the API server answers.
        """
        await self._write(NODES, node, body, PatchKind.STRATEGIC, "status")

    async def patch_taints(self, node: str, ops: Sequence[Mapping[str, object]]) -> None:
        """Apply a JSON patch with `test` to the Node: taints are one atomic list, and other people's stand in it.

        Raises:
            PrewarmError: Transient or Permanent, as the API server answers.
        """
        await self._write(NODES, node, ops, PatchKind.JSON, "")

    async def write_status(self, node: str, status: Mapping[str, object]) -> None:
        """Merge-patch the status of the NodeWarmup called `node`.

        Raises:
            PrewarmError: Transient or Permanent, as the API server answers.
        """
        await self._write(NODEWARMUPS, node, {"status": status}, PatchKind.MERGE, "status")

    async def _write(
        self,
        resource: Resource[T],
        name: str,
        body: Mapping[str, object] | Sequence[Mapping[str, object]],
        kind: PatchKind,
        subresource: str,
    ) -> None:
        await self._api.patch(resource, name, body, kind=kind, subresource=subresource)
