"""One process, whichever: its settings and services, /livez from the first moment, the supervision, the goodbye.

What runs in it is composed in `agent.app`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
from prometheus_client import CollectorRegistry

from agent.config import Settings
from agent.core.clock import SystemClock
from agent.core.errors import PrewarmError
from agent.core.heartbeat import Heartbeat
from agent.core.service import Service, Stopped, forever, raise_when_stopped, stop_on_signals
from agent.observe.http import HttpServer, what_is_red
from agent.observe.logging import setup_logging

log = structlog.get_logger(__name__)

Goodbye = Callable[[], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class Process:
    """What one process runs, grown by composition. `withdrawal_waiting` feeds /readyz."""

    settings: Settings
    registry: CollectorRegistry = field(default_factory=lambda: CollectorRegistry(auto_describe=False))
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    clock: SystemClock = field(default_factory=SystemClock)
    services: list[Service] = field(default_factory=list)
    goodbyes: list[Goodbye] = field(default_factory=list)
    closing: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    withdrawal_waiting: Callable[[], float] = lambda: 0.0
    composed: bool = False

    def red(self) -> list[str]:
        """Return why this process is not ready; empty when it is."""
        if not self.composed:
            return ["start: not composed yet"]
        ages = self.heartbeat.ages_seconds(self.clock.monotonic())
        return what_is_red(ages, self.withdrawal_waiting(), self.heartbeat.missed)


def run(settings: Settings, compose: Callable[[Process], Awaitable[None]], name: str) -> int:
    """Run the process that `compose` makes until it is told to stop; returns the exit code."""
    setup_logging(level=settings.log_level, form=settings.log_format)
    code = 0
    try:
        asyncio.run(_supervise(Process(settings=settings), compose, name))
    except* PrewarmError as group:  # a setting, file or address that cannot work: a sentence, no traceback
        code = 1
        for error in _leaves(group):
            log.error("cannot go on", process=name, error=str(error))  # noqa: TRY400 (a person's mistake, not ours)
    return code


async def _supervise(process: Process, compose: Callable[[Process], Awaitable[None]], name: str) -> None:
    """Serve /livez, compose, run everything, and say goodbye in the reverse order."""
    stop = asyncio.Event()
    stop_on_signals(stop)
    http = HttpServer(process.settings.http_address, process.registry, process.red)
    await http.start()
    async with process.closing, asyncio.TaskGroup() as servers:
        serving = servers.create_task(http.run(), name="http")
        try:
            await compose(process)
            process.composed = True
            log.info("started", process=name, version=importlib.metadata.version("prewarm"))
            async with asyncio.TaskGroup() as loops:
                for service in process.services:
                    loops.create_task(forever(service), name=service.name)
                loops.create_task(raise_when_stopped(stop), name="stop")
        except* Stopped:
            log.info("stopping", process=name)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(process.settings.goodbye_seconds):
                    for goodbye in process.goodbyes:
                        await goodbye()
            serving.cancel()


def _leaves(group: BaseExceptionGroup[PrewarmError]) -> list[PrewarmError]:
    found: list[PrewarmError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
