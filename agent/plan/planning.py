"""`plan`: from what is asked, what is proved and the time, to what is done next, in deadline order. Pure and total.

Order is earliest due first, pods that wait before all windows, windows that are only foretold after all that are declared, then
priority. An endpoint's start is the latest at which it and
all that is due after it are in time (`agent.plan.physics`), less `warm_ahead`. While nothing must be fetched now, one model whose
start is ahead is fetched early.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from agent.core.assignment import Assignment, EndpointWant, ImageWant, ModelWant, Window
from agent.core.inventory import GpuVerdict, ImageState, Inventory, ModelState
from agent.core.refs import Digest, EndpointKey, ImageRef
from agent.core.units import format_duration, format_size
from agent.plan.decision import EndpointPlan, HydrateStep, NodePlan, PullStep, Stage, ViewWant
from agent.plan.lacking import (
    image_bytes,
    image_is_warm,
    model_bytes,
    model_digest,
    model_is_warm,
    model_state,
    usual_rate,
)
from agent.plan.memory import keep_in_memory, memory_starts
from agent.plan.physics import before, share_of
from agent.plan.pins import pins
from agent.plan.room import NextUse, Room, Wanting, make_room
from agent.plan.timing import Timing, timing

_FAR = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the plan may assume: `rate_bytes_per_second` until a download has been measured on this node.

    `early` is over how long before their starts the nodes of a fleet spread what they fetch early; 0: nothing is.
    """

    warm_ahead: timedelta = timedelta(minutes=30)
    early: timedelta = timedelta(0)
    rate_bytes_per_second: float = 100e6


def plan(assignment: Assignment | None, inventory: Inventory, now: datetime, limits: Limits) -> NodePlan:
    """Decide what this node does now. Every step and every endpoint carries the sentence that says why."""
    if assignment is None:
        return NodePlan()
    wants = sorted(assignment.endpoints, key=lambda e: _urgency(e, inventory, now))
    margin = limits.warm_ahead * (1 + share_of(assignment.node) / 4)
    timed = timing(wants, inventory, now, usual_rate(inventory, limits.rate_bytes_per_second), margin)
    rows = _rows(wants, inventory, now, timed)
    uses = _uses(rows, inventory, now, limits)
    room = make_room(_wanting(rows, inventory, now), uses, inventory.models)
    rows = [_with_room(row, inventory, room) for row in rows]
    pulls, hydrations = _pulls(rows, inventory, now), _hydrations(rows, inventory, now)
    early_at: datetime | None = None
    if not pulls and not hydrations:
        hydrations, early_at = _early(rows, inventory, now, limits, assignment.node)
    return NodePlan(
        pulls=pulls,
        hydrations=hydrations,
        evictions=room.evictions,
        views=tuple(sorted(_views(assignment.endpoints, inventory))),
        memory=keep_in_memory(assignment.endpoints, inventory, pulls, hydrations, now),
        pins=pins((r.told for r in rows), now),
        endpoints=tuple(r.told for r in rows),
        wake_at=min(
            (t for t in (*_turning_points(rows, inventory), early_at, timed.turns_at) if t and t > now), default=None
        ),
        images=tuple({i.ref: i for e in assignment.endpoints for i in e.images}.values()),
        models=_unique_models(assignment.endpoints),
        refusals=room.refusals,
        needed={digest: use.why for digest, use in uses.items() if use.why},
    )


