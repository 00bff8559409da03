"""Giving memory back."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from agent.models.memory import give_back

LEAVES, LEAF_BYTES = 20_000, 2_000  # too large for Python's own pools, too small for a mapping each


class Leftover:
    """Holds itself, as what a closed S3 client leaves does."""

    def __init__(self) -> None:
        self.itself = self


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_leftovers_that_hold_themselves_go() -> None:
    leftover = weakref.ref(Leftover())
    give_back()
    assert leftover() is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_pages_that_the_allocator_keeps_go_back_to_the_kernel() -> None:
    leaves = [bytes(LEAF_BYTES) for _ in range(LEAVES)]
    last = bytes(LEAF_BYTES)  # above them in the heap: without help nothing below can go
    filled = resident_bytes()
    del leaves
    gc.collect()
    give_back()
    assert filled - resident_bytes() > LEAVES * LEAF_BYTES // 2
    assert len(last) == LEAF_BYTES
