from __future__ import annotations

from datetime import timedelta
from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.demand.activity import Activity
from agent.demand.arrays import Flags, Floats
from agent.demand.forecast import Forecast
from agent.demand.worth import idle_too, keep, soon, together
from tests.unit.demand.traffic import START, Active, every, never, play, sites, slots


def kept(chance: list[float], held: list[bool], room: float, size: list[float] | None = None) -> list[int]:
    sizes = np.array(size or [1.0] * len(chance))
    return np.flatnonzero(keep(np.array(chance), sizes, np.array(held), room)).tolist()


def test_those_most_likely_used_are_on_disk() -> None:
    assert kept([0.1, 0.9, 0.5, 0.2], [False] * 4, 2) == [1, 2]


def test_a_newcomer_must_be_clearly_likelier_than_what_it_replaces() -> None:
    assert kept([0.4, 0.7], [True, False], 1) == [0]
    assert kept([0.4, 0.9], [True, False], 1) == [1]


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
    return float((chance * np.where(held, 2, 1))[rows].sum())


def test_what_is_used_sooner_is_worth_more_and_what_was_never_used_nothing() -> None:
    traffic: list[Active] = [every(1), every(1, 20), every(6, 180), never]
    forecast = Forecast(sites(4), [0.2])
    play(forecast, traffic, slots(4), refit=False)
    worth = soon(forecast, START + timedelta(days=4, minutes=10))
    assert worth[1] > worth[0] > worth[2] > worth[3] == 0, "used in ten minutes, in fifty, in hours, never"


def test_those_who_fell_silent_together_are_known_by_their_number() -> None:
    random, memory = np.random.default_rng(1), Activity(sites(40))
    for at in slots(3):
        memory.observe(at, random.random(40) < 0.9)
    everyone, half = np.full(40, True), np.arange(40) < 20
    memory.observe(START, everyone)
    for at in slots(0.03, START + timedelta(days=3)):
        memory.observe(at, half)
    chance = together(memory)
    assert (chance[:20] == 0).all(), "they are not idle"
    assert (chance[20:] > 0.5).all()
    memory.observe(START, half)
    alone = np.arange(40) != 5
    for at in slots(0.03, START + timedelta(days=3)):
        memory.observe(at, alone)
    assert together(memory)[5] == 0, "one is silent for reasons of its own"


def test_a_common_cause_holds_back_as_many_of_the_idle_as_it_took_of_the_active() -> None:
    random, memory = np.random.default_rng(1), Activity(sites(60))
    for at in slots(3):
        memory.observe(at, random.random(60) < 0.9)
    for at in slots(0.05, START + timedelta(days=3)):
        memory.observe(at, np.arange(60) < 40)
    for at in slots(0.03, START + timedelta(days=4)):
        memory.observe(at, np.arange(60) < 10)
    common = together(memory)
    assert common[10:40].min() > 0.5
    assert idle_too(memory, common) == common[10] * 30 / 40, "of 40 active ones it took 30"
    assert idle_too(memory, np.zeros(60)) == 0, "without a common cause nobody is held back"


def test_while_all_is_silent_those_who_were_idle_before_are_worth_less_than_the_others() -> None:
    draws = np.random.default_rng(3).random((41, 1000))

    def usually(row: int) -> Active:
        return lambda at: bool(draws[row, int((at - START).total_seconds()) // 600] < 0.7)

    forecast, traffic = Forecast(sites(41), [0.2]), [*(usually(row) for row in range(40)), every(1)]
    play(forecast, traffic, slots(5), refit=False)
    due = START + timedelta(days=5, minutes=60)
    usual = soon(forecast, due)
    play(forecast, [lambda at: True] * 40 + [never], slots(1 / 144, START + timedelta(days=5)), refit=False)
    play(forecast, [never] * 41, slots(4 / 144 + 1e-9, START + timedelta(days=5, minutes=10)), refit=False)
    silent = soon(forecast, due)
    assert silent[40] < silent[:40].min() < usual[40]


def test_after_a_common_silence_whoever_is_active_most_is_worth_most() -> None:
    draws, shares = np.random.default_rng(2).random((40, 1000)), np.linspace(0.3, 0.95, 40)

    def usually(row: int) -> Active:
        return lambda at: bool(draws[row, int((at - START).total_seconds()) // 600] < shares[row])

    forecast, traffic = Forecast(sites(40), [0.2]), [usually(row) for row in range(40)]
    play(forecast, traffic, slots(5), refit=False)
    play(forecast, [lambda at: True] * 40, slots(1 / 144, START + timedelta(days=5)), refit=False)
    play(forecast, [never] * 40, slots(5 / 144, START + timedelta(days=5, minutes=10)), refit=False)
    worth = soon(forecast, START + timedelta(days=5, minutes=70))
    assert np.corrcoef(worth, shares)[0, 1] > 0.9
