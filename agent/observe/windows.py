"""Was each declared window met? The moment it was due is held against the moment this node could first claim to be warm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from agent.core.assignment import Assignment, WindowSource
from agent.core.clock import Clock
from agent.core.latest import Latest, Signal
from agent.core.names import READY, endpoint_label
from agent.core.refs import EndpointKey

Due = tuple[EndpointKey, datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One window is settled: ready `late_seconds` after it was due (0: in time), or None for never."""

    key: EndpointKey
    late_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Windows that were known before they were due: those not settled yet with their ends, and those that are."""

    open: Mapping[Due, datetime] = field(default_factory=dict)
    settled: frozenset[Due] = frozenset()  # as long as they are asked for: a clock that is set back opens none again


def settle(
    watched: Watched, assignment: Assignment | None, ready: frozenset[EndpointKey], now: datetime
) -> tuple[Watched, tuple[Verdict, ...]]:
    """Return what is still open and what has been settled by now.

    A window that is first seen after it was due is nobody's fault and is not counted; neither is one that is taken back
    before it ended, nor one that is only foretold: a guess is no promise. `ready` are the endpoints this node claims now.
    """
    endpoints = assignment.endpoints if assignment else ()
    asked = {
        (e.key, w.ready_by): w.until for e in endpoints for w in e.windows if w.source is not WindowSource.PREDICTED
    }
    still = {due: asked.get(due, until) for due, until in watched.open.items() if due in asked or until <= now}
    still |= {due: until for due, until in asked.items() if due[1] > now and due not in watched.settled}
    verdicts = {due: _verdict(due, until, ready, now) for due, until in still.items() if due[1] <= now}
    settled = {due: verdict for due, verdict in verdicts.items() if verdict}
    open_now = {due: until for due, until in still.items() if due not in settled}
    known = frozenset(due for due in (*watched.settled, *settled) if due in asked)
    return Watched(open=open_now, settled=known), tuple(settled.values())


def _verdict(due: Due, until: datetime, ready: frozenset[EndpointKey], now: datetime) -> Verdict | None:
    key, at = due
    if key in ready:
        # seen within a moment of its cause, so that less than a second is the delay of looking, not of the node
        late = (now - at).total_seconds()
        return Verdict(key=key, late_seconds=late if late >= 1 else 0.0)
    return Verdict(key=key, late_seconds=None) if now >= until else None


class Labelled(Protocol):
    """What says which labels this node may carry."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Label values by key."""
        ...


class LabelledCell(Protocol):
    """The readiness cell."""

    def get(self) -> Labelled | None:
        """Return the newest readiness."""
        ...

    def attach(self, signal: Signal) -> None:
        """Have a signal fired at each change."""
        ...

    def detach(self, signal: Signal) -> None:
        """Undo `attach`."""
        ...


class WindowObserver(Protocol):
    """Whoever counts windows."""

    def window_met(self, key: EndpointKey, late_seconds: float) -> None:
        """Count one that was met."""
        ...

    def window_missed(self, key: EndpointKey) -> None:
        """Count one that was not."""
        ...


class WindowWatch:
    """Settles windows as time and readiness go on; sleeps in between."""

    name = "windows"

    def __init__(
        self,
        *,
        assignment: Latest[Assignment | None],
        readiness: LabelledCell,
        clock: Clock,
        observer: WindowObserver,
    ) -> None:
        self._assignment = assignment
        self._readiness = readiness
        self._clock = clock
        self._observer = observer
        self._watched = Watched()

    async def run(self) -> None:
        """Settle until cancelled."""
        signal = Signal()
        self._assignment.attach(signal)
        self._readiness.attach(signal)
        try:
            while True:
                await signal.wait(self.look())
        finally:
            self._assignment.detach(signal)
            self._readiness.detach(signal)

    def look(self) -> float | None:
        """Settle what can be settled now; return the seconds until time alone changes that, None for never."""
        now, assignment, readiness = self._clock.now(), self._assignment.get(), self._readiness.get()
        ready = frozenset(_ready(assignment, readiness.labels if readiness else {}))
        self._watched, verdicts = settle(self._watched, assignment, ready, now)
        for verdict in verdicts:
            if verdict.late_seconds is None:
                self._observer.window_missed(verdict.key)
            else:
                self._observer.window_met(verdict.key, verdict.late_seconds)
        times = (at for due, until in self._watched.open.items() for at in (due[1], until) if at > now)
        return min((max(0.05, (at - now).total_seconds()) for at in times), default=None)


def _ready(assignment: Assignment | None, labels: Mapping[str, str]) -> Iterable[EndpointKey]:
    for want in assignment.endpoints if assignment else ():
        if labels.get(endpoint_label(want.key.namespace, want.key.name)) == READY:
            yield want.key
