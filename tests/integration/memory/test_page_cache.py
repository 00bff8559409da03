"""What the kernel says of its page cache, asked in two ways."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.models import page_cache
from agent.models.page_cache import PAGE, by_mincore, drop, resident_bytes

SIZE = (8 << 20) + 5


def test_both_ways_agree_on_none_some_and_all_of_a_file(make_file: Callable[[str, int], Path]) -> None:
    fd = os.open(make_file("weights", SIZE), os.O_RDONLY)
    try:
        drop(fd)
        assert (resident_bytes(fd), by_mincore(fd, SIZE)) == (0, 0)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no readahead beyond what is asked for
        os.pread(fd, PAGE, 4 << 20)
        assert resident_bytes(fd) == by_mincore(fd, SIZE) * PAGE > 0
        os.pread(fd, SIZE, 0)
        assert resident_bytes(fd) == SIZE
        assert by_mincore(fd, SIZE) == -(-SIZE // PAGE)
    finally:
        os.close(fd)


def test_a_kernel_without_cachestat_is_asked_by_mincore(
    make_file: Callable[[str, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_cache, "_CACHESTAT", 9999)
    fd = os.open(make_file("weights", SIZE), os.O_RDONLY)
    try:
        os.pread(fd, SIZE, 0)
        assert resident_bytes(fd) == SIZE
    finally:
        os.close(fd)


def test_letting_go_of_one_name_lets_go_of_all_hard_links(
    make_file: Callable[[str, int], Path], tmp_path: Path
) -> None:
    path = make_file("weights", SIZE)
    os.link(path, tmp_path / "view")
    fd, other = os.open(path, os.O_RDONLY), os.open(tmp_path / "view", os.O_RDONLY)
    try:
        os.pread(fd, SIZE, 0)
        assert resident_bytes(other) == SIZE
        drop(other)
        assert resident_bytes(fd) == 0
    finally:
        os.close(fd)
        os.close(other)
