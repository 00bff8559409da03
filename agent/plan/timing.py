"""When the work of each endpoint must start on this node, and which windows cannot be met any more. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from agent.core.assignment import EndpointWant
from agent.core.inventory import Inventory
from agent.core.refs import EndpointKey
from agent.plan.lacking import image_bytes, image_is_warm, model_bytes, model_is_warm, rate_now
from agent.plan.physics import Job, lasting, late_jobs, latest_starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """For endpoints that have a window: the latest safe start of each; and of each that will be late, when it is done at best."""

    starts: Mapping[EndpointKey, datetime] = field(default_factory=dict)
    late: Mapping[EndpointKey, datetime] = field(default_factory=dict)
    turns_at: datetime | None = None  # when the first is late if nothing comes in until then


def timing(
    wants: Sequence[EndpointWant], inventory: Inventory, now: datetime, usual: float, margin: timedelta
) -> Timing:
    """Return the timing of `wants`, most urgent first. `usual` is in bytes per second; starts are `margin` earlier than needed.

    What several need is fetched once, for the first of them. While downloads are slower than usual, everything in the queue is taken
    to be so for a while: starts are that much earlier.
    """
    fetched, jobs = set[object](), list[Job[EndpointKey]]()
    for want in wants:
        lacking = _seconds(want, inventory, usual)
        seconds = sum(s for item, s in lacking.items() if item not in fetched)
        fetched |= lacking.keys()
        if window := want.next_window(now):
            jobs.append(Job(key=want.key, due=window.ready_by, seconds=seconds))
    jobs.sort(key=lambda job: job.due)  # a stable sort: those that a pod waits for stand where they are due
    share = rate_now(inventory, usual) / usual
    work = sum(job.seconds for job in jobs)
    lost = timedelta(seconds=lasting(work, share) - work)
    turns = [at for at, job in zip(latest_starts(jobs, lost), jobs, strict=True) if job.seconds and at > now]
    return Timing(
        starts=dict(zip((j.key for j in jobs), latest_starts(jobs, margin + lost), strict=True)),
        late={late.job.key: late.done for late in late_jobs(jobs, now, timedelta(0), share) if late.job.due > now},
        turns_at=min(turns, default=None),
    )


def _seconds(want: EndpointWant, inventory: Inventory, usual: float) -> dict[object, float]:
    """Return how long each item takes that an endpoint lacks."""
    lacking: dict[object, int] = {
        i.ref: image_bytes(i, inventory) for i in want.images if not image_is_warm(i, inventory)
    }
    lacking |= {m.digest or m.uri: model_bytes(m, inventory) for m in want.models if not model_is_warm(m, inventory)}
    return {item: size / usual for item, size in lacking.items()}
