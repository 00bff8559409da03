"""A memory cgroup of the test's own to build in, removed afterwards whatever happened, and files that no page cache holds."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.models.page_cache import drop

CGROUPS = Path("/sys/fs/cgroup")
MEMORY_V1 = CGROUPS / "memory"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """The name, below the memory hierarchy, of a cgroup of version 1 to build in."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make memory cgroups")
    if not (MEMORY_V1 / "memory.limit_in_bytes").exists():
        pytest.skip("needs memory cgroups of version 1; version 2 is not tested here")
    made = MEMORY_V1 / f"prewarm-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error.strerror}")
    try:
        yield made.relative_to(MEMORY_V1)
    finally:
        _remove(made)


def _remove(group: Path) -> None:
    for directory, _, _ in os.walk(group, topdown=False):
        at = Path(directory)
        for _ in range(50):
            for pid in (at / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            try:
                at.rmdir()
                break
            except OSError:
                time.sleep(0.1)


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[[str, int], Path]:
    """Makes a file on disk, all of whose pages have left the cache."""

    def make(name: str, size: int) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        block = mmap.mmap(-1, 8 << 20)
        block.write(os.urandom(8 << 20))
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            for offset in range(0, size, len(block)):
                os.pwrite(fd, memoryview(block)[: min(len(block), size - offset)], offset)
            os.fsync(fd)
            drop(fd)
        finally:
            os.close(fd)
        return path

    return make
