"""Whether a pod may have its models now: it is a pod of this node, every version is committed, seen in its view and referred to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from agent.core.assignment import Assignment
from agent.core.errors import Permanent, Transient, cut
from agent.core.inventory import Inventory
from agent.core.latest import Latest
from agent.core.refs import Digest, EndpointKey
from agent.core.sandbox import Sandbox
from agent.node.readiness import Readiness
from agent.node.waiting import Outlook, WaitOrder, outlook
from agent.plan.decision import NodePlan

_ASK_SECONDS = 10.0

log = structlog.get_logger()


class Sandboxes(Protocol):
    """Who runs on this node, by the container runtime."""

    async def sandboxes(self) -> Sequence[Sandbox]:
        """Return all pod sandboxes.

        Raises:
            Transient: the runtime does not answer.
        """
        ...


class RefKeeper(Protocol):
    """The record of which pod uses which version."""

    async def add(self, pod_uid: str, digests: Sequence[Digest]) -> None:
        """Record durably that a pod uses these versions.

        Raises:
            Transient: it could not be recorded, or a version has just gone.
        """
        ...


class UnknownPod(Permanent):
    """Who asks is no pod of this node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCells:
    """What the sockets tell of. `inventory` is the one the plan was made from."""

    assignment: Latest[Assignment | None]
    inventory: Latest[Inventory]
    plan: Latest[NodePlan]
    readiness: Latest[Readiness | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """Hands out versions. `sandboxes` None: whoever asks is believed (an agent alone on a machine)."""

    cells: LocalCells
    refs: RefKeeper
    sandboxes: Sandboxes | None
    view_path: Callable[[EndpointKey, Digest], Path]

    async def check_pod(self, order: WaitOrder) -> None:
        """Raise unless the pod runs here.

        Raises:
            UnknownPod: it does not.
            Transient: the container runtime does not answer.
        """
        if self.sandboxes is None:
            return
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                known = await self.sandboxes.sandboxes()
        except TimeoutError as error:
            raise Transient("the container runtime does not answer") from error
        who = (order.pod_uid, order.endpoint.namespace, order.pod_name)
        if not any(s.ready and (s.uid, s.namespace, s.name) == who for s in known):
            raise UnknownPod(
                f"no pod {order.endpoint.namespace}/{order.pod_name} with uid {order.pod_uid} runs on this node"
            )

    def outlook(self, order: WaitOrder) -> Outlook:
        """What holds for the order now."""
        cells = self.cells
        return outlook(order, cells.assignment.get(), cells.inventory.get(), cells.plan.get().refusals)

    def paths(self, order: WaitOrder, now: Outlook) -> Mapping[str, Path]:
        """Where each model is or will be, by name."""
        return {m.name: self.view_path(order.endpoint, m.digest) for m in now.models if m.digest}

    async def granted(self, order: WaitOrder, now: Outlook) -> bool:
        """True once the versions can be handed out: the reference stands before the answer, the views after it still."""
        paths = list(self.paths(order, now).values())
        if not now.committed or not await asyncio.to_thread(_all_stand, paths):
            return False
        try:
            await self.refs.add(order.pod_uid, [m.digest for m in now.models if m.digest])
        except Transient as error:
            log.warning("a pod's reference is not recorded", pod=order.pod_uid, error=cut(error))
            return False
        return self.outlook(order) == now and await asyncio.to_thread(_all_stand, paths)


def _all_stand(paths: Sequence[Path]) -> bool:
    return all(p.is_dir() for p in paths)
