from __future__ import annotations

import asyncio
import os
import signal

import pytest

from agent.core.latest import Latest
from agent.core.service import Relay, ServiceReturned, Stopped, forever, raise_when_stopped, stop_on_signals


class Returns:
    name = "short"

    async def run(self) -> None:
        return


class Fails:
    name = "broken"

    async def run(self) -> None:
        raise KeyError("bug")


async def test_a_service_that_returns_is_an_error_with_its_name() -> None:
    with pytest.raises(ServiceReturned, match="service short returned"):
        await forever(Returns())


async def test_a_service_that_fails_raises_its_own_error() -> None:
    with pytest.raises(KeyError, match="bug"):
        await forever(Fails())


async def test_stopping_ends_the_group() -> None:
    stop = asyncio.Event()
    stop.set()
    with pytest.raises(Stopped):
        await raise_when_stopped(stop)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_stops_and_the_second_is_left_to_the_system(number: signal.Signals) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    stop_on_signals(stop)
    try:
        os.kill(os.getpid(), number)
        async with asyncio.timeout(5):
            await stop.wait()
        assert loop.remove_signal_handler(number) is False
    finally:
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)


async def test_a_relay_applies_the_value_now_and_at_each_change() -> None:
    cell, seen = Latest(1), Latest(0)
    relay = asyncio.create_task(Relay("doubled", cell, lambda value: seen.set(2 * value)).run())
    async with asyncio.timeout(5):
        async for value in seen.follow():
            if value == 2:
                cell.set(5)
            if value == 10:
                break
    relay.cancel()
    with pytest.raises(asyncio.CancelledError):
        await relay
