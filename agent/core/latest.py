"""Newest-value cells: how frozen values flow between the services of one process.

A cell has no backlog: a slow reader sees the newest value only. All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Signal:
    """A coalescing wake-up: any number of `fire` calls before `wait` wake it once."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def fire(self) -> None:
        """Wake the waiter, now or as soon as it waits."""
        self._event.set()

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 (a wait with a deadline is its purpose)
        """Wait for a `fire` since the last return; True if one came, False after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Latest(Generic[T]):
    """A cell that holds the newest value of one thing."""

    def __init__(self, initial: T) -> None:
        self._value = initial
        self._signals: list[Signal] = []

    def get(self) -> T:
        """Return the newest value."""
        return self._value

    def set(self, value: T) -> None:
        """Replace the value and wake all followers; setting an equal value wakes nobody."""
        if value == self._value:
            return
        self._value = value
        for signal in self._signals:
            signal.fire()

    def attach(self, signal: Signal) -> None:
        """Have `signal` fired at every change, for a loop that waits on several cells at once."""
        self._signals.append(signal)

    def detach(self, signal: Signal) -> None:
        """Undo `attach`."""
        self._signals.remove(signal)

    async def follow(self) -> AsyncIterator[T]:
        """Yield the value now and then at each change, newest only."""
        signal = Signal()
        self.attach(signal)
        try:
            while True:
                yield self._value
                await signal.wait()
        finally:
            self.detach(signal)
