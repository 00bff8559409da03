"""The disk is told to flush its own cache while a download still runs, by one thread at a time."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path

import pytest

from agent.models import disk
from agent.models.disk import RangeFiles
from agent.models.paths import Tree

PART = 1 << 20


def pages() -> memoryview:
    """A part's bytes, page-aligned as direct writes need them."""
    view = memoryview(mmap.mmap(-1, PART))
    view[:] = b"w" * PART
    return view


def test_the_disk_flushes_its_cache_while_parts_still_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(disk, "FLUSH_BYTES", 4 * PART)
    monkeypatch.setattr("agent.models.disk.os.fdatasync", lambda fd: told.append(os.fstat(fd).st_size))
    files, view = RangeFiles(Tree(tmp_path), direct=False), pages()
    files.prepare({"w": 10 * PART})
    for n in range(10):
        files.write("w", view, n * PART, PART)
        assert len(told) == (n + 1) // 4
    assert (tmp_path / "w").read_bytes() == b"w" * (10 * PART)


def test_while_one_thread_waits_for_the_flush_the_others_write_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushing, done = threading.Event(), threading.Event()
    told: list[int] = []

    def slow(fd: int) -> None:
        told.append(fd)
        flushing.set()
        assert done.wait(10)

    monkeypatch.setattr(disk, "FLUSH_BYTES", PART)
    monkeypatch.setattr("agent.models.disk.os.fdatasync", slow)
    files, view = RangeFiles(Tree(tmp_path), direct=False), pages()
    files.prepare({"w": 10 * PART})
    first = threading.Thread(target=files.write, args=("w", view, 0, PART))
    first.start()
    assert flushing.wait(10)
    for n in range(1, 10):
        files.write("w", view, n * PART, PART)
    assert len(told) == 1
    done.set()
    first.join(10)
    assert (tmp_path / "w").read_bytes() == b"w" * (10 * PART)
