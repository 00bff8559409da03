"""When the work of each endpoint must start on this node, and which windows cannot be met any more. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from agent.core.assignment import EndpointWant, Window
from agent.core.inventory import Inventory
from agent.core.refs import EndpointKey
from agent.plan.lacking import image_bytes, image_is_warm, model_bytes, model_is_warm, rate_now
from agent.plan.physics import Job, before, just_after, lasting, late_jobs, latest_starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """For endpoints that have a window: the latest safe start of each; and of each that will be late, when it is done at best.

    Only a declared window that has not opened can be late, also behind one of the same endpoint that has: what was only foretold
    waits for it.
    """

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
    lacking = {want.key: _seconds(want, inventory, usual) for want in wants}
    share = rate_now(inventory, usual) / usual
    jobs = _jobs(((want.key, want.next_window(now)) for want in wants), lacking)
    promised = _jobs(((want.key, want.next_promise(now)) for want in wants), lacking)
    ahead = {want.key: window.ready_by for want in wants if (window := want.promise_ahead(now))}
    turns = _turns(promised, ahead, _lost(promised, share))
    starts = latest_starts(jobs, margin + _lost(jobs, share))
    return Timing(
        starts=dict(zip((j.key for j in jobs), starts, strict=True)),
        late={
            late.job.key: late.done
            for late in late_jobs(promised, now, timedelta(0), share)
            if late.job.key in ahead and late.done > ahead[late.job.key]
        },
        turns_at=min((later for at in turns if (later := just_after(at)) > now), default=None),
    )


def _turns(
    jobs: Sequence[Job[EndpointKey]], ahead: Mapping[EndpointKey, datetime], lost: timedelta
) -> Iterator[datetime]:
    """Yield the last moments at which work can begin and meet the windows that have not opened.

    Work for a window that is open is done first; the endpoint's next one may open before that is through.
    """
    begun = 0.0
    for at, job in zip(latest_starts(jobs, lost), jobs, strict=True):
        begun += job.seconds
        opens = ahead.get(job.key)
        if job.seconds and opens == job.due:
            yield at
        elif job.seconds and opens:
            yield before(opens, begun + lost.total_seconds())


def _jobs(
    due: Iterable[tuple[EndpointKey, Window | None]], lacking: Mapping[EndpointKey, Mapping[object, float]]
) -> list[Job[EndpointKey]]:
    """Return the work in order of due times, also what a pod waits for; of those due together, in the order given."""
    fetched, jobs = set[object](), list[Job[EndpointKey]]()
    for at, key in sorted(((w.ready_by, key) for key, w in due if w), key=lambda pair: pair[0]):
        seconds = sum(s for item, s in lacking[key].items() if item not in fetched)
        fetched |= lacking[key].keys()
        jobs.append(Job(key=key, due=at, seconds=seconds))
    return jobs


def _lost(jobs: Iterable[Job[EndpointKey]], share: float) -> timedelta:
    work = sum(job.seconds for job in jobs)
    return timedelta(seconds=lasting(work, share) - work)


def _seconds(want: EndpointWant, inventory: Inventory, usual: float) -> dict[object, float]:
    """Return how long each item takes that an endpoint lacks."""
    lacking: dict[object, int] = {
        i.ref: image_bytes(i, inventory) for i in want.images if not image_is_warm(i, inventory)
    }
    lacking |= {m.digest or m.uri: model_bytes(m, inventory) for m in want.models if not model_is_warm(m, inventory)}
    return {item: size / usual for item, size in lacking.items()}
