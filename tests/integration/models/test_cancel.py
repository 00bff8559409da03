"""Cancelled at its n-th suspension, for every n: no file is half there, and the next call brings all of it."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any

from agent.models.fetch import HIDDEN, fetch
from tests.integration.models.conftest import SourceBucket, contents, noise


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
