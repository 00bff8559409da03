"""Hydrations timed from the models cell."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agent.core.inventory import ModelLevel, ModelState
from agent.core.latest import Latest
from agent.core.refs import Digest
from agent.observe.hydrations import HydrationWatch

DIGEST = Digest("sha256:" + "a" * 64)


class Clock:
    seconds = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        raise AssertionError


class Counted:
    def __init__(self) -> None:
        self.told: list[tuple[Digest, float, int, str]] = []

    def hydrated(self, digest: Digest, seconds: float, size_bytes: int, outcome: str) -> None:
        self.told.append((digest, seconds, size_bytes, outcome))


class Models:
    states: dict[Digest, ModelState] = {}  # noqa: RUF012 (never written)


BUSY = ModelState(digest=DIGEST, level=ModelLevel.PARTIAL, total_bytes=9, busy=True)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (ModelState(digest=DIGEST, level=ModelLevel.COMMITTED, total_bytes=9), (DIGEST, 7.0, 9, "ok")),
        (
            ModelState(digest=DIGEST, level=ModelLevel.PARTIAL, total_bytes=9, error="denied"),
            (DIGEST, 7.0, 0, "incomplete"),
        ),
        (ModelState(digest=DIGEST, level=ModelLevel.PARTIAL, total_bytes=9), (DIGEST, 7.0, 0, "incomplete")),
        (None, (DIGEST, 7.0, 0, "incomplete")),
    ],
)
def test_a_hydration_is_counted_once_when_it_ends(
    end: ModelState | None, expected: tuple[Digest, float, int, str]
) -> None:
    clock, counted = Clock(), Counted()
    watch = HydrationWatch(models=Latest(Models()), clock=clock, observer=counted)
    watch.look({DIGEST: BUSY})
    clock.seconds = 3
    watch.look({DIGEST: BUSY})
    assert counted.told == []
    clock.seconds = 7
    for _ in range(2):
        watch.look({} if end is None else {DIGEST: end})
    assert counted.told == [expected]


def test_a_version_that_was_there_already_is_no_hydration() -> None:
    counted = Counted()
    watch = HydrationWatch(models=Latest(Models()), clock=Clock(), observer=counted)
    watch.look({DIGEST: ModelState(digest=DIGEST, level=ModelLevel.COMMITTED, total_bytes=9)})
    watch.look({})
    assert counted.told == []
