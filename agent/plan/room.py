"""Which versions go so that others fit, and what is refused because nothing may go for it. Pure.

A version may go for another if nobody needs it now and it could be fetched again, by its next window, after the other's window
has ended. The one whose next use is farthest goes first (Belady's rule, with the windows as the forecast): what nothing here
is assigned, then what has no window, then the latest window; lowest priority first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agent.core.inventory import ModelLevel, ModelState
from agent.core.refs import Digest
from agent.core.units import format_size
from agent.plan.decision import EvictStep

_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class NextUse:
    """Who needs a version next. `why`: somebody needs it now; `fetch_by`: when it would have to be fetched again, None never."""

    why: str = ""
    fetch_by: datetime | None = None
    priority: int = 500

    def joined(self, other: NextUse) -> NextUse:
        """Return the use by two endpoints together."""
        times = [t for t in (self.fetch_by, other.fetch_by) if t is not None]
        return NextUse(
            why=self.why or other.why,
            fetch_by=min(times, default=None),
            priority=max(self.priority, other.priority),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanting:
    """A version that lacks `short_bytes` of room, and until when it is needed (now, where no window says)."""

    digest: Digest
    short_bytes: int
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What goes, for which version each, and why what cannot be helped is refused."""

    evictions: tuple[EvictStep, ...] = ()
    made_for: frozenset[Digest] = frozenset()
    refusals: Mapping[Digest, str] = field(default_factory=dict)


def make_room(wanting: Iterable[Wanting], uses: Mapping[Digest, NextUse], states: Mapping[Digest, ModelState]) -> Room:
    """Choose what goes: no more than is needed, and nothing at all for a version that would not fit even so."""
    going: dict[Digest, EvictStep] = {}
    made_for, refusals = set(), {}
    wanted = list(wanting)
    asking = {w.digest for w in wanted}
    left = {d: s for d, s in states.items() if d not in asking and _frees(s) > 0}
    for want in wanted:
        free = {d: s for d, s in left.items() if not _why_not(s, uses.get(d), want)}
        if sum(map(_frees, free.values())) < want.short_bytes:
            refusals[want.digest] = _refusal(want, left, free, uses)
            continue
        made_for.add(want.digest)
        for digest in _fewest(
            sorted(free, key=lambda d: _first_to_go(d, free[d], uses.get(d))), free, want.short_bytes
        ):
            reason = f"{_told(uses.get(digest))}, and {format_size(want.short_bytes)} are needed for another model"
            going[digest] = EvictStep(digest=digest, reason=reason)
            del left[digest]
    return Room(evictions=tuple(going.values()), made_for=frozenset(made_for), refusals=refusals)


def _frees(state: ModelState) -> int:
    """Return the bytes that removing a version frees; a partial one has all its blocks reserved."""
    if state.busy or state.level is ModelLevel.ABSENT:
        return 0
    if state.own_bytes is not None:
        return state.own_bytes
    return state.total_bytes or state.done_bytes


def _why_not(state: ModelState, use: NextUse | None, want: Wanting) -> str:
    if state.kept:
        return "in use or pinned"
    if use and use.why:
        return "needed now"
    if use and use.fetch_by is not None and use.fetch_by <= want.until:
        return "due before the window ends"
    return ""


def _first_to_go(digest: Digest, state: ModelState, use: NextUse | None) -> tuple[bool, float, int, bool, Digest]:
    if use is None:
        return False, 0.0, 0, state.level.committed, digest
    at = (use.fetch_by or _NEVER).timestamp()
    return True, -at, use.priority, state.level.committed, digest


def _fewest(order: Sequence[Digest], states: Mapping[Digest, ModelState], short_bytes: int) -> list[Digest]:
    """Take from the front until it is enough; then leave out again what is not needed, the most valuable first."""
    taken, freed = [], 0
    for digest in order:
        if freed >= short_bytes:
            break
        taken.append(digest)
        freed += _frees(states[digest])
    for digest in reversed(taken.copy()):
        if freed - _frees(states[digest]) >= short_bytes:
            taken.remove(digest)
            freed -= _frees(states[digest])
    return taken


def _told(use: NextUse | None) -> str:
    if use is None:
        return "no endpoint here uses it"
    return "no window needs it" if use.fetch_by is None else f"not needed before {use.fetch_by:%Y-%m-%d %H:%M} UTC"


def _refusal(
    want: Wanting, left: Mapping[Digest, ModelState], free: Mapping[Digest, ModelState], uses: Mapping[Digest, NextUse]
) -> str:
    reasons = Counter(_why_not(s, uses.get(d), want) for d, s in left.items() if d not in free)
    held = ", ".join(f"{n} {why}" for why, n in sorted(reasons.items()))
    may_go = format_size(sum(map(_frees, free.values())))
    return f"{format_size(want.short_bytes)} are lacking and {may_go} may go for it" + (f" ({held})" if held else "")
