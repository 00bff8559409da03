"""Reads the weights of a pod that starts into the page cache at once, while its sandbox and containers are still being made.

From bound to its server's first read a pod takes seconds, more where the server imports much first, and the disk idles. The
pages are as if the server had read them: nobody's pod is charged, nothing is held or let go, the kernel takes them back as
any others. No more is read than the memory tier might hold now. A loader that bypasses the page cache gains nothing and shares
the disk with this: the setting `head_start`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import structlog

from agent.core.clock import Clock
from agent.core.errors import PrewarmError, cut
from agent.core.inventory import MemoryView
from agent.core.latest import Latest, Signal
from agent.core.refs import Digest
from agent.models.machine import read_machine
from agent.models.reading import read_in
from agent.models.resident import HeldFiles
from agent.models.threads import in_thread
from agent.plan.memory_budget import Machine, Requests, memory_budget

log = structlog.get_logger(__name__)


class Outside(Protocol):
    """Where a reader goes, so that what it brings in is charged to no one."""

    def outside(self) -> Path:
        """Return the file by which a process joins the node's own cgroup.

        Raises:
            Permanent: there is none here.
        """
        ...


class HeadStart:
    """Reads the versions of `starting`, which pairs uids of pods with what each needs: once for all pods that wait for one."""

    name = "head-start"

    def __init__(
        self,
        *,
        starting: Latest[frozenset[tuple[str, Digest]]],
        memory: Latest[MemoryView],
        requests: Latest[Requests | None],
        group: Outside,
        files: Callable[[Digest], HeldFiles],
        clock: Clock,
        setting: int | None = None,
        machine: Callable[[], Machine] = read_machine,
    ) -> None:
        """Wire it. `files` finds a committed version's files, or raises PrewarmError; `setting` is `memory_budget`."""
        self._starting, self._memory, self._requests, self._group = starting, memory, requests, group
        self._files, self._clock, self._setting, self._machine = files, clock, setting, machine

    async def run(self) -> None:
        """Run until cancelled: then the reader is killed, and what it read stays."""
        signal = Signal()
        self._starting.attach(signal)
        served: frozenset[tuple[str, Digest]] = frozenset()
        try:
            while True:
                while fresh := self._starting.get() - served:
                    digest = min(digest for _, digest in fresh)
                    await self._read(digest)
                    # Those that came while it was read have had their share.
                    served |= {pair for pair in self._starting.get() if pair[1] == digest}
                await signal.wait()
                served &= self._starting.get()
        finally:
            self._starting.detach(signal)

    async def _read(self, digest: Digest) -> None:
        """Read what fits; a start loses nothing where this fails."""
        since = self._clock.monotonic()
        try:
            files = await in_thread(self._files, digest)
            fitting = await in_thread(_fitting, files.paths, await self._room_bytes())
            if fitting:
                await read_in(fitting, await in_thread(self._group.outside))
        except (PrewarmError, OSError) as error:
            log.info("no head start", digest=digest, reason=cut(error))
            return
        seconds = round(self._clock.monotonic() - since, 3)
        log.info("head start", digest=digest, files=len(fitting), of=files.count, seconds=seconds)

    async def _room_bytes(self) -> int:
        machine = await in_thread(self._machine)
        budget = memory_budget(setting=self._setting, requests=self._requests.get(), machine=machine)
        return budget.size_bytes - self._memory.get().held_bytes


def _fitting(paths: Collection[Path], room_bytes: int) -> Sequence[Path]:
    """Return the first files that fit together; one that is gone counts nothing."""
    return [path for path, total in zip(paths, accumulate(map(_size, paths)), strict=True) if total <= room_bytes]


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_size
    return 0
