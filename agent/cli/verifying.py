"""Reads versions back for `prewarm models verify`: every byte, past the page cache, at most so fast, telling how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from agent.models.throttle import Throttle

if TYPE_CHECKING:
    from agent.cli.shelf import Row, Shelf

_TOLD_SECONDS = 0.1


def verify(
    shelf: Shelf, rows: Sequence[Row], bytes_per_second: int, told: Callable[[int], None]
) -> Iterator[tuple[Row, str]]:
    """Yield each version with "" or what is wrong with it; one that is removed meanwhile is left out.

    `told` hears of the bytes read so far.
    """
    throttle, stop = Throttle(bytes_per_second), threading.Event()
    done, last = 0, 0.0
    for row in rows:
        before = done

        def slice_next(size: int) -> None:
            nonlocal done, last
            throttle.wait(size, stop)
            done += size
            if time.monotonic() - last >= _TOLD_SECONDS:
                last = time.monotonic()
                told(done)

        why = shelf.verify(row, slice_next)
        done = before + row.size_bytes
        if not why or shelf.store.directory(row.digest).exists():
            yield row, why
    told(done)
