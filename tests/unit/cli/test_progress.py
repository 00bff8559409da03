"""What is told of long work: rate, what is left, files."""

from __future__ import annotations

import json

import pytest

from agent.cli.progress import Meter, Step, json_lines, line_of, lines


class Time:
    """A clock that stands until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def step(done: int, moved: int | None = None, total: int = 10**9, **more: object) -> Step:
    return Step(done_bytes=done, total_bytes=total, moved_bytes=done if moved is None else moved, **more)  # type: ignore[arg-type]


def test_what_was_here_before_makes_no_rate() -> None:
    time = Time()
    meter = Meter(time)
    time.now += 1
    left = meter.take(step(600_000_000, 100_000_000))
    assert (meter.rate, left) == (1e8, 4.0)


def test_a_rate_follows_a_change_within_seconds() -> None:
    time = Time()
    meter = Meter(time)
    for second in range(1, 11):
        time.now += 1
        meter.take(step(second * 10**8))
    assert meter.rate == pytest.approx(1e8)
    for _ in range(15):
        time.now += 1
        meter.take(step(10**9))
    assert meter.rate < 5e6


def test_nothing_is_said_of_the_end_while_nothing_moves() -> None:
    time = Time()
    meter = Meter(time)
    time.now += 1
    assert meter.take(step(0)) is None
    assert line_of(step(0), None, 0.0) == "0 B of 1.00 GB (0%), 0 B/s"


def test_a_line_tells_share_rate_files_and_what_is_left() -> None:
    told = line_of(step(250_000_000, files_done=3, files_total=30), 7.4, 1e8)
    assert told == "250 MB of 1.00 GB (25%), 100 MB/s, 3 of 30 files, 7s left"


def test_where_no_terminal_watches_lines_come_at_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    time = Time()
    told = lines(time)
    for _ in range(21):
        time.now += 0.5
        told(step(10**8))
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_json_lines_carry_numbers_and_the_files_under_way(capsys: pytest.CaptureFixture[str]) -> None:
    time = Time()
    told = json_lines(time)
    time.now += 2
    told(step(2 * 10**8, files_done=1, files_total=2, files=(("a", 1, 2),)))
    told(step(3 * 10**8))  # too soon
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "event": "progress",
        "bytes": 2 * 10**8,
        "total": 10**9,
        "bytesPerSecond": 10**8,
        "etaSeconds": 8.0,
        "filesDone": 1,
        "files": 2,
        "underWay": [{"path": "a", "bytes": 1, "size": 2}],
    }
