"""What the planner sees of replicas -> slots: active while an endpoint has pods, idle where it had none the whole time. Pure."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from datetime import datetime

from agent.core.refs import EndpointKey
from agent.demand.history import slot_of

_NONE: frozenset[EndpointKey] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What is known of one slot: those `active` had pods, those `idle` none from its beginning to its end."""

    slot: int
    active: frozenset[EndpointKey] = _NONE
    idle: frozenset[EndpointKey] = _NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One look: the endpoints there are, those with pods, and whether the API server answers, so that this is the present."""

    declared: Set[EndpointKey] = _NONE
    running: Set[EndpointKey] = _NONE
    current: bool = False


class Observer:
    """Remembers the slot that is open. Look at every change and at least once in each slot."""

    def __init__(self) -> None:
        self._slot = -1
        self._active: frozenset[EndpointKey] = _NONE
        self._whole: frozenset[EndpointKey] = _NONE  # looked at since the slot began
        self._last = Sight()

    def look(self, at: datetime, sight: Sight) -> tuple[Observed, ...]:
        """Return what this look makes known: the slot before if it has ended, and what is active in the one that is open."""
        slot = slot_of(at)
        ended = self._turn(slot) if slot != self._slot else ()
        self._whole = self._whole & sight.declared if sight.current else _NONE
        if sight.current:
            self._active |= sight.running & sight.declared
        self._last = sight
        return (*ended, Observed(slot=slot, active=self._active))

    def _turn(self, slot: int) -> tuple[Observed, ...]:
        """Close the open slot. After a leap (a sleeping machine, a clock that was set) nothing is known of what is between."""
        follows = slot == self._slot + 1
        closed = Observed(slot=self._slot, active=self._active, idle=self._whole - self._active)
        self._slot, self._active = slot, _NONE
        # Those that had pods at the last look may have had them a moment into this slot.
        self._whole = frozenset(self._last.declared - self._last.running) if follows and self._last.current else _NONE
        return (closed,) if follows else ()
