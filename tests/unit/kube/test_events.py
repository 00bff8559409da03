"""Events stay while their cause stands, and one that cannot be written holds up no other; in virtual time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import timedelta

from agent.core.latest import Latest
from agent.kube.events import Announcement, EventType, EventWriter
from agent.kube.objects import ObjectRef
from tests.fakes.api_server import DirectApi, FakeApiServer, Object
from tests.fakes.virtual_time import LoopClock, SteppedClock, run_virtual


def said(name: str, message: str = "bad value", namespace: str = "shop") -> Announcement:
    about = ObjectRef(api_version="apps/v1", kind="Deployment", namespace=namespace, name=name, uid=f"uid-{name}")
    return Announcement(about=about, reason="Invalid", message=message)


class Room:
    def __init__(self) -> None:
        self.server = FakeApiServer()
        self.api = DirectApi(self.server)
        self.standing: Latest[Collection[Announcement]] = Latest(frozenset())

    @asynccontextmanager
    async def writing(self, clock: LoopClock | None = None) -> AsyncIterator[None]:
        clock = clock or LoopClock()
        writer = EventWriter(self.api, self.standing, component="prewarm-planner", instance="one", clock=clock)
        task = asyncio.create_task(writer.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def events(self) -> dict[str, Object]:
        return {e["involvedObject"]["name"]: e for e in self.server.all("/api/v1/events")}


def test_event_is_written_at_once_and_again_every_ten_minutes() -> None:
    async def story() -> None:
        room = Room()
        async with room.writing():
            room.standing.set(frozenset({said("a")}))
            await asyncio.sleep(0.1)
            first = room.events()["a"]
            assert first["type"] == EventType.WARNING
            assert first["source"] == {"component": "prewarm-planner"}
            assert first["lastTimestamp"] == "2026-03-02T08:00:00Z"
            await asyncio.sleep(3600)
            last = room.events()["a"]
            assert (last["count"], last["firstTimestamp"]) == (7, "2026-03-02T08:00:00Z")
            assert last["lastTimestamp"].startswith("2026-03-02T09:00:0")

    run_virtual(story())


def test_event_whose_cause_is_gone_is_left_to_age() -> None:
    async def story() -> None:
        room = Room()
        async with room.writing():
            room.standing.set(frozenset({said("a")}))
            await asyncio.sleep(1)
            room.standing.set(frozenset())
            await asyncio.sleep(7200)
            assert room.events()["a"]["count"] == 1
            room.standing.set(frozenset({said("a")}))
            await asyncio.sleep(1)
            assert room.events()["a"]["count"] == 2

    run_virtual(story())


def test_refused_event_waits_and_the_others_are_written() -> None:
    async def story() -> None:
        room = Room()
        async with room.writing():
            room.server.failures = [403]
            room.standing.set([said("a"), said("b")])
            await asyncio.sleep(1)
            assert set(room.events()) == {"b"}
            assert room.server.count("POST") == 2
            await asyncio.sleep(700)
            assert set(room.events()) == {"a", "b"}

    run_virtual(story())


def test_event_is_written_when_the_api_server_returns() -> None:
    async def story() -> None:
        room = Room()
        room.api.down = True
        async with room.writing():
            room.standing.set([said("a")])
            await asyncio.sleep(600)
            room.api.down = False
            await asyncio.sleep(31)
            assert room.events()["a"]["count"] == 1

    run_virtual(story())


def test_same_words_about_two_objects_are_two_events_and_other_words_another() -> None:
    names = {said("a").event_name, said("b").event_name, said("a", "other").event_name}
    assert len(names) == 3
    assert said("a").event_name == said("a").event_name
    assert len(said("x" * 253).event_name) <= 253


def test_event_about_a_node_lives_in_the_default_namespace() -> None:
    async def story() -> None:
        room = Room()
        async with room.writing():
            room.standing.set([said("n1", namespace="")])
            await asyncio.sleep(1)
            event = room.events()["n1"]
            assert event["metadata"]["namespace"] == "default"
            assert "namespace" not in event["involvedObject"]

    run_virtual(story())


def test_words_that_change_all_the_time_are_no_flood_and_the_newest_are_told() -> None:
    async def story() -> None:
        room = Room()
        async with room.writing():
            for number in range(1200):
                room.standing.set([said("a", f"no eligible node: {number} NotReady"), said("b")])
                await asyncio.sleep(1)
            assert room.server.count("POST") <= 25 + 1200 / 20 + 5
            await asyncio.sleep(21)
            told = {e["message"] for e in room.server.all("/api/v1/events")}
            assert {"no eligible node: 0 NotReady", "no eligible node: 1199 NotReady", "bad value"} <= told

    run_virtual(story())


def test_an_events_name_is_one_also_where_the_objects_is_cut_behind_a_dash() -> None:
    assert re.fullmatch(
        r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", said("x" * 199 + "-yyy").event_name
    )


def test_a_clock_that_is_set_back_does_not_let_an_event_die() -> None:
    async def story() -> None:
        room = Room()
        clock = SteppedClock()
        async with room.writing(clock):
            room.standing.set([said("a")])
            await asyncio.sleep(1)
            clock.ahead = timedelta(days=-1)
            await asyncio.sleep(3600)
            assert room.events()["a"]["count"] == 7

    run_virtual(story())
