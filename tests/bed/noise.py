"""Bytes that do not compress, the same for the same seed, at the speed of the disk."""

from __future__ import annotations

import random
from collections.abc import Iterator

BLOCK_BYTES = 8 << 20
STEP_BYTES = 4099  # odd: no 4 KiB page comes twice within 4096 blocks (32 GiB)


def blocks(seed: str, size_bytes: int) -> Iterator[memoryview]:
    """One block of random bytes over and over, each time turned a little further, `size_bytes` in all."""
    block = memoryview(bytearray(random.Random(seed).randbytes(BLOCK_BYTES)) * 2)
    turn = 0
    while size_bytes > 0:
        yield block[turn : turn + min(size_bytes, BLOCK_BYTES)]
        size_bytes -= BLOCK_BYTES
        turn = (turn + STEP_BYTES) % BLOCK_BYTES
