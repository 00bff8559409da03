"""What a replay counts agrees with a count by hand: every slot of every endpoint judged by itself, from its raw past and future."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.demand.history import Track, track_of
from agent.demand.recording import Recorded, Recording, count, recorded

RUNS = st.tuples(st.sampled_from([False, False, True, None]), st.sampled_from([1, 2, 3, 4, 23, 24, 25]))
STATES = st.lists(RUNS, min_size=1, max_size=30).map(
    lambda runs: ([state for state, length in runs for _ in range(length)] + [False] * 80)[:80]
)


@given(st.lists(STATES, min_size=1, max_size=3), st.integers(0, 1 << 32), st.integers(0, 40))
def test_hits_misses_and_waste_agree_with_a_count_by_hand(
    states: list[list[bool | None]], seed: int, begin: int
) -> None:
    warm = np.random.default_rng(seed).random((len(states), 80)) < 0.4
    found = count(recording_of(states, begin), warm)
    by_hand = [judged(own, slot) for own in states for slot in range(begin, 80)]
    held = [bool(warm[row, slot]) for row in range(len(states)) for slot in range(begin, 80)]
    both = list(zip(held, by_hand, strict=True))
    assert (found.returns, found.long_returns) == (
        by_hand.count("return") + by_hand.count("long return"),
        by_hand.count("long return"),
    )
    assert found.met == sum(h and w.endswith("return") for h, w in both)
    assert found.long_met == sum(h and w == "long return" for h, w in both)
    assert found.idle_hours == pytest.approx(by_hand.count("idle") / 6)
    assert found.wasted_hours == pytest.approx(sum(h and w == "idle" for h, w in both) / 6)


def judged(own: list[bool | None], slot: int) -> str:
    """What a slot is by itself: a return (after half an hour, or four), idle time that counts, or neither."""
    if own[slot] is None:
        return ""
    past = slot - 1
    while past >= 0 and own[past] is False:
        past -= 1
    if past < 0 or own[past] is None:  # never used, or not known since when
        return ""
    if own[slot]:
        idle = slot - past - 1
        return "long return" if idle >= 24 else "return" if idle >= 3 else ""
    following = slot
    while following < len(own) and own[following] is False:
        following += 1
    ended = following < len(own) and own[following] is True
    return "" if ended and following - past - 1 < 3 else "idle"


def recording_of(states: list[list[bool | None]], begin: int) -> Recording:
    return Recording(
        start=0,
        endpoints=tuple(Recorded(name=f"e{n}", timezone="UTC", group="g") for n in range(len(states))),
        active=np.array([[s is True for s in own] for own in states]),
        known=np.array([[s is not None for s in own] for own in states]),
        counted=np.arange(80) >= begin,
    )


@given(st.lists(st.tuples(st.integers(0, 50), STATES), min_size=1, max_size=3))
def test_histories_become_a_recording_slot_by_slot(histories: list[tuple[int, list[bool | None]]]) -> None:
    tracks = [track_of(first, states) for first, states in histories]
    if not any(track.known for track in tracks):
        return
    endpoints = [Recorded(name=str(n), timezone="UTC", group="g") for n in range(len(tracks))]
    found = recorded(endpoints, tracks, 0)
    first = found.start // 600
    for (row, track), slot in product(enumerate(tracks), range(found.active.shape[1])):
        state = track.state(first + slot)
        assert (bool(found.known[row, slot]), bool(found.active[row, slot])) == (state is not None, state is True)
    assert any(track.state(first) is not None for track in tracks)
    assert all(track.end <= first + found.active.shape[1] for track in tracks if track != Track())
