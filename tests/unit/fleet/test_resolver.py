"""When versions are asked for, and what is kept when nobody answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta

import pytest

from agent.core.assignment import Window
from agent.core.errors import Permanent, Transient
from agent.core.latest import Latest
from agent.fleet.resolutions import AHEAD, Resolution, due_at
from agent.fleet.resolve import Resolver
from tests.fakes.virtual_time import START, SteppedClock, run_virtual

FIVE = timedelta(minutes=5)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def window(begins: timedelta, lasts: timedelta = HOUR) -> Window:
    return Window(ready_by=START + begins, until=START + begins + lasts)


@pytest.mark.parametrize(
    ("windows", "due"),
    [
        ([], START + FIVE),
        ([window(9 * HOUR)], START + FIVE),
        ([window(AHEAD + timedelta(minutes=2))], START + timedelta(minutes=2)),  # coming: once more before it
        ([window(HOUR / 2)], START + HOUR / 2 + HOUR),  # fixed for it already: not before it ends
        ([window(-HOUR / 2)], START + HOUR / 2),  # within one
        ([window(-6 * DAY, 9 * DAY)], START + DAY),  # a long one is fixed for a week
        ([window(-7 * DAY, 9 * DAY)], START + FIVE),  # one that never ends
        ([window(-HOUR / 2), window(AHEAD + FIVE + FIVE)], START + 2 * FIVE),  # within one, and another is coming
        ([window(HOUR / 2), window(HOUR / 2 + HOUR)], START + HOUR / 2),  # the second is coming when the first begins
    ],
)
def test_due_at(windows: list[Window], due: datetime) -> None:
    assert due_at(START, windows, FIVE) == due


class Source:
    """Answers as told; notes when it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, str | Exception] = {}
        self.asked: list[tuple[str, float]] = []
        self.running = 0
        self.most = 0
        self.takes = 0.0

    async def resolve(self, key: str) -> str:
        self.asked.append((key, asyncio.get_running_loop().time()))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.running -= 1
        answer = self.answers[key]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def times(self, key: str) -> list[float]:
        return [round(at) for asked, at in self.asked if asked == key]


class Bench:
    def __init__(self, known: Mapping[str, Resolution[str]] | None = None) -> None:
        self.source = Source()
        self.wants: Latest[Mapping[str, tuple[Window, ...]]] = Latest({})
        self.results: Latest[Mapping[str, Resolution[str]]] = Latest(known or {})
        self.clock = SteppedClock()
        resolver = Resolver(
            "resolve", self.source.resolve, wants=self.wants, results=self.results, refresh=FIVE, clock=self.clock
        )
        self.task = asyncio.create_task(resolver.run())

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def test_resolved_when_first_seen_and_every_five_minutes() -> None:
    async def story() -> None:
        bench = Bench()
        bench.source.answers["a"] = "v1"
        await asyncio.sleep(10)
        bench.wants.set({"a": ()})
        await asyncio.sleep(1)
        assert bench.results.get() == {"a": Resolution(value="v1")}
        bench.source.answers["a"] = "v2"
        await asyncio.sleep(601)
        assert bench.source.times("a") == [10, 310, 610]
        assert bench.results.get() == {"a": Resolution(value="v2")}
        await bench.end()

    run_virtual(story())


def test_version_stands_from_before_a_window_until_its_end() -> None:
    async def story() -> None:
        bench = Bench()
        bench.source.answers["a"] = "v1"
        bench.wants.set({"a": (window(2 * HOUR),)})
        await asyncio.sleep(4 * 3600)
        times = bench.source.times("a")
        assert 3600 in times
        assert [t for t in times if 3600 < t < 3 * 3600] == []
        assert 3 * 3600 in times
        await bench.end()

    run_virtual(story())


