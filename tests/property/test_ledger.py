"""The ledger agrees with a count made from the raw events alone, window by window, without any of its steps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from agent.core.assignment import Window
from agent.core.refs import EndpointKey
from agent.fleet.ledger import Ledger, Outcome, settled

START = datetime(2026, 3, 2, tzinfo=UTC)
CHAT, DRAW = EndpointKey(namespace="shop", name="chat"), EndpointKey(namespace="shop", name="draw")


@dataclass(frozen=True)
class Planned:
    """A window in minutes since START: the plan has it from `told` until `gone`."""

    key: EndpointKey
    due: int
    end: int
    told: int
    gone: int


@dataclass(frozen=True)
class World:
    """What happened: when somebody looked; in which minutes each window's nodes were ready, and each endpoint had pods."""

    windows: tuple[Planned, ...]
    looks: tuple[int, ...]
    ready: frozenset[tuple[EndpointKey, int, int]]
    pods: frozenset[tuple[EndpointKey, int]]


MINUTE = st.integers(0, 60)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    windows = []
    for key in (CHAT, DRAW):
        free = draw(st.integers(1, 10))
        for _ in range(draw(st.integers(0, 3))):
            due = free + draw(st.integers(0, 10))
            end = due + draw(st.integers(1, 15))
            told = draw(st.integers(0, due + 3))
            gone = draw(st.one_of(st.just(1000), st.integers(told, end + 5)))
            windows.append(Planned(key, due, end, told, gone))
            free = end + 1
    looks = tuple(sorted(draw(st.sets(MINUTE, min_size=1, max_size=60)) | {200}))
    ready = {
        (w.key, w.due, minute)
        for w in windows
        for begin, length in draw(st.lists(st.tuples(MINUTE, st.integers(1, 30)), max_size=3))
        for minute in range(begin, begin + length)
    }
    pods = {
        (key, minute)
        for key in (CHAT, DRAW)
        for begin, length in draw(st.lists(st.tuples(MINUTE, st.integers(1, 15)), max_size=3))
        for minute in range(begin, begin + length)
    }
    return World(tuple(windows), looks, frozenset(ready), frozenset(pods))


def at(minute: int) -> datetime:
    return START + timedelta(minutes=minute)


def kept(world: World) -> Ledger:
    """The ledger after all looks."""
    ledger = Ledger()
    for minute in world.looks:
        planned: dict[EndpointKey, tuple[Window, ...]] = {CHAT: (), DRAW: ()}
        for w in world.windows:
            if w.told <= minute < min(w.gone, w.end):  # a plan does not have what is over
                planned[w.key] += (Window(ready_by=at(w.due), until=at(w.end)),)
        ready = [(w.key, at(w.due)) for w in world.windows if (w.key, w.due, minute) in world.ready]
        pods = [key for key in (CHAT, DRAW) if (key, minute) in world.pods]
        ledger = settled(ledger, planned, ready, pods, at(minute))
    return ledger


def recount(world: World, w: Planned) -> tuple[Outcome, int] | None:
    """How a window ended and how late, from what was seen of it; None where it does not count."""
    before = [m for m in world.looks if w.told <= m < w.due]
    if not before or w.gone <= max(m for m in world.looks if m < w.end):
        return None
    seen = [m for m in world.looks if before[0] <= m < w.end]
    ready = [m for m in seen if (w.key, w.due, m) in world.ready]
    since = [m for m in seen if m >= w.due]
    over = next(m for m in world.looks if m >= w.end)
    used = any((w.key, m) in world.pods for m in (*since, over))
    if before[-1] in ready:
        return (Outcome.HIT if used else Outcome.UNUSED), 0
    late = [m for m in since if m in ready]
    if not late:
        return Outcome.MISSED, 0
    if late[0] == w.due:  # seen ready in the very minute
        return (Outcome.HIT if used else Outcome.UNUSED), 0
    return Outcome.LATE, late[0] - w.due


@given(worlds())
def test_the_ledger_counts_what_happened(world: World) -> None:
    ended = [(w, found) for w in world.windows if (found := recount(world, w))]
    ledger = kept(world)
    assert ledger.totals == Counter((w.key, outcome) for w, (outcome, _) in ended)
    assert ledger.open == {}
    last = {w.key: (at(w.due), outcome, timedelta(minutes=late)) for w, (outcome, late) in ended}
    assert {key: (e.ready_by, e.outcome, e.late) for key, e in ledger.last.items()} == last
