"""A node writer that counts what it writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol

from agent.core.errors import PrewarmError, Transient


class Writer(Protocol):
    """The agent's writes on its own Node and NodeWarmup."""

    async def patch_status(self, node: str, body: Mapping[str, object]) -> None:
        """Patch `nodes/status`."""
        ...

    async def patch_taints(self, node: str, ops: Sequence[Mapping[str, object]]) -> None:
        """Patch the Node's taints."""
        ...

    async def write_status(self, node: str, status: Mapping[str, object]) -> None:
        """Patch the NodeWarmup's status."""
        ...


class WriteObserver(Protocol):
    """Whoever counts writes."""

    def api_write(self, kind: str, error: PrewarmError | None = None) -> None:
        """Count one write."""
        ...

    def labels_written(self, labels: Mapping[str, object]) -> None:
        """Count the labels of one successful write."""
        ...


class CountedWriter:
    """A Writer in front of another one; errors pass through."""

    def __init__(self, writer: Writer, observer: WriteObserver) -> None:
        self._writer = writer
        self._observer = observer

    async def patch_status(self, node: str, body: Mapping[str, object]) -> None:
        """See `Writer.patch_status`."""
        await self._counted("node", self._writer.patch_status(node, body))
        metadata = body.get("metadata")
        labels = metadata.get("labels") if isinstance(metadata, Mapping) else None
        if isinstance(labels, Mapping):
            self._observer.labels_written(labels)

    async def patch_taints(self, node: str, ops: Sequence[Mapping[str, object]]) -> None:
        """See `Writer.patch_taints`."""
        await self._counted("taint", self._writer.patch_taints(node, ops))

    async def write_status(self, node: str, status: Mapping[str, object]) -> None:
        """See `Writer.write_status`."""
        await self._counted("nodewarmup", self._writer.write_status(node, status))

    async def _counted(self, kind: str, write: Awaitable[None]) -> None:
        try:
            await write
        except PrewarmError as error:
            self._observer.api_write(kind, error)
            raise
        except asyncio.CancelledError:  # the caller's patience is over: an API server that hangs shows here alone
            self._observer.api_write(kind, Transient("cut short"))
            raise
        self._observer.api_write(kind)
