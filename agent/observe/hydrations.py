"""How long hydrations take, read from the changes of the models cell: a version is busy, then it is not.

One that ends without being committed is `incomplete`: it failed, gave way to a more urgent one, or its window was taken back;
the cell tells the reason later than the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from agent.core.clock import Clock
from agent.core.inventory import ModelState
from agent.core.refs import Digest


class ModelStates(Protocol):
    """What is known of the models on this node."""

    @property
    def states(self) -> Mapping[Digest, ModelState]:
        """Every version, by digest."""
        ...


class ModelsCell(Protocol):
    """The models room's cell."""

    def follow(self) -> AsyncIterator[ModelStates]:
        """Yield the value now and at each change."""
        ...


class HydrationObserver(Protocol):
    """Whoever counts hydrations."""

    def hydrated(self, digest: Digest, seconds: float, size_bytes: int, outcome: str) -> None:
        """Count one that ended: `ok` (committed) or `incomplete`; `size_bytes` is 0 unless it is ok."""
        ...


class HydrationWatch:
    """Times every version from the first moment it is busy until it is not."""

    name = "hydrations"

    def __init__(self, *, models: ModelsCell, clock: Clock, observer: HydrationObserver) -> None:
        self._models = models
        self._clock = clock
        self._observer = observer
        self._since: dict[Digest, float] = {}

    async def run(self) -> None:
        """Watch until cancelled."""
        async for models in self._models.follow():
            self.look(models.states)

    def look(self, states: Mapping[Digest, ModelState]) -> None:
        """Take in the newest states."""
        now = self._clock.monotonic()
        for digest, since in list(self._since.items()):
            state = states.get(digest)
            if state is None or not state.busy:
                del self._since[digest]
                committed = state is not None and state.level.committed
                size_bytes = state.total_bytes if state and committed else 0
                self._observer.hydrated(digest, now - since, size_bytes, "ok" if committed else "incomplete")
        for digest, state in states.items():
            if state.busy:
                self._since.setdefault(digest, now)
