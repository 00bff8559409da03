"""Disk operations in threads that are seen through to their end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from agent.models.disk import disk_error

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *args: object) -> T:
    """Run in a thread; when cancelled, wait for it, then be cancelled, so that nothing runs on behind the caller's back.

    Raises:
        Transient, Permanent: an error of the disk, as ours.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # seen, so that nobody complains that it was not
        raise
    except OSError as error:
        raise disk_error(error, "the store's disk failed") from error
