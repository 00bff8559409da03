"""Small files: the next one is asked for while the one before it is written, and nothing of that is lost, hangs or stays behind."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.core.errors import Permanent
from agent.models.concurrency import Concurrency
from agent.models.disk import MOST_HELD, RangeFiles
from agent.models.engine import Engine
from agent.models.flights import Copy, Flights
from agent.models.tail import Tail
from agent.models.transfer import AHEAD_BYTES
from agent.models.wire import Wire
from tests.bed.faultproxy import Request, Rule
from tests.integration.models.conftest import SourceBucket, contents, noise
from tests.integration.models.test_engine import bring, made

Write = Callable[[RangeFiles, str, memoryview, int], None]


def put_files(bucket: SourceBucket, count: int, size: int = 5000, prefix: str = "m") -> dict[str, bytes]:
    return {f"f{n:03}": bucket.put(f"{prefix}/f{n:03}", noise(size, n)) for n in range(count)}


def asked_at_each_write(bucket: SourceBucket, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ranges the server had been asked for when each file was written; each write waits a little for one more."""
    seen: list[int] = []
    honest: Write = RangeFiles.write_whole

    def write(self: RangeFiles, path: str, buffer: memoryview, size: int) -> None:
        deadline = time.monotonic() + 0.2
        while len(bucket.proxy.ranges) < len(seen) + 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        seen.append(len(bucket.proxy.ranges))
        honest(self, path, buffer, size)

    monkeypatch.setattr(RangeFiles, "write_whole", write)
    return seen


async def into(to: Path, bucket: SourceBucket, engine: Engine, prefix: str = "m") -> dict[str, bytes]:
    async with asyncio.timeout(60):
        await bring(bucket.uri(f"{prefix}/"), to, engine)
    return contents(to / "files")


async def test_the_next_small_file_is_under_way_while_one_is_written(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = put_files(bucket, 5)
    seen = asked_at_each_write(bucket, monkeypatch)
    await bring(bucket.uri(), tmp_path, Engine(connections=1))
    assert seen == [2, 3, 4, 5, 5]
    assert contents(tmp_path / "files") == files
    assert len(bucket.proxy.ranges) == len(files)


@pytest.mark.parametrize(("size", "bandwidth"), [(AHEAD_BYTES + 1, 0), (5000, 10**9)])
async def test_what_is_large_or_waits_for_bandwidth_is_asked_for_in_its_turn(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, bandwidth: int
) -> None:
    put_files(bucket, 3, size)
    seen = asked_at_each_write(bucket, monkeypatch)
    await bring(bucket.uri(), tmp_path, Engine(connections=1, bandwidth=bandwidth))
    assert seen == [1, 2, 3]


async def test_no_connection_is_made_for_the_next_file_while_one_is_not_safe_yet(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_files(bucket, 3)
    honest = Wire.read

    def closing(self: Wire, *args: Any, **options: Any) -> None:
        honest(self, *args, **options)
        self.close()  # as after an answer that says so, or comes slowly

    monkeypatch.setattr(Wire, "read", closing)
    seen = asked_at_each_write(bucket, monkeypatch)
    await bring(bucket.uri(), tmp_path, Engine(connections=1))
    assert seen == [1, 2, 3]


async def test_who_waits_for_a_slot_is_not_late(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_files(bucket, 3, AHEAD_BYTES + 1)
    copies: list[Copy] = []
    waiting: list[bool] = []
    start, take = Flights.start, Concurrency.take

    def starting(self: Flights, *args: Any) -> Copy:
        copies.append(start(self, *args))
        return copies[-1]

    def taking(self: Concurrency, stopped: Callable[[], None]) -> None:
        waiting.append(copies[-1].waiting)
        take(self, stopped)

    monkeypatch.setattr(Flights, "start", starting)
    monkeypatch.setattr(Concurrency, "take", taking)
    await bring(bucket.uri(), tmp_path, Engine(connections=1))
    assert waiting == [True] * 3
    assert [copy.waiting for copy in copies] == [False] * 3


async def test_how_long_an_answer_took_counts_from_when_it_was_asked_for(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_files(bucket, 4)
    took: list[float] = []
    honest: Write = RangeFiles.write_whole

    def write(self: RangeFiles, path: str, buffer: memoryview, size: int) -> None:
        time.sleep(0.1)
        honest(self, path, buffer, size)

    monkeypatch.setattr(RangeFiles, "write_whole", write)
    monkeypatch.setattr(Tail, "took", lambda _self, _length, seconds: took.append(seconds))
    await bring(bucket.uri(), tmp_path, Engine(connections=1))
    assert [seconds >= 0.1 for seconds in took[1:]] == [True] * 3


@pytest.mark.parametrize(
    "fault", ["503", "reset", "truncate", "wrong-content-range", "expired-token", "stall-before-headers", "corrupt"]
)
async def test_whatever_happens_to_their_answers_all_arrive_and_the_next_download_has_all_its_slots(
    bucket: SourceBucket, tmp_path: Path, fault: str
) -> None:
    engine = Engine(connections=2, stall_seconds=0.5)
    for round_ in range(3):  # a slot that is not given back is one less for ever: with two, the third download hangs
        files = put_files(bucket, 12, prefix=f"m{round_}")
        for name in ("f004",) if fault == "expired-token" else ("f004", "f005", "f009"):
            bucket.proxy.rules.append(Rule(fault, arg=1, match=partial(is_of, name)))
        assert await into(made(tmp_path / str(round_)), bucket, engine, f"m{round_}") == files
        assert engine.concurrency.held == 0
    assert len(bucket.proxy.faults) == (3 if fault == "expired-token" else 9)


async def test_a_disk_that_fails_while_the_next_file_is_under_way_is_told_and_the_same_engine_goes_on(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, engine = put_files(bucket, 6), Engine(connections=1)
    honest: Write = RangeFiles.write_whole

    def full(self: RangeFiles, path: str, buffer: memoryview, size: int) -> None:
        if path == "f002":
            raise Permanent("no space left")
        honest(self, path, buffer, size)

    monkeypatch.setattr(RangeFiles, "write_whole", full)
    with pytest.raises(Permanent, match="no space left"):
        await bring(bucket.uri(), tmp_path, engine)
    assert sorted(contents(tmp_path / "files")) == ["f000", "f001"]
    assert engine.concurrency.held == 0
    monkeypatch.setattr(RangeFiles, "write_whole", honest)
    before = len(bucket.proxy.ranges)
    assert await into(tmp_path, bucket, engine) == files
    assert len(bucket.proxy.ranges) == before + 4  # the two that were written came from the journal


async def test_cancelled_with_a_file_under_way_the_next_download_of_the_engine_brings_all(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    files, engine = put_files(bucket, 40), Engine(connections=2)
    bucket.proxy.rules.append(Rule("slow", times=40, arg=20_000))
    running = asyncio.create_task(bring(bucket.uri(), tmp_path, engine))
    await asyncio.sleep(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    bucket.proxy.rules.clear()
    assert await into(tmp_path, bucket, engine) == files
    assert engine.concurrency.held == 0


async def test_no_descriptor_stays_open_and_more_directories_than_are_held_are_well(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    model = {f"d{n:03}/f": bucket.put(f"m/d{n:03}/f", noise(100, n)) for n in range(MOST_HELD + 8)}
    before = directories_open()
    assert await into(tmp_path, bucket, Engine()) == model
    assert directories_open() == before


def is_of(name: str, request: Request) -> bool:
    return request.is_range and name in request.path


def directories_open() -> list[str]:
    links = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    return sorted(os.readlink(each) for each in links if os.path.isdir(each))
