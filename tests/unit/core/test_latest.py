from __future__ import annotations

import asyncio
from contextlib import aclosing

from agent.core.heartbeat import Heartbeat
from agent.core.latest import Latest, Signal


async def test_a_follower_sees_the_value_now_and_then_only_the_newest() -> None:
    cell = Latest(1)
    async with aclosing(cell.follow()) as values:  # type: ignore[type-var]
        assert await anext(values) == 1
        for value in (2, 3, 4):
            cell.set(value)
        assert await anext(values) == 4
        cell.set(5)
        assert await anext(values) == 5


async def test_an_equal_value_wakes_nobody() -> None:
    cell, signal = Latest((1, 2)), Signal()
    cell.attach(signal)
    cell.set((1, 2))
    assert await signal.wait(timeout=0) is False
    cell.set((1, 3))
    assert await signal.wait(timeout=0) is True
    assert cell.get() == (1, 3)


async def test_one_signal_serves_several_cells_and_coalesces() -> None:
    first, second, signal = Latest(0), Latest(0), Signal()
    first.attach(signal)
    second.attach(signal)
    first.set(1)
    second.set(1)
    assert await signal.wait(timeout=0) is True
    assert await signal.wait(timeout=0) is False


async def test_a_waiter_is_woken_by_a_later_set() -> None:
    cell, signal = Latest(0), Signal()
    cell.attach(signal)
    waiter = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    assert not waiter.done()
    cell.set(1)
    assert await waiter is True


async def test_a_detached_signal_and_an_ended_follower_hear_nothing() -> None:
    cell, signal = Latest(0), Signal()
    cell.attach(signal)
    cell.detach(signal)
    async with aclosing(cell.follow()) as values:  # type: ignore[type-var]
        await anext(values)
    cell.set(1)
    assert await signal.wait(timeout=0) is False
    assert cell._signals == []


def test_a_prover_that_never_beat_is_infinitely_old() -> None:
    heart = Heartbeat(["images"])
    heart.expect("models")
    heart.beat("images", 10.0)
    assert heart.ages_seconds(25.0) == {"images": 15.0, "models": float("inf")}


def test_expecting_a_prover_again_keeps_its_last_beat() -> None:
    heart = Heartbeat()
    heart.beat("gpu", 1.0)
    heart.expect("gpu")
    assert heart.ages_seconds(3.0) == {"gpu": 2.0}
