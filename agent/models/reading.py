"""Starts `reader.py` for one version and sees it through: the parent's side of bringing files into the page cache."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.core.errors import PrewarmError, Transient, cut

_REAP_SECONDS = 2.0
_READER = Path(__file__).with_name("reader.py")


class Cramped(PrewarmError):
    """The reader was killed: by the kernel, for want of memory."""


async def read_in(files: Sequence[Path], procs: Path) -> None:
    """Have a child that joins the cgroup of `procs` read files into the page cache; cancelling it kills the child.

    What was read stays, so that the next call has only the rest to do.

    Raises:
        Transient: a file or the cgroup failed.
        Cramped: the child was killed.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_READER), str(os.getpid()), str(procs)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, told = await child.communicate(b"\0".join(os.fsencode(f) for f in files))
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            with contextlib.suppress(
                TimeoutError
            ):  # a disk that hangs keeps it; the kernel ends it when the disk is back
                async with asyncio.timeout(_REAP_SECONDS):
                    await child.wait()
    if child.returncode and child.returncode < 0:
        raise Cramped("the process that reads it in was killed")
    if child.returncode:
        raise Transient(f"cannot be read into memory: {cut(told.decode(errors='replace').strip(), 200)}")
