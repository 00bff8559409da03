"""Reads the weights of a pod that starts into the page cache at once, while its sandbox and containers are still being made.

From bound to its server's first read a pod takes seconds, more where the server imports much first, and the disk idles. The
pages are charged to no one, held by no one, and the kernel takes them back like any others: what is read is bounded by what the
machine has to spare, not by what pods request. It stops as soon as the pod is Ready or gone, a pod here waits for a download, or
processes wait for memory. A loader that bypasses the page cache gains nothing and shares the disk with this: the setting `head_start`.
"""

from __future__ import annotations

import asyncio
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
from agent.core.starts import Starts
from agent.models.machine import read_machine
from agent.models.reading import read_in
from agent.models.resident import HeldFiles
from agent.models.threads import in_thread
from agent.plan.decision import NodePlan
from agent.plan.memory_budget import Budget, Machine, start_room

LOOK_SECONDS = 1.0  # how often a reader is looked after
AGAIN_SECONDS = 60.0  # a version read less long ago is still there, or was taken back by a machine that needed the room

log = structlog.get_logger(__name__)


class HeadStartObserver(Protocol):
    """Whoever counts how readings ended."""

    def head_start(self, outcome: str) -> None:
        """Count one: `whole`, `part` (there was no room for all of it), `stopped`, or `none`."""
        ...


class Outside(Protocol):
    """Where a reader goes, so that what it brings in is charged to no one."""

    def outside(self) -> Path:
        """Return the file by which a process joins the node's own cgroup.

        Raises:
            Permanent: there is none here.
        """
        ...


class HeadStart:
    """Reads each version of `starts` once for all pods that wait for it; one at a time, whoever came first."""

    name = "head-start"

    def __init__(  # noqa: PLR0913 (wired once, in app.py)
        self,
        *,
        starts: Latest[Starts],
        plan: Latest[NodePlan],
        memory: Latest[MemoryView],
        group: Outside,
        files: Callable[[Digest], HeldFiles],
        clock: Clock,
        setting: int | None = None,
        machine: Callable[[], Machine] = read_machine,
        observer: HeadStartObserver | None = None,
    ) -> None:
        """Wire it. `files` finds a committed version's files, or raises PrewarmError; `setting` is `memory_budget`."""
        self._starts, self._plan, self._memory, self._group = starts, plan, memory, group
        self._files, self._clock, self._setting, self._machine = files, clock, setting, machine
        self._observer = observer
        self._queue: dict[tuple[str, Digest], bool] = {}  # in the order they came; True: has had its share
        self._read: dict[Digest, tuple[float, int]] = {}  # when, and how many bytes

    async def run(self) -> None:
        """Run until cancelled: then the reader is killed, and what it read stays."""
        signal = Signal()
        cells = (self._starts, self._plan)
        for cell in cells:
            cell.attach(signal)
        try:
            while True:
                await self._serve()
                await signal.wait()
        finally:
            for cell in cells:
                cell.detach(signal)

    async def _serve(self) -> None:
        """Read for whoever waits, until nobody does or something else goes first."""
        while not self._urgent() and (digest := self._next()) is not None:
            read_at = self._read.get(digest, (float("-inf"), 0))[0]
            if self._clock.monotonic() - read_at >= AGAIN_SECONDS and not await self._give(digest):
                continue
            self._next()  # those that came meanwhile have had their share too
            self._queue |= {pair: True for pair in self._queue if pair[1] == digest}

    def _next(self) -> Digest | None:
        starts = self._starts.get()
        self._queue = {pair: served for pair, served in self._queue.items() if pair in starts.pending}
        self._queue |= {pair: False for pair in sorted(starts.pending) if pair not in self._queue}
        recent = self._clock.monotonic() - AGAIN_SECONDS
        self._read = {d: read for d, read in self._read.items() if d in starts.loading or read[0] > recent}
        return next((digest for (_, digest), served in self._queue.items() if not served), None)

    def _urgent(self) -> bool:
        plan = self._plan.get()
        return any(step.urgent for step in plan.pulls) or any(step.urgent for step in plan.hydrations)

    async def _give(self, digest: Digest) -> bool:
        """Read what fits; a start loses nothing where this fails. False if it is to be tried again."""
        since = self._clock.monotonic()
        try:
            files, room = await in_thread(self._files, digest), await self._room(digest)
            fitting, size = await in_thread(_fitting, files.paths, room.size_bytes)
            if not fitting:
                return self._none(digest, room.basis)
            self._read[digest] = since, size
            why = await self._read_in(digest, fitting)
        except (PrewarmError, OSError) as error:
            return self._none(digest, cut(error))
        seconds = round(self._clock.monotonic() - since, 3)
        left_out = room.basis if len(fitting) < files.count else ""
        log.info(
            "head start", digest=digest, files=len(fitting), of=files.count, seconds=seconds, ended=why or left_out
        )
        self._count("stopped" if why else "part" if left_out else "whole")
        if self._urgent():
            del self._read[digest]
            return False
        return True

    def _none(self, digest: Digest, reason: str) -> bool:
        """Say that nothing was read; True: it is not tried again."""
        log.info("no head start", digest=digest, reason=reason)
        self._count("none")
        return True

    def _count(self, outcome: str) -> None:
        if self._observer is not None:
            self._observer.head_start(outcome)

    async def _read_in(self, digest: Digest, paths: Sequence[Path]) -> str:
        """Read to the end, or until there is a reason to stop, which is returned."""
        procs = await in_thread(self._group.outside)
        task = asyncio.create_task(read_in(paths, procs), name="head start")
        try:
            while not (await asyncio.wait({task}, timeout=LOOK_SECONDS))[0]:
                if why := await self._why_stop(digest):
                    return why
            task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        return ""

    async def _why_stop(self, digest: Digest) -> str:
        if self._urgent():
            return "a pod waits for a download"
        if digest not in self._starts.get().loading:
            return "no pod waits for it any more"
        room = start_room(await in_thread(self._machine), setting=None, others_bytes=0)
        return "" if room.size_bytes else room.basis

    async def _room(self, digest: Digest) -> Budget:
        """Return what may be read, beside what the tier holds and what pods that start now have been given."""
        tier = self._memory.get()
        own = tier.states[digest].resident_bytes if digest in tier.states else 0
        resident = sum(state.resident_bytes for state in tier.states.values()) - own
        given = sum(size for d, (_, size) in self._read.items() if d != digest and d not in tier.states)
        others = max(resident, tier.held_bytes - own) + given
        return start_room(await in_thread(self._machine), setting=self._setting, others_bytes=others)


def _fitting(paths: Collection[Path], room_bytes: int) -> tuple[Sequence[Path], int]:
    """Return the first files that fit together, and their size; one that is gone counts nothing."""
    totals = list(zip(paths, accumulate(map(_size, paths)), strict=True))
    fitting = [(path, total) for path, total in totals if total <= room_bytes]
    return [path for path, _ in fitting], max((total for _, total in fitting), default=0)


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_size
    return 0
