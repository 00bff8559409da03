from __future__ import annotations

from datetime import timedelta

import pytest

from agent.core.errors import Invalid, cut
from agent.core.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h30m", 5400), ("90s", 90), ("2d", 172800), ("1d1h1m1s", 90061), (" 5m ", 300), ("0s", 0), ("366d", 31622400)],
)
def test_durations_are_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "h",
        "1m1h",
        "-1s",
        "1.5h",
        "1 h",
        "367d",
        "999999999d",
        "99999999d99999999h",
        "9" * 5000 + "d",
        "\u0661h",
    ],
)
def test_what_is_no_duration_is_invalid(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_duration(text)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.84, "0.8s"),
        (9.96, "10s"),
        (59.6, "1m"),
        (250, "4m10s"),
        (5400, "1h30m"),
        (-90, "-1m30s"),
        (90061, "1d1h1m1s"),
    ],
)
def test_durations_are_written(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
    assert format_duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1073741824", 1 << 30),
        ("9007199254740993", 9007199254740993),
        ("500GB", 500 * 10**9),
        ("1.5Ti", 3 << 39),
        ("10 MiB", 10 << 20),
        ("1.1KB", 1100),
        ("7B", 7),
    ],
)
def test_sizes_are_read_exactly(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "1,5G", "5XB", "5gb", "inf", "9" * 400, "\u0661"])
def test_what_is_no_size_is_invalid(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_size(text)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (1_340_000_000, "1.34 GB"),
        (99_960_000, "100 MB"),
        (13.4e12, "13.4 TB"),
        (5e18, "5000 PB"),
    ],
)
def test_sizes_are_written_with_three_digits(size: float, text: str) -> None:
    assert format_size(size) == text


def test_foreign_text_is_cut_to_one_printable_line() -> None:
    assert cut("a\n\x1b[31mb\t c") == "a [31mb c"
    assert cut("x" * 50, 10) == "x" * 9 + "…"
    assert cut("x" * 10, 10) == "x" * 10
