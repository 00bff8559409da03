"""Proof of progress: who completed a cycle, and when. `/readyz` rests on it, and so does every claim."""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.latest import Latest

GPU = "gpu"  # the name under which the GPU room beats: its verdict stands in a label of its own


class Heartbeat:
    """Remembers when each named prover last completed a full cycle (monotonic seconds).

    `begun` turns True once each of them has completed its first.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._beats: dict[str, float | None] = dict.fromkeys(names)
        self._missed: dict[str, str] = {}
        self.begun = Latest(not self._beats)

    def expect(self, name: str) -> None:
        """Name a prover that must beat; until its first beat it counts as infinitely old."""
        self._beats.setdefault(name, None)
        self.begun.set(None not in self._beats.values())

    def beat(self, name: str, monotonic: float) -> None:
        """Record that `name` completed a cycle at `monotonic`."""
        self._beats[name] = monotonic
        self._missed.pop(name, None)
        self.begun.set(None not in self._beats.values())

    def miss(self, name: str, reason: str) -> None:
        """Say why a prover's cycle did not complete; forgotten at its next beat."""
        self._missed[name] = reason

    @property
    def missed(self) -> dict[str, str]:
        """Why each prover that is stuck is stuck, as far as it said."""
        return dict(self._missed)

    def ages_seconds(self, monotonic: float) -> dict[str, float]:
        """Return how long ago each prover completed a cycle; infinity for never."""
        return {name: monotonic - at if at is not None else float("inf") for name, at in self._beats.items()}
