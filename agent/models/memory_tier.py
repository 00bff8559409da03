"""Keeps the weights that the plan names in the page cache, measures that, and lets go: after the window, and under pressure.

Reading is a child's work (`reader.py`), in the cgroup that the pages are charged to; it stops at once for what goes first.
The kernel decides in the end: where it took pages back, somebody needed them, and the version is let go as a whole and tried
again later. Letting go never takes a page that a process has mapped. With nothing to hold, nothing runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

import structlog

from agent.core.clock import Clock
from agent.core.errors import Permanent, PrewarmError
from agent.core.inventory import RESIDENT_SHARE, MemoryView, Residency
from agent.core.latest import Latest, Signal
from agent.core.refs import Digest
from agent.core.units import format_size
from agent.models.machine import read_machine
from agent.models.memory_group import MemoryGroup
from agent.models.reading import Cramped, read_in
from agent.models.resident import HeldFiles, let_go, measure
from agent.models.threads import in_thread
from agent.plan.decision import KeepStep, MemoryPlan, NodePlan
from agent.plan.memory import memory_bytes
from agent.plan.memory_budget import Budget, Machine, Requests, memory_budget

LOOK_SECONDS = 3.0  # while anything is held or asked for
_OFF_SECONDS = 60.0  # how often a cgroup that could not be made is tried again
_GROWTH_BYTES = 256 << 20  # a budget that grows by less is not news
_AGAIN_SECONDS, _AGAIN_AT_MOST_SECONDS = (
    300.0,
    3600.0,
)  # a version that was let go before its time is left alone so long

log = structlog.get_logger(__name__)


class MemoryObserver(Protocol):
    """Whoever counts versions let go."""

    def released(self, cause: str) -> None:
        """Count one, with its cause."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """One version that has pages: what was measured, when to measure again, and whether it has been read in."""

    files: HeldFiles
    resident_bytes: int = 0
    charged_bytes: int = 0  # when it was measured
    measure_at: float = 0.0
    complete: bool = False


class MemoryTier:
    """Publishes `memory` from `plan`."""

    name = "memory"

    def __init__(  # noqa: PLR0913 (wired once, in app.py)
        self,
        *,
        plan: Latest[NodePlan],
        memory: Latest[MemoryView],
        requests: Latest[Requests | None],
        group: MemoryGroup,
        files: Callable[[Digest], HeldFiles],
        clock: Clock,
        setting: int | None = None,
        machine: Callable[[], Machine] = read_machine,
        observer: MemoryObserver | None = None,
    ) -> None:
        """Wire the tier. `files` finds a committed version's files, or raises PrewarmError."""
        self._plan, self._memory, self._requests, self._group = plan, memory, requests, group
        self._files, self._clock, self._setting, self._machine = files, clock, setting, machine
        self._observer = observer
        self._held: dict[Digest, _Held] = {}
        self._left: set[Digest] = set()  # versions let go of whose cgroup could not be removed yet
        self._trouble: dict[Digest, tuple[int, Residency]] = {}  # failures in a row, and until when it is left alone
        self._reading: tuple[Digest, asyncio.Task[None]] | None = None
        self._budget: Budget | None = None
        self._limit_bytes = 0
        self._signal = Signal()

    async def run(self) -> None:
        """Run until cancelled; what is in memory stays there."""
        for cell in (self._plan, self._requests):
            cell.attach(self._signal)
        try:
            await self._adopt()
            while True:
                await self._signal.wait(await self.look())
        finally:
            await self._stop_reading()
            for cell in (self._plan, self._requests):
                cell.detach(self._signal)

    async def _adopt(self) -> None:
        """Find what an earlier agent held."""
        for digest in await in_thread(self._group.held):
            found = await in_thread(self._found, digest)
            self._held[digest] = _Held(files=found or HeldFiles())

    async def look(self) -> float | None:
        """Run one cycle; return the seconds until the next, None for when something changes."""
        plan = self._plan.get().memory
        if not plan.asked and not self._held and not self._left:
            self._trouble.clear()
            self._budget = None
            self._memory.set(MemoryView())
            return None
        try:
            if not self._limit_bytes:
                await in_thread(self._group.make)
            await self._cycle(plan)
        except Permanent as error:
            self._memory.set(self._view(plan, off=str(error)))
            return _OFF_SECONDS
        except PrewarmError as error:
            log.warning("the memory tier could not be looked after", error=str(error))
        return LOOK_SECONDS

    async def _cycle(self, plan: MemoryPlan) -> None:
        machine, charged = await in_thread(self._machine), await in_thread(self._group.held)
        self._weigh(machine)
        keep = {s.digest: s for s in plan.keep}
        await self._remove_left(charged.keys() - self._held.keys())
        for digest in [d for d in self._held if d not in keep] if plan.known else ():
            await self._drop(digest, self._why_dropped(digest, plan), plan.refused.get(digest, ""))
        if plan.known:
            self._trouble = {d: t for d, t in self._trouble.items() if d in keep or d in plan.refused}
        await self._tend(keep, charged)
        await self._bound(plan)
        await self._read_next(plan.keep)
        self._memory.set(self._view(plan, charged=await in_thread(self._group.used_bytes)))

    async def _remove_left(self, left: Set[Digest]) -> None:
        """Remove the cgroups of versions that are let go of already."""
        self._left = {d for d in left if not await in_thread(self._group.remove, d)}

    def _weigh(self, machine: Machine) -> None:
        """Take the budget as it is now; a little more than before is no news, a little less is."""
        fresh = memory_budget(setting=self._setting, requests=self._requests.get(), machine=machine)
        before = self._budget.size_bytes if self._budget else 0
        if self._budget is None or not before or not before <= fresh.size_bytes < before + _GROWTH_BYTES:
            self._budget = fresh

    async def _bound(self, plan: MemoryPlan) -> None:
        """Bound the cgroup by the budget; by what it still holds of a greater one, until the plan has given that up."""
        held = {s.digest: self._held[s.digest].files.count for s in plan.keep if s.digest in self._held}
        wanted = sum(memory_bytes(s.size_bytes, held[s.digest]) for s in plan.keep if s.digest in held)
        limit = max(self._budget.size_bytes if self._budget else 0, wanted, memory_bytes(0))
        if limit != self._limit_bytes and await in_thread(self._group.limit, limit):
            self._limit_bytes = limit

    def _why_dropped(self, digest: Digest, plan: MemoryPlan) -> str:
        if digest not in plan.refused:
            return "window"
        return "budget" if self._budget and self._budget.size_bytes else "pressure"

    async def _tend(self, keep: Mapping[Digest, KeepStep], charged: Mapping[Digest, int]) -> None:
        """Measure what is due, and let go of what the kernel has taken from."""
        for digest, held in list(self._held.items()):
            now, charge = self._clock.monotonic(), charged.get(digest, 0)
            lost = held.charged_bytes - charge > (1 - RESIDENT_SHARE) / 2 * held.files.size_bytes
            if now < held.measure_at and not (held.complete and lost):
                continue
            found, seconds = await in_thread(measure, held.files)
            rest = max(60.0, 1000 * seconds) if held.complete else max(LOOK_SECONDS, 50 * seconds)
            self._held[digest] = replace(held, resident_bytes=found, charged_bytes=charge, measure_at=now + rest)
            if held.complete and digest in keep and found < RESIDENT_SHARE * held.files.size_bytes:
                taken = format_size(held.files.size_bytes - found)
                await self._drop(digest, "pressure", f"let go of in memory: the kernel took {taken} of it back")

    async def _read_next(self, keep: tuple[KeepStep, ...]) -> None:
        steps = {s.digest: s for s in keep}
        if self._reading is not None:
            digest, task = self._reading
            if task.done():
                await self._ended(digest, task)
            elif digest in steps and not steps[digest].yields_to:
                return
            else:
                await self._stop_reading()
        for step in keep:
            held = self._held.get(step.digest)
            if step.yields_to or (held and held.complete) or self._left_alone(step.digest):
                continue
            files = held.files if held else await in_thread(self._found, step.digest)
            if files is None:
                self._note(step.digest, "not kept in memory: its files cannot be read")
                continue
            held = self._held.setdefault(step.digest, _Held(files=files))
            procs = await in_thread(self._group.procs, step.digest)
            task = asyncio.create_task(read_in(held.files.paths, procs), name=f"read in {step.name}")
            task.add_done_callback(lambda _: self._signal.fire())
            self._reading = step.digest, task
            return

    async def _ended(self, digest: Digest, task: asyncio.Task[None]) -> None:
        self._reading = None
        held, error = self._held.get(digest), task.exception()
        if held is None:
            return
        if error is not None and not isinstance(error, PrewarmError):
            raise error
        found, seconds = await in_thread(measure, held.files)
        charged = (await in_thread(self._group.held)).get(digest, 0)
        rest = self._clock.monotonic() + max(60.0, 1000 * seconds)
        self._held[digest] = replace(
            held, resident_bytes=found, charged_bytes=charged, measure_at=rest, complete=error is None
        )
        if error is not None:
            await self._drop(
                digest, "pressure" if isinstance(error, Cramped) else "failed", f"not kept in memory: {error}"
            )
        elif found < RESIDENT_SHARE * held.files.size_bytes:
            told = f"{format_size(found)} of {format_size(held.files.size_bytes)}"
            await self._drop(digest, "pressure", f"not kept in memory: only {told} stayed there")
        else:
            self._trouble.pop(digest, None)
            log.info("in memory", digest=digest, resident_bytes=found, charged_bytes=charged)

    async def _stop_reading(self) -> None:
        if self._reading is not None:
            _, task = self._reading
            self._reading = None
            task.cancel()
            await asyncio.wait({task})

    async def _drop(self, digest: Digest, cause: str, reason: str = "") -> None:
        """Let go of one version, but for files that a kept one shares."""
        if self._reading is not None and self._reading[0] == digest:
            await self._stop_reading()
        held = self._held.pop(digest)
        others = frozenset(i for h in self._held.values() for i in h.files.inodes)
        await in_thread(let_go, held.files, others)
        if not await in_thread(self._group.remove, digest):
            self._left.add(digest)
        log.info("let go of in memory", digest=digest, cause=cause, reason=reason)
        if self._observer is not None:
            self._observer.released(cause)
        if cause != "window":
            self._note(digest, reason)

    def _note(self, digest: Digest, reason: str) -> None:
        """Leave a version alone for a while, longer each time."""
        failures = self._trouble[digest][0] + 1 if digest in self._trouble else 1
        wait = min(_AGAIN_SECONDS * 2 ** (failures - 1), _AGAIN_AT_MOST_SECONDS)
        retry_at = self._clock.now() + timedelta(seconds=wait)
        self._trouble[digest] = failures, Residency(reason=reason, retry_at=retry_at)

    def _left_alone(self, digest: Digest) -> bool:
        known = self._trouble.get(digest)
        return known is not None and known[1].retry_at is not None and known[1].retry_at > self._clock.now()

    def _found(self, digest: Digest) -> HeldFiles | None:
        """Return a version's files; None where it is not committed (any more)."""
        try:
            return self._files(digest)
        except PrewarmError:
            return None

    def _view(self, plan: MemoryPlan, *, charged: int = 0, off: str = "") -> MemoryView:
        """Say what holds. A refusal is the plan's sentence; one that was let go keeps its own until it is tried again."""
        states = {d: Residency(reason=why) for d, why in plan.refused.items()}
        for step in plan.keep:
            states[step.digest] = Residency(reason=_waiting(step))
        states |= {d: Residency(resident_bytes=h.resident_bytes, reason=_told(h)) for d, h in self._held.items()}
        states |= {d: r for d, (_, r) in self._trouble.items() if self._left_alone(d)}
        grain = 1 << 20
        return MemoryView(
            states=states,
            budget_bytes=self._budget.size_bytes if self._budget else None,
            held_bytes=charged // grain * grain,
            basis=self._budget.basis if self._budget else "",
            off=off,
        )


def _waiting(step: KeepStep) -> str:
    return f"not read into memory yet: {step.yields_to or 'others are read in first'}"


def _told(held: _Held) -> str:
    share = held.resident_bytes / held.files.size_bytes if held.files.size_bytes else 1.0
    return f"{share:.0%} in memory" if held.complete else f"being read into memory, {share:.0%} there"
