"""The copy of the assignment on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.core.clock import SystemClock
from agent.node.assignment_source import KeptAssignment
from tests.unit.node.making import assigned

NOW = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)


class Clock(SystemClock):
    def __init__(self, now: datetime) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now


def kept(path: Path, now: datetime = NOW) -> KeptAssignment:
    return KeptAssignment(path / "nodewarmup.json", Clock(now))


def test_the_copy_is_the_assignment_but_for_the_object_it_came_from(tmp_path: Path) -> None:
    assert kept(tmp_path).load() is None
    kept(tmp_path).save(assigned())
    found = kept(tmp_path, NOW + timedelta(hours=47)).load()
    assert found == replace(assigned(), uid="")  # without a uid no status is written: it would be another object's
    assert kept(tmp_path, NOW + timedelta(hours=49)).load() is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        "\x00\xff",
        json.dumps({"at": "2026-03-02T08:00:00Z", "node": "n", "generation": float("inf"), "spec": {}}),
        json.dumps({"at": "2026-03-02T08:00:00Z", "node": "n", "generation": 1, "spec": {"endpoints": [{}]}}),
        json.dumps({"at": "yesterday", "node": "n", "generation": 1, "spec": {}}),
    ],
)
def test_a_copy_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "nodewarmup.json").write_bytes(text.encode("latin-1"))
    assert kept(tmp_path).load() is None
