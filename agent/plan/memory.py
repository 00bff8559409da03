"""Which versions the page cache is to hold: those of open and near windows, greater priority first, within the budget. Pure.

Windows that are only foretold come after all that are declared.

What does not fit is refused with numbers and costs its endpoint nothing else: memory is warmth on top of `ready`. A version
that is still being downloaded keeps its share, so that none is read in only to be let go when a more important one arrives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from agent.core.assignment import EndpointWant, ModelWant, Window, WindowSource
from agent.core.inventory import Inventory, ModelState
from agent.core.refs import Digest, EndpointKey
from agent.core.units import format_size
from agent.plan.decision import HydrateStep, KeepStep, MemoryPlan, PullStep

READ_BYTES_PER_SECOND = 500e6  # a plain disk; a slower one is late in memory, never late on disk
AHEAD = timedelta(
    minutes=10
)  # memory is dear: it is filled this long before a window, and the time to read before that
FIXED_BYTES = 16 << 20  # the reading process, and the kernel's own records of the pages
_SHARE = 0.005  # of a version, for the same (measured: 0.3 %)


def memory_bytes(size_bytes: int, files: int = 0) -> int:
    """Return what keeping a version costs: whole pages for each file, and the kernel's records."""
    return int(size_bytes * (1 + _SHARE)) + files * 4096 + FIXED_BYTES


def memory_start(window: Window, size_bytes: int) -> datetime:
    """Return when a window's weights are read in."""
    try:
        return window.ready_by - AHEAD - timedelta(seconds=size_bytes / READ_BYTES_PER_SECOND)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def memory_starts(endpoints: Iterable[EndpointWant], inventory: Inventory) -> Iterator[datetime]:
    """Yield the moments at which `keep_in_memory` would answer otherwise, besides the ends of windows."""
    for endpoint in endpoints:
        if endpoint.memory:
            size = sum(_size(m, _state(m, inventory)) for m in endpoint.models)
            yield from (memory_start(w, size) for w in endpoint.windows)
    yield from (r.retry_at for r in inventory.memory.states.values() if r.retry_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """One version that a window asks to be in memory now."""

    want: ModelWant
    digest: Digest
    endpoint: EndpointKey
    priority: int
    window: Window
    size_bytes: int
    committed: bool

    @property
    def guess(self) -> bool:
        return self.window.source is WindowSource.PREDICTED

    @property
    def need_bytes(self) -> int:
        return memory_bytes(self.size_bytes, self.want.files)


def keep_in_memory(
    endpoints: Iterable[EndpointWant],
    inventory: Inventory,
    pulls: Iterable[PullStep],
    hydrations: Iterable[HydrateStep],
    now: datetime,
) -> MemoryPlan:
    """Decide what the page cache holds now."""
    keep: list[KeepStep] = []
    refused: dict[Digest, str] = {}
    left = inventory.memory.budget_bytes or 0
    steps: tuple[PullStep | HydrateStep, ...] = (*pulls, *hydrations)
    for wish in _wishes(endpoints, inventory, now):
        if why := _refusal(wish, left, inventory, now):
            refused[wish.digest] = why
            continue
        left -= wish.need_bytes
        if wish.committed:
            keep.append(
                KeepStep(
                    digest=wish.digest,
                    name=wish.want.name,
                    endpoint=wish.endpoint,
                    size_bytes=wish.size_bytes,
                    until=wish.window.until,
                    yields_to=_first_in_line(wish, steps),
                )
            )
    return MemoryPlan(keep=tuple(keep), refused=refused, known=inventory.proved)


def _wishes(endpoints: Iterable[EndpointWant], inventory: Inventory, now: datetime) -> list[_Wish]:
    """Return every version once, as its most important endpoint wants it, the most important first."""
    found = [w for e in endpoints if e.memory for w in _wishes_of(e, inventory, now)]
    found.sort(key=lambda w: (w.guess, -w.priority, w.window.ready_by, w.endpoint, w.want.name))
    return list({w.digest: w for w in reversed(found)}.values())[::-1]


def _wishes_of(endpoint: EndpointWant, inventory: Inventory, now: datetime) -> Iterator[_Wish]:
    size = sum(_size(m, _state(m, inventory)) for m in endpoint.models)
    coming = (endpoint.next_promise(now), endpoint.next_window(now))
    window = next((w for w in coming if w and memory_start(w, size) <= now), None)
    if window is None:
        return
    for want in endpoint.models:
        digest, state = want.digest or inventory.resolved.get(str(want.uri)), _state(want, inventory)
        if digest:
            yield _Wish(
                want=want,
                digest=digest,
                endpoint=endpoint.key,
                priority=endpoint.priority,
                window=window,
                size_bytes=_size(want, state),
                committed=state is not None and state.level.committed,
            )


def _refusal(wish: _Wish, left: int, inventory: Inventory, now: datetime) -> str:
    memory = inventory.memory
    before = memory.states.get(wish.digest)
    if memory.off:
        return f"not kept in memory: {memory.off}"
    if memory.budget_bytes is None:
        return "not kept in memory: how much may be used is not known yet"
    if before and before.retry_at and before.retry_at > now:
        return before.reason
    if wish.need_bytes > left:
        return (
            f"not kept in memory: needs {format_size(wish.need_bytes)}, and {format_size(max(0, left))} of "
            f"{format_size(memory.budget_bytes)} are left ({memory.basis})"
        )
    return ""


def _first_in_line(wish: _Wish, steps: Iterable[PullStep | HydrateStep]) -> str:
    """Say what goes before reading this in: whatever a pod waits for, and downloads that are due earlier."""
    for step in steps:
        what = step.want.name if isinstance(step, HydrateStep) else str(step.want.ref)
        if step.urgent:
            return f"a pod waits for {what}"
        if isinstance(step, HydrateStep) and (step.due is None or step.due <= wish.window.ready_by):
            return f"the download of {what} is due first"
    return ""


def _state(want: ModelWant, inventory: Inventory) -> ModelState | None:
    digest = want.digest or inventory.resolved.get(str(want.uri))
    return inventory.models.get(digest) if digest else None


def _size(want: ModelWant, state: ModelState | None) -> int:
    return (state.total_bytes if state else 0) or want.size_bytes
