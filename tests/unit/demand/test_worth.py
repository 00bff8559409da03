from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.demand.arrays import Flags, Floats
from agent.demand.worth import keep


def kept(chance: list[float], held: list[bool], room: float, size: list[float] | None = None) -> list[int]:
    sizes = np.array(size or [1.0] * len(chance))
    return np.flatnonzero(keep(np.array(chance), sizes, np.array(held), room)).tolist()


def test_those_most_likely_used_are_on_disk() -> None:
    assert kept([0.1, 0.9, 0.5, 0.2], [False] * 4, 2) == [1, 2]


def test_a_newcomer_must_be_clearly_likelier_than_what_it_replaces() -> None:
    assert kept([0.4, 0.5], [True, False], 1) == [0]
    assert kept([0.4, 0.7], [True, False], 1) == [1]


def test_bytes_count() -> None:
    assert kept([0.5, 0.3, 0.3], [False] * 3, 2, [2, 1, 1]) == [1, 2]


def test_what_has_no_chance_is_not_fetched_but_stays_where_there_is_room() -> None:
    assert kept([0.0, 0.0, 0.3], [True, False, False], 3) == [0, 2]
    assert kept([0.0, 0.0, 0.3], [True, False, False], 1) == [2]


@given(st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), max_size=7), st.integers(0, 7))
def test_of_one_size_no_other_choice_is_worth_more(models: list[tuple[float, bool]], room: int) -> None:
    chance = np.array([each for each, _ in models])
    held = np.array([each for _, each in models], bool)
    chosen = keep(chance, np.ones(len(models)), held, room)
    assert chosen.sum() == min(room, len(models))
    best = max(_worth(chance, held, list(rows)) for rows in combinations(range(len(models)), int(chosen.sum())))
    assert _worth(chance, held, np.flatnonzero(chosen).tolist()) >= best - 1e-9


def _worth(chance: Floats, held: Flags, rows: list[int]) -> float:
    return float((chance * np.where(held, 1.5, 1))[rows].sum())
