"""How many pods an endpoint's windows are worth keeping, from what past ones needed: at most what 95 of 100 need. Pure.

A pod that is kept through a window saves a start where one had to start in it, and costs the time in which it would have idled: what
runs anyway costs nothing more. The n-th pod is worth it where, over the past windows, what it idles is no more than what it saves, at
a price. An endpoint used for a few minutes twice a day is not worth an hour of a GPU each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from agent.core.assignment import Window
from agent.core.names import PREFIX
from agent.demand.endpoint import Endpoint
from agent.demand.history import SLOT_SECONDS, slot_of, slot_start
from agent.demand.peaks import Peak, foretold
from agent.demand.windows import MAX_WINDOWS, windows

LEAST_WINDOWS = 5
_AHEAD = timedelta(days=8)  # so that a weekly window is in sight
_WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """Pods needed at the peak of each slot from number `first` on; None where that is not known."""

    first: int
    pods: Sequence[int | None]

    def at(self, slot: int) -> int | None:
        """Return the pods of a slot; None where they are not known."""
        return self.pods[slot - self.first] if 0 <= slot - self.first < len(self.pods) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a start on a warm node takes, and for how long a GPU may idle for each second of it that nobody waits."""

    cold_seconds: float
    worth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """What to keep in windows, and why. Hours and seconds are those of a week; hours are added to what runs anyway."""

    window: Window | None
    p95_pods: int
    pods: int
    pod_hours: float
    gpu_hours: float
    cold_seconds_saved: float
    windows: int
    covered: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spell:
    """A past window: pods just before it, and in each of its slots the seconds and pods."""

    window: Window
    before: int
    slots: tuple[tuple[float, int], ...]

    @property
    def peak(self) -> int:
        return max(pods for _, pods in self.slots)

    def idle_seconds(self, n: int) -> float:
        """Return for how long the n-th pod would have had nothing to do."""
        return sum(seconds for seconds, pods in self.slots if pods < n)

    def starts(self, n: int) -> bool:
        """Say whether the n-th pod had to start in it."""
        return self.before < n <= self.peak


def recommend(endpoint: Endpoint, needed: Needed, now: datetime, terms: Terms) -> Recommendation:
    """Return what to keep in the windows of an endpoint, judged by those that have ended since `needed` begins."""
    ahead = windows(endpoint, now, _AHEAD)
    coming = next((w for w in ahead if w.ready_by >= now), None)
    past = list(_past(endpoint, slot_start(needed.first), now))
    spells = list(_spells(past, needed))
    if coming is None or len(spells) < LEAST_WINDOWS:
        return _none(coming, len(spells), endpoint, endless=any(w.until > now + _AHEAD for w in ahead))
    zone = ZoneInfo(endpoint.zone)
    peaks = [Peak(start=s.window.ready_by.astimezone(zone), pods=s.peak) for s in spells]
    told = foretold(peaks, coming.ready_by.astimezone(zone))
    pods = next((n for n in range(told.pods) if not _pays(n + 1, spells, endpoint.gpus, terms)), told.pods)
    weeks = len(spells) / len(past) * ((now - slot_start(needed.first)) / _WEEK)
    idle = sum(s.idle_seconds(n) for s in spells for n in range(1, pods + 1))
    starts = sum(s.starts(n) for s in spells for n in range(1, pods + 1))
    return Recommendation(
        window=coming,
        p95_pods=told.pods,
        pods=pods,
        pod_hours=idle / 3600 / weeks,
        gpu_hours=idle / 3600 / weeks * endpoint.gpus,
        cold_seconds_saved=starts * terms.cold_seconds / weeks,
        windows=told.windows,
        covered=told.covered,
        why=_why(pods, told.pods, spells, endpoint, terms),
    )


def _spells(past: Sequence[Window], needed: Needed) -> Iterator[_Spell]:
    """Yield the windows that are wholly known, with what ran just before each."""
    for window in past:
        first, last = slot_of(window.ready_by), slot_of(window.until - timedelta(microseconds=1))
        before, inside = needed.at(first - 1), [needed.at(slot) for slot in range(first, last + 1)]
        known = [pods for pods in inside if pods is not None]
        if before is not None and len(known) == len(inside):
            seconds = (_overlap(window, slot) for slot in range(first, last + 1))
            yield _Spell(window=window, before=before, slots=tuple(zip(seconds, known, strict=True)))


def _past(endpoint: Endpoint, begin: datetime, now: datetime) -> Iterator[Window]:
    """Yield the declared windows between `begin` and `now`; holidays and events are not known here.

    Each is taken from the look at the week it begins in. That look reaches a week further, so it shows where the window ends.
    """
    at = begin
    while at < now:
        found = windows(endpoint, at, 2 * _WEEK)
        end = min(at + _WEEK, found[-1].ready_by) if len(found) == MAX_WINDOWS else at + _WEEK
        yield from (w for w in found if at <= w.ready_by < end and w.until <= now)
        at = end


def _overlap(window: Window, slot: int) -> float:
    begin = slot_start(slot)
    end = min(window.until, begin + timedelta(seconds=SLOT_SECONDS))
    return (end - max(window.ready_by, begin)).total_seconds()


def _pays(n: int, spells: Sequence[_Spell], gpus: int, terms: Terms) -> bool:
    idle, starts = sum(s.idle_seconds(n) for s in spells), sum(s.starts(n) for s in spells)
    return idle * max(gpus, 1) <= terms.worth * terms.cold_seconds * starts


def _none(coming: Window | None, known: int, endpoint: Endpoint, *, endless: bool) -> Recommendation:
    if not endpoint.schedule:
        why = f"no window is declared: `prewarm replay` proposes a {PREFIX}schedule where traffic is regular"
    elif coming is None and endless:
        why = "its window stays open for 8 days and more: for pods that always run, set the workload's own minimum"
    elif coming is None:
        why = "no window begins within 8 days"
    else:
        why = f"{known} of its past windows are known, at least {LEAST_WINDOWS} are needed"
    return Recommendation(
        window=coming,
        p95_pods=0,
        pods=0,
        pod_hours=0,
        gpu_hours=0,
        cold_seconds_saved=0,
        windows=known,
        covered=1.0,
        why=why,
    )


def _why(pods: int, p95: int, spells: Sequence[_Spell], endpoint: Endpoint, terms: Terms) -> str:
    if not p95:
        return f"19 of 20 of its windows need no pod ({len(spells)} seen)"
    if pods == p95:
        return f"as {PREFIX}replicas says" if endpoint.replicas == pods else f'set {PREFIX}replicas: "{pods}"'
    idle, starts = sum(s.idle_seconds(pods + 1) for s in spells), sum(s.starts(pods + 1) for s in spells)
    unit, gpus = ("GPU", endpoint.gpus) if endpoint.gpus else ("pod", 1)
    saved = starts * terms.cold_seconds
    price = f"{idle * gpus / saved:.0f} {unit}-seconds for each cold second saved" if saved else "and save no start"
    return f"pod {pods + 1} would idle {price}: more than --worth {terms.worth:g}"
