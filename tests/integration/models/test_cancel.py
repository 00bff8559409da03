"""Cancelled anywhere: no file is half there, the next call brings all of it, and what is told of it is true."""

from __future__ import annotations

import asyncio
import contextlib
import time
import types
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest

from agent.core.inventory import ModelLevel
from agent.models import eviction
from agent.models.fetch import HIDDEN, fetch
from agent.models.resolve import resolve
from agent.plan.decision import NodePlan
from tests.bed.faultproxy import Rule
from tests.integration.models.conftest import SourceBucket, contents, noise
from tests.integration.models.test_service import is_committed, only, room, want

MIB = 1 << 20


@types.coroutine
def cancelled_at(coroutine: Coroutine[Any, Any, object], n: int) -> Generator[Any, Any, int]:
    """Drive a coroutine and throw CancelledError where it suspends for the n-th time; returns how often it suspended."""
    suspended = 0
    step: Any = coroutine.send
    value: Any = None
    while True:
        try:
            awaited = step(value)
        except StopIteration:
            return suspended
        suspended += 1
        if suspended == n:
            if asyncio.isfuture(awaited):
                awaited._asyncio_future_blocking = False
            step, value = coroutine.throw, asyncio.CancelledError()
            continue
        try:
            step, value = coroutine.send, (yield awaited)
        except BaseException as error:  # noqa: BLE001 (passed on)
            step, value = coroutine.throw, error


async def test_fetch_cancelled_anywhere(bucket: SourceBucket, tmp_path: Path) -> None:
    model = {"a": bucket.put("m/a", noise(300_000)), "sub/b": bucket.put("m/sub/b", b"b")}
    n, cancelled, whole = 0, True, 0
    while cancelled:
        n += 1
        to = tmp_path / str(n)
        cancelled = False
        async with asyncio.timeout(30):
            try:
                await cancelled_at(fetch(bucket.uri(), to), n)
            except asyncio.CancelledError:
                cancelled = True
            there = {path: c for path, c in contents(to).items() if not path.startswith(HIDDEN)} if to.exists() else {}
            assert there.items() <= model.items()
            whole += there == model
            await fetch(bucket.uri(), to)
        assert {p: c for p, c in contents(to).items() if not p.startswith(HIDDEN)} == model
    assert n > 10
    assert whole >= 1


async def test_a_download_cancelled_while_it_commits_is_committed_and_says_so(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    bucket.put("first/a", noise(MIB))
    bucket.put("second/a", b"a")
    first = want(bucket.uri("first/"), (await resolve(bucket.uri("first/"))).digest, "first")
    second = want(bucket.uri("second/"), (await resolve(bucket.uri("second/"))).digest, "second")
    loop = asyncio.get_running_loop()

    def cancel_here(step: str) -> None:
        hydrating = [t for t in asyncio.all_tasks(loop) if t.get_name() == "hydrate first"]
        if step == "made-read-only" and hydrating:
            asyncio.run_coroutine_threadsafe(r.bring(first, second, urgent=[second]), loop)
            deadline = time.monotonic() + 30
            while not hydrating[0].cancelling():
                assert time.monotonic() < deadline
                time.sleep(0.01)

    async with room(tmp_path) as r:
        r.service._store._step = cancel_here
        await r.bring(first)
        view = await r.until(lambda v: any(s.digest == second.digest and s.level.committed for s in v.states.values()))
        (state,) = (s for s in view.states.values() if s.digest == first.digest)
        assert (state.level, state.busy, state.proof) == (ModelLevel.COMMITTED, False, "crc64nvme")
        assert state.reason == "every byte checked by crc64nvme"
        assert state.done_bytes == state.total_bytes == MIB


async def test_cancelled_while_it_asks_whether_the_source_changed_it_keeps_no_room(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    bucket.put("m/a", noise(MIB))
    digest = (await resolve(bucket.uri())).digest
    stalls = Rule("stall-before-headers", times=9, arg=20, match=lambda q: not q.is_range and bool(bucket.proxy.ranges))
    bucket.proxy.rules += [Rule("404"), stalls]
    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri(), digest))
        await r.until_disk(lambda: stalls.fault in bucket.proxy.faults)
        assert r.service._store._reserved
        r.plan.set(NodePlan())
        async with asyncio.timeout(5):
            state = only(await r.until(lambda v: not only(v).busy))
        assert (state.level, state.reason) == (
            ModelLevel.PARTIAL,
            "a download that was interrupted can be resumed",
        )
        assert r.service._store._reserved == {}


async def test_a_source_that_changed_under_a_download_leaves_nothing_of_it(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    bucket.put("m/a", noise(MIB))
    digest = (await resolve(bucket.uri())).digest
    bucket.proxy.rules.append(Rule("503", times=99))
    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri(), digest))
        await r.until_disk(lambda: bool(bucket.proxy.ranges))
        bucket.put("m/a", noise(MIB, 2))
        bucket.proxy.rules.clear()
        state = (await r.until(lambda v: v.states[digest].level is ModelLevel.ABSENT)).states[digest]
        assert (state.busy, state.reason) == (False, "the source changed while it was downloaded")
        assert list((tmp_path / "staging").iterdir()) == []
        assert r.service._store._reserved == {}


async def test_one_who_no_longer_waits_for_a_removal_does_not_cancel_the_next(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "WAIT_SECONDS", 0.5)
    bucket.put("m/a", b"a")
    digest = (await resolve(bucket.uri())).digest
    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri(), digest))
        await r.until(is_committed)
        r.plan.set(NodePlan())
        interrupted = asyncio.create_task(r.service.remove(digest), name="rm, interrupted")
        await r.until(lambda v: only(v).reason.startswith("leaving"))
        interrupted.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await interrupted
        await r.service.remove(digest)
        assert not (tmp_path / "store" / digest).exists()