def test_missing_object_is_told_at_once_and_found_when_it_comes() -> None:
    async def story() -> None:
        bench = Bench()
        bench.source.answers |= {"a": Permanent("s3://b/a: not found"), "b": "v1"}
        bench.wants.set({"a": (), "b": ()})
        await asyncio.sleep(0.1)
        assert bench.results.get()["a"].telling == "s3://b/a: not found"
        assert bench.results.get()["b"] == Resolution(value="v1")
        bench.source.answers["a"] = "v1"
        await asyncio.sleep(61)
        assert bench.results.get()["a"] == Resolution(value="v1")
        assert len(bench.source.times("a")) == 2
        await bench.end()

    run_virtual(story())


def test_outage_keeps_the_old_version_and_tells_nobody() -> None:
    async def story() -> None:
        bench = Bench({"a": Resolution(value="v1")})
        bench.source.answers["a"] = Transient("s3 is away")
        bench.wants.set({"a": ()})
        await asyncio.sleep(900)
        found = bench.results.get()["a"]
        assert (found.value, found.error, found.telling) == ("v1", "s3 is away", "")
        assert 10 <= len(bench.source.asked) <= 60  # backed off to at most a minute
        bench.source.answers["a"] = "v2"
        await asyncio.sleep(61)
        assert bench.results.get()["a"] == Resolution(value="v2")
        await bench.end()

    run_virtual(story())


def test_deleted_object_keeps_the_old_version_and_is_told() -> None:
    async def story() -> None:
        bench = Bench({"a": Resolution(value="v1")})
        bench.source.answers["a"] = Permanent("gone")
        bench.wants.set({"a": ()})
        await asyncio.sleep(301)
        found = bench.results.get()["a"]
        assert (found.value, found.telling) == ("v1", "gone")
        await bench.end()

    run_virtual(story())


def test_hanging_source_holds_up_nobody_else() -> None:
    async def story() -> None:
        bench = Bench()
        bench.source.takes = 1000
        bench.source.answers |= {f"k{n}": "v" for n in range(20)}
        bench.wants.set({f"k{n}": () for n in range(20)})
        await asyncio.sleep(200)
        assert bench.source.most == 8
        assert {k for k, _ in bench.source.asked} == set(bench.source.answers)
        assert "no answer about k0 within 60 s" in bench.results.get()["k0"].telling
        await bench.end()

    run_virtual(story())


def test_unwanted_item_is_forgotten() -> None:
    async def story() -> None:
        bench = Bench()
        bench.source.answers |= {"a": "v1", "b": "v1"}
        bench.wants.set({"a": ()})
        await asyncio.sleep(1)
        bench.wants.set({"b": ()})
        await asyncio.sleep(1)
        assert set(bench.results.get()) == {"b"}
        await bench.end()

    run_virtual(story())


def test_a_new_leader_leaves_the_version_of_a_window_alone() -> None:
    async def story() -> None:
        bench = Bench({"a": Resolution(value="v1"), "b": Resolution(value="v1")})
        bench.source.answers |= {"a": "v2", "b": "v2"}
        bench.wants.set({"a": (window(-HOUR / 2),), "b": ()})
        await asyncio.sleep(1790)
        assert bench.results.get() == {"a": Resolution(value="v1"), "b": Resolution(value="v2")}
        await asyncio.sleep(20)
        assert bench.results.get()["a"] == Resolution(value="v2")
        await bench.end()

    run_virtual(story())


@pytest.mark.parametrize("answer", ["v1", Permanent("gone")])
def test_a_clock_that_is_set_back_does_not_stop_the_asking(answer: str | Exception) -> None:
    async def story() -> None:
        bench = Bench()
        bench.clock.ahead = timedelta(days=300)
        bench.source.answers["a"] = answer
        bench.wants.set({"a": ()})
        await asyncio.sleep(1)
        bench.clock.ahead = timedelta()
        bench.source.answers["a"] = "v2"
        await asyncio.sleep(301)
        assert bench.results.get()["a"] == Resolution(value="v2")
        await bench.end()

    run_virtual(story())
