"""How long nodes took to come, over changes of leader: the newest measurements, in a ConfigMap beside the placeholders."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from agent.core.errors import Permanent, Transient
from agent.fleet.provision import REMEMBERED
from agent.kube.api import KubeApi
from agent.kube.objects import NodeView
from agent.kube.placeholders import PlaceholderView
from agent.kube.resources import CONFIGMAPS

log = structlog.get_logger()

NAME = "prewarm-arrivals"
_KEY = "seconds"
_MOST_SECONDS = 86400.0


class Arrivals:
    """Measures the placeholders that a node came for; one counts if this process saw it wait, and the node is younger than it."""

    def __init__(self, api: KubeApi, namespace: str) -> None:
        self.seconds: tuple[float, ...] = ()
        self._api, self._namespace = api, namespace
        self._waiting: frozenset[str] = frozenset()
        self._loaded, self._kept = False, True

    async def look(self, placeholders: Mapping[str, PlaceholderView], nodes: Mapping[str, NodeView]) -> None:
        """Measure what has been bound since the last look, and keep it with what planners before this one measured."""
        if not self._loaded:
            await self._load()
        found = [s for p in placeholders.values() if p.uid in self._waiting and (s := _seconds(p, nodes)) is not None]
        self._waiting = frozenset(p.uid for p in placeholders.values() if p.alive and not p.node)
        if found:
            self.seconds = (*self.seconds, *found)[-REMEMBERED:]
            self._kept = False
            log.info("nodes came for placeholders", seconds=found)
        if self._loaded and not self._kept:
            await self._keep()

    async def _load(self) -> None:
        """Put what is kept before what has been measured since; where nothing can be kept, all is measured anew."""
        try:
            kept = await self._api.get(CONFIGMAPS, NAME, namespace=self._namespace)
        except (Transient, Permanent) as error:
            log.warning("measured arrivals of nodes cannot be read", error=str(error))
            self._loaded = isinstance(error, Permanent)
            return
        self._loaded = True
        words = kept.data.get(_KEY, "")[: 8 * REMEMBERED].split()
        before = [float(w) for w in words if w.isascii() and w.isdigit() and len(w) < 6]
        self.seconds = (*before, *self.seconds)[-REMEMBERED:]

    async def _keep(self) -> None:
        self._kept = True
        text = " ".join(str(round(s)) for s in self.seconds)
        try:
            await self._api.patch(CONFIGMAPS, NAME, {"data": {_KEY: text}}, namespace=self._namespace)
        except (Transient, Permanent) as error:
            log.warning("measured arrivals of nodes cannot be kept", error=str(error))


def _seconds(placeholder: PlaceholderView, nodes: Mapping[str, NodeView]) -> float | None:
    """Return how long the node took to come and be ready for pods, None if it was there before."""
    node = nodes.get(placeholder.node)
    if node is None or not (node.created and placeholder.created and placeholder.bound):
        return None
    took = (placeholder.bound - placeholder.created).total_seconds()
    return took if node.created >= placeholder.created and 0 < took <= _MOST_SECONDS else None