def gpu_is_fit(want: EndpointWant, inventory: Inventory) -> bool:
    """True if the endpoint needs no GPU or the node's are healthy."""
    return want.gpus == 0 or inventory.gpu.verdict is GpuVerdict.HEALTHY


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One endpoint on its way through the plan."""

    want: EndpointWant
    images: tuple[ImageWant, ...]  # not warm yet
    models: tuple[ModelWant, ...]
    waiting: bool
    active: bool  # its steps may run now
    told: EndpointPlan

    @property
    def due(self) -> datetime | None:
        return None if self.waiting else self.told.due


def _rows(wants: Iterable[EndpointWant], inventory: Inventory, now: datetime, timed: Timing) -> list[_Row]:
    return [_row(want, inventory, now, timed.starts.get(want.key), timed.late.get(want.key)) for want in wants]


def _row(
    want: EndpointWant, inventory: Inventory, now: datetime, start: datetime | None, late: datetime | None
) -> _Row:
    images = tuple(i for i in want.images if not image_is_warm(i, inventory))
    models = tuple(m for m in want.models if not model_is_warm(m, inventory))
    window = want.next_window(now)
    waiting = want.key in inventory.waiting
    fit = inventory.gpu.verdict is not GpuVerdict.UNHEALTHY or want.gpus == 0
    active = fit and (waiting or (start is not None and start <= now))
    stage, reason = _stage(
        want, inventory, now, active=active, missing=bool(images or models), window=window, start=start, late=late
    )
    told = EndpointPlan(
        want=want,
        stage=stage,
        reason=reason,
        start_at=start,
        due=window.ready_by if window else None,
        ready_at=late,
        missing_bytes=sum(image_bytes(i, inventory) for i in images) + sum(model_bytes(m, inventory) for m in models),
    )
    return _Row(want=want, images=images, models=models, waiting=waiting, active=active, told=told)


def _urgency(
    want: EndpointWant, inventory: Inventory, now: datetime
) -> tuple[bool, bool, datetime, int, int, EndpointKey]:
    promise = want.next_promise(now)
    window = promise or want.next_window(now)
    due, confidence = (window.ready_by, window.confidence) if window else (_FAR, 0)
    return want.key not in inventory.waiting, promise is None, due, -confidence, -want.priority, want.key


def _stage(
    want: EndpointWant,
    inventory: Inventory,
    now: datetime,
    *,
    active: bool,
    missing: bool,
    window: Window | None,
    start: datetime | None,
    late: datetime | None,
) -> tuple[Stage, str]:
    if not want.images and not want.models:
        return Stage.IDLE, "nothing to warm: no image and no model is assigned yet"
    if unfit := _unfit(want, inventory):
        return Stage.FAILING, unfit
    if not missing:
        return Stage.READY, "every image and model is proved warm here"
    if (error := _first_error(want, inventory)) and not (start and start > now and _only_lacks_room(want, inventory)):
        return Stage.FAILING, error
    if window and now >= window.ready_by:
        since = format_duration(now - window.ready_by)
        return Stage.LATE, f"the window opened {since} ago and {_missing_text(want, inventory)} is not warm"
    if late:
        left = format_duration(late - now)
        return Stage.LATE, f"its window cannot be met: {_missing_text(want, inventory)} takes {left} from now at best"
    if active:
        why = "a pod waits for it" if want.key in inventory.waiting else "its window is near"
        return Stage.WARMING, f"{why}: {_missing_text(want, inventory)} is on its way"
    if start is not None:
        return Stage.SCHEDULED, f"starts in {format_duration(start - now)}"
    return Stage.IDLE, "no window within the plan and no pod waits for it"


def _unfit(want: EndpointWant, inventory: Inventory) -> str:
    """Return why nothing that comes could make this node ready for an endpoint, "" if something could."""
    if not gpu_is_fit(want, inventory):
        return f"needs {want.gpus} GPU: {inventory.gpu.verdict}, {inventory.gpu.reason}"
    return inventory.unproved(want.runtime_handler) if want.images else ""


def _missing_text(want: EndpointWant, inventory: Inventory) -> str:
    names = [str(i.ref) for i in want.images if not image_is_warm(i, inventory)]
    names += [f"model {m.name}" for m in want.models if not model_is_warm(m, inventory)]
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _first_error(want: EndpointWant, inventory: Inventory) -> str:
    for image in want.images:
        state = inventory.images.get(image.ref)
        if state and state.error and not image_is_warm(image, inventory):
            return f"{image.ref}: {state.error}"
    for model in want.models:
        found = model_state(model, inventory)
        error = found.error if found else inventory.unresolved.get(str(model.uri), "")
        if error and not model_is_warm(model, inventory):
            return f"model {model.name}: {error}"
    return ""


def _only_lacks_room(want: EndpointWant, inventory: Inventory) -> bool:
    """Say whether what failed failed for want of room alone: before the start, room is nobody's to make."""
    states = [s for m in want.models if (s := model_state(m, inventory)) and s.error]
    images = [i for i in want.images if (found := inventory.images.get(i.ref)) and found.error]
    return not images and all(s.short_bytes > 0 for s in states)


def _early(
    rows: Iterable[_Row], inventory: Inventory, now: datetime, limits: Limits, node: str
) -> tuple[tuple[HydrateStep, ...], datetime | None]:
    """Return the one model to fetch early now; else when the next one may be.

    It takes room that is free, and leaves a quarter of the disk: nothing is evicted for what is not due.
    """
    later: list[datetime] = []
    spare = inventory.cache.free_bytes - inventory.cache.capacity_bytes / 4
    for row in rows:
        start, due = row.told.start_at, row.told.due
        if row.active or row.told.stage is not Stage.SCHEDULED or start is None or due is None:
            continue
        fits = [m for m in row.models if model_bytes(m, inventory) < spare and m.size_bytes]
        fits = [m for m in fits if not _backed_off(model_state(m, inventory), now)]
        if not fits or not limits.early:
            continue
        at = start - limits.early * (1 - share_of(f"{node} {row.want.key}"))
        if at > now:
            later.append(at)
            continue
        reason = f"{row.want.key} needs it by {due:%Y-%m-%d %H:%M} UTC, and nothing is due before"
        return (
            HydrateStep(want=fits[0], endpoints=(row.want.key,), due=due, urgent=False, early=True, reason=reason),
        ), None
    return (), min(later, default=None)


