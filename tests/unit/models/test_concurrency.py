"""How many ranges are asked for at once."""

from __future__ import annotations

import threading

import pytest

from agent.models.concurrency import ROUND_SECONDS, Concurrency


class GaveUp(Exception):
    pass


def give_up() -> None:
    raise GaveUp


def test_no_more_slots_than_there_are_and_each_can_be_had_again() -> None:
    slots = Concurrency(2)
    slots.take(give_up)
    assert slots.take_if_free()
    assert not slots.take_if_free()
    with pytest.raises(GaveUp):
        slots.take(give_up)
    slots.give_back()
    assert slots.take_if_free()
    assert slots.held == 2


def test_refusals_halve_the_slots_once_a_round_and_answers_bring_them_back() -> None:
    now = 0.0
    slots = Concurrency(8, lambda: now)
    slots.refused()
    slots.refused()
    assert slots.limit == 4
    now += ROUND_SECONDS
    slots.refused()
    assert slots.limit == 2
    for _ in range(3):
        slots.served()
    assert slots.limit == 3
    for _ in range(100):
        slots.served()
    assert slots.limit == 8


def test_while_more_are_held_than_are_left_none_is_free() -> None:
    slots = Concurrency(4)
    for _ in range(4):
        slots.take(give_up)
    slots.refused()
    slots.give_back()
    assert not slots.take_if_free()  # three are held, two are allowed


def test_a_slot_that_becomes_free_is_theirs_who_wait_for_it() -> None:
    slots = Concurrency(1)
    slots.take(give_up)
    waiting = threading.Event()
    thread = threading.Thread(target=slots.take, args=(waiting.set,))
    thread.start()
    assert waiting.wait(10)
    slots.give_back()
    assert not slots.take_if_free()
    thread.join(10)
    assert slots.held == 1


def test_who_gives_up_waiting_waits_no_more() -> None:
    slots = Concurrency(1)
    slots.take(give_up)
    with pytest.raises(GaveUp):
        slots.take(give_up)
    slots.give_back()
    assert slots.take_if_free()
