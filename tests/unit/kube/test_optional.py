"""Watches of kinds that a cluster may lack."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agent.core.latest import Latest
from agent.kube.objects import WorkloadView
from agent.kube.resources import KNATIVE_SERVICES
from agent.kube.watch import Listing, Watch
from tests.fakes.api_server import DirectApi, FakeApiServer
from tests.fakes.virtual_time import LoopClock, run_virtual

COLLECTION = "/apis/serving.knative.dev/v1/services"
CHAT = "/apis/serving.knative.dev/v1/namespaces/shop/services/chat"
Cell = Latest[Listing[WorkloadView]]


def story(tell: Callable[[FakeApiServer, Cell], Awaitable[None]]) -> None:
    async def run() -> None:
        server, cell = FakeApiServer(), Cell(Listing())
        watch = Watch(DirectApi(server), KNATIVE_SERVICES, cell, clock=LoopClock(), optional=True)
        task = asyncio.create_task(watch.run())
        try:
            await tell(server, cell)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run_virtual(run())


def names(cell: Cell) -> list[str]:
    return [w.name for w in cell.get().items.values()]


def test_a_kind_that_is_not_installed_is_an_empty_list_until_it_is() -> None:
    async def tell(server: FakeApiServer, cell: Cell) -> None:
        server.not_installed.add(COLLECTION)
        await asyncio.sleep(1)
        assert cell.get().current
        assert names(cell) == []
        await asyncio.sleep(3600)
        assert server.count("GET") <= 121
        server.not_installed.clear()
        await server.put(CHAT, {"spec": {}})
        await asyncio.sleep(31)
        assert names(cell) == ["chat"]

    story(tell)


def test_a_kind_this_account_may_not_read_is_an_empty_list_too() -> None:
    async def tell(server: FakeApiServer, cell: Cell) -> None:
        server.forbidden = "knative"
        await asyncio.sleep(1)
        assert cell.get().current

    story(tell)


def test_a_kind_that_was_there_is_gone_only_at_the_second_look() -> None:
    async def tell(server: FakeApiServer, cell: Cell) -> None:
        await server.put(CHAT, {"spec": {}})
        await asyncio.sleep(1)
        assert names(cell) == ["chat"]
        server.not_installed.add(COLLECTION)
        await server.cut_watches()
        await asyncio.sleep(20)
        assert names(cell) == ["chat"]  # an API server that has just started may not know its kinds yet
        await asyncio.sleep(90)
        assert names(cell) == []

    story(tell)


def test_a_right_to_read_that_is_taken_away_leaves_what_was_seen() -> None:
    async def tell(server: FakeApiServer, cell: Cell) -> None:
        await server.put(CHAT, {"spec": {}})
        await asyncio.sleep(1)
        server.forbidden = "knative"
        await server.cut_watches()
        await asyncio.sleep(600)
        assert names(cell) == ["chat"]

    story(tell)
