"""Supervision: every long task is a named Service in one TaskGroup; one that returns is a bug, not an end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from agent.core.latest import Latest

T = TypeVar("T")


class Service(Protocol):
    """A long task: `run` returns only by cancellation or by an exception that ends the process."""

    @property
    def name(self) -> str:
        """English name of the task, for logs and leak reports."""
        ...

    async def run(self) -> None:
        """Run until cancelled; leaves disk and claims valid whenever that happens."""
        ...


class Stopped(Exception):
    """The process was asked to stop."""


class ServiceReturned(RuntimeError):
    """A service returned although services never do."""


class Relay(Generic[T]):
    """Applies a function to the newest value of a cell, now and at each change: one cell derived from another."""

    def __init__(self, name: str, source: Latest[T], apply: Callable[[T], None]) -> None:
        self.name = name
        self._source = source
        self._apply = apply

    async def run(self) -> None:
        """Apply until cancelled."""
        async for value in self._source.follow():
            self._apply(value)


async def forever(service: Service) -> None:
    """Run a service and raise if it returns.

    Raises:
        ServiceReturned: always, if `run` returns.
    """
    await service.run()
    raise ServiceReturned(f"service {service.name} returned")


async def raise_when_stopped(stop: asyncio.Event) -> None:
    """Raise Stopped once `stop` is set: ends the TaskGroup it lives in."""
    await stop.wait()
    raise Stopped


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set `stop` on SIGTERM and SIGINT (a second one ends the process at once by default handling)."""
    loop = asyncio.get_running_loop()

    def once(number: int) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, once, number)