def _pulls(rows: Iterable[_Row], inventory: Inventory, now: datetime) -> tuple[PullStep, ...]:
    """One step for each image, in the order of its most urgent endpoint."""
    steps: dict[ImageRef, PullStep] = {}
    for row in rows:
        for want in row.images if row.active else ():
            if _backed_off(inventory.images.get(want.ref), now):
                continue
            if before := steps.get(want.ref):
                steps[want.ref] = replace(before, endpoints=(*before.endpoints, row.want.key))
                continue
            steps[want.ref] = PullStep(
                want=want,
                runtime_handler=row.want.runtime_handler,
                endpoints=(row.want.key,),
                due=row.due,
                urgent=row.waiting,
                reason=f"{row.want.key} needs it: {row.told.reason}",
            )
    return tuple(steps.values())


def _hydrations(rows: Iterable[_Row], inventory: Inventory, now: datetime) -> tuple[HydrateStep, ...]:
    """One step for each model version, in the order of its most urgent endpoint."""
    steps: dict[Digest | str, HydrateStep] = {}
    for row in rows:
        for want in row.models if row.active else ():
            key = model_digest(want, inventory) or str(want.uri)
            if _backed_off(model_state(want, inventory), now):
                continue
            if before := steps.get(key):
                steps[key] = replace(before, endpoints=(*before.endpoints, row.want.key))
                continue
            steps[key] = HydrateStep(
                want=want,
                endpoints=(row.want.key,),
                due=row.due,
                urgent=row.waiting,
                reason=f"{row.want.key} needs it: {row.told.reason}",
            )
    return tuple(steps.values())


def _backed_off(state: ImageState | ModelState | None, now: datetime) -> bool:
    return state is not None and state.retry_at is not None and state.retry_at > now


def _uses(rows: Iterable[_Row], inventory: Inventory, now: datetime, limits: Limits) -> dict[Digest, NextUse]:
    """Return, by version, who needs it next; versions that no endpoint is assigned are left out."""
    uses: dict[Digest, NextUse] = {}
    rate = usual_rate(inventory, limits.rate_bytes_per_second)
    for row in rows:
        window = row.want.next_window(now)
        for want in row.want.models:
            digest = model_digest(want, inventory)
            if digest is None:
                continue
            near = row.told.start_at is not None and row.told.start_at <= now
            state = inventory.models.get(digest)
            size = (state.total_bytes if state else 0) or want.size_bytes
            use = NextUse(
                why=f"a pod waits for {row.want.key}" if row.waiting else f"a window of {row.want.key}" if near else "",
                fetch_by=before(window.ready_by, size / rate + limits.warm_ahead.total_seconds()) if window else None,
                priority=row.want.priority,
            )
            uses[digest] = use.joined(uses[digest]) if digest in uses else use
    return uses


def _wanting(rows: Iterable[_Row], inventory: Inventory, now: datetime) -> Iterator[Wanting]:
    """Yield the versions that lack room, the most urgent first."""
    seen = set()
    for row in rows:
        window = row.want.next_window(now)
        for want in row.models if row.active else ():
            state = model_state(want, inventory)
            if state and state.short_bytes > 0 and state.digest not in seen:
                seen.add(state.digest)
                until = now if row.waiting or window is None else window.until
                yield Wanting(digest=state.digest, short_bytes=state.short_bytes, until=until)


def _with_room(row: _Row, inventory: Inventory, room: Room) -> _Row:
    """Say of an endpoint that lacks room whether it is being made."""
    for want in row.models if row.told.stage in (Stage.FAILING, Stage.LATE) else ():
        digest = model_digest(want, inventory)
        state = inventory.models.get(digest) if digest else None
        if state and digest and digest in room.refusals:
            reason = f"model {want.name}: {state.error}; {room.refusals[digest]}"
            return replace(row, told=replace(row.told, stage=Stage.FAILING, reason=reason))
        if state and digest in room.made_for:
            reason = f"room for model {want.name} is being made: {format_size(state.short_bytes)} are lacking"
            return replace(row, told=replace(row.told, stage=Stage.WARMING, reason=reason))
    return row


def _views(endpoints: Iterable[EndpointWant], inventory: Inventory) -> Iterator[ViewWant]:
    for endpoint in endpoints:
        for want in endpoint.models:
            digest = model_digest(want, inventory)
            if digest and model_is_warm(want, inventory):
                yield ViewWant(endpoint=endpoint.key, name=want.name, digest=digest)


def _unique_models(endpoints: Iterable[EndpointWant]) -> tuple[ModelWant, ...]:
    return tuple({m.digest or str(m.uri): m for e in endpoints for m in e.models}.values())


def _turning_points(rows: Iterable[_Row], inventory: Inventory) -> Iterator[datetime]:
    for row in rows:
        if row.told.start_at:
            yield row.told.start_at
        for window in row.want.windows:
            yield from (window.ready_by, window.until)
    yield from memory_starts((r.want for r in rows), inventory)
    yield from (s.retry_at for s in inventory.images.values() if s.retry_at)
    yield from (s.retry_at for s in inventory.models.values() if s.retry_at)
