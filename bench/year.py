"""A simulated year: are declared windows met wherever an oracle could meet them, and are the others announced?

200 endpoints on 50 nodes, in ten time zones, with holidays, one-off events and both DST changes; new versions at any time, also
shortly before a window; nodes that are lost and come back empty; rates that change from hour to hour, nodes that are slow,
outages of the source. Placement, windows, the node's plan, its order of downloads, its pace and the forecast are the product's own code in
simulated time; a node fetches one model at a time at its true rate, which nobody tells the plan.

What a node says reaches people as the product has it: a rate counts once it was measured, a status is written at most every 30 s,
and the planner takes its time. A cause appears when the bytes lacking no longer fit before the due time at the rate that holds then
(in an outage: that before it, for nobody knows how long it lasts; on an idle node: the last one); from there to the
announcement is the delay.

The oracle knows every true rate and works on the same nodes without a pause, earliest due first, what is due earlier first at
any moment, and before that what is overdue (EDF: optimal on one resource with release times). A window is feasible if the oracle has its version there when it is due.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from agent.core.assignment import Assignment, EndpointWant, ModelWant, Window
from agent.core.inventory import CacheUse, Inventory, ModelLevel, ModelState
from agent.core.refs import Digest, EndpointKey, parse_model_uri
from agent.demand.calendar import Almanac, read_calendar
from agent.demand.endpoint import Endpoint, Schedule, WorkloadRef
from agent.demand.windows import windows
from agent.fleet.loads import Loads
from agent.fleet.placement import place
from agent.fleet.yields import NodeYield
from agent.kube.objects import Condition, NodeView
from agent.plan.decision import HydrateStep, NodePlan, gives_way
from agent.plan.pace import MOST_SAMPLES, Pace
from agent.plan.planning import Limits, plan

GB = 10**9
START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = 3600.0
PIECE = 92  # days; each piece begins with nodes that hold nothing
STATUS_SECONDS = 30.0  # between two writes of a node's status
PLANNER_SECONDS = 5.0  # from there to the Event: debounce, a plan of 5,000 nodes, a write
MEASURE_SECONDS = 20.0  # two samples of a download's rate
LIMITS = Limits(warm_ahead=timedelta(minutes=30), early=timedelta(hours=6))
ZONES = (
    "Europe/Berlin", "America/New_York", "America/Los_Angeles", "Asia/Tokyo", "Australia/Sydney", "Asia/Kolkata", "America/Santiago",
    "Pacific/Chatham", "Africa/Cairo", "UTC",
)  # fmt: skip
REF = WorkloadRef(api_version="apps/v1", kind="Deployment", namespace="n", name="n", uid="u")


def at(seconds: float) -> datetime:
    """Return simulated seconds as a time."""
    return START + timedelta(seconds=seconds)


def seconds_of(moment: datetime) -> float:
    """Return a time as simulated seconds."""
    return (moment - START).total_seconds()


Due = tuple[EndpointKey, datetime]


class Line:
    """A node's true rate: bytes per second, constant within each hour; 0 in outages."""

    def __init__(self, rng: Random, hours: int, outages: set[int]) -> None:
        base = rng.choice([60e6, 120e6, 250e6, 250e6, 500e6]) * rng.uniform(0.8, 1.2)
        self.rates = [0.0 if h in outages else base * min(1.3, rng.lognormvariate(0, 0.25)) for h in range(hours + 999)]

    def rate(self, now: float) -> float:
        """Return the rate of this hour."""
        return self.rates[int(now // HOUR)]

    def done_at(self, now: float, size: float, until: float) -> float:
        """Return when so many bytes are through, infinity if not by `until`."""
        while now < until:
            edge = min((now // HOUR + 1) * HOUR, until)
            could = self.rate(now) * (edge - now)
            if could >= size:
                return now + size / self.rate(now)
            size, now = size - could, edge
        return float("inf")

    def bytes_between(self, begin: float, end: float) -> float:
        """Return what comes through between two times."""
        total = 0.0
        while begin < end:
            edge = min((begin // HOUR + 1) * HOUR, end)
            total += self.rate(begin) * (edge - begin)
            begin = edge
        return total


@dataclass
class Job:
    """For the oracle: bytes to have by `due`, from `release` on, until `cancel`."""

    due: float
    release: float
    size: float
    cancel: float = float("inf")
    done: float = float("inf")


def oracle(line: Line, jobs: list[Job], end: float) -> None:
    """Fetch preemptively, earliest due first; sets `done`."""
    left = {id(j): j.size for j in jobs}
    times = sorted({j.release for j in jobs} | {j.cancel for j in jobs if j.cancel < end} | {end})
    coming, ready = sorted(jobs, key=lambda j: j.release), list[tuple[float, int, Job]]()
    tie, n = itertools.count(), 0
    for now, following in itertools.pairwise(times):
        while n < len(coming) and coming[n].release <= now:
            heapq.heappush(ready, (coming[n].due, next(tie), coming[n]))
            n += 1
        while ready and now < following:
            job = ready[0][2]
            if job.cancel <= now:
                heapq.heappop(ready)
                continue
            done = line.done_at(now, left[id(job)], following)
            if done > following:
                left[id(job)] -= line.bytes_between(now, following)
                break
            job.done, now = done, done  # noqa: PLW2901 (work goes on from here)
            heapq.heappop(ready)


@dataclass
class Node:
    """One node as the plan sees it, and what happens to it."""

    name: str
    line: Line
    up: bool = True
    now: float = 0.0
    wants: tuple[EndpointWant, ...] = ()
    held: dict[Digest, float] = field(default_factory=dict)  # bytes
    sizes: dict[Digest, int] = field(default_factory=dict)
    short: dict[Digest, tuple[int, float]] = field(default_factory=dict)  # bytes lacking, when to try again
    running: HydrateStep | None = None
    pace: Pace = field(default_factory=Pace)
    sampled: float = 0.0
    jobs: list[Job] = field(default_factory=list)
    open_jobs: dict[EndpointKey, tuple[Digest, Job]] = field(default_factory=dict)
    announced: dict[Due, float] = field(default_factory=dict)
    appeared: dict[Due, float] = field(default_factory=dict)
    written: float = float("-inf")
    decided: float = 0.0
    last_rate: float = 100e6
    capacity: int = 3000 * GB
    evictions: int = 0

    def has(self, digest: Digest) -> bool:
        """Say whether a version is here whole."""
        return digest in self.sizes and self.held.get(digest, 0) >= self.sizes[digest]

    def advance(self, to: float) -> None:
        """Let time pass, hour by hour."""
        while self.now < to:
            edge = min((self.now // HOUR + 1) * HOUR, to)
            if self.running and self.running.want.digest:
                self._fetch(self.running.want.digest, edge)
            else:
                self.pace, self.sampled = self.pace.paused(), edge
            self.now = edge

    def _fetch(self, digest: Digest, to: float) -> None:
        rate = self.line.rate(self.now)
        self.held[digest] = min(self.sizes[digest], self.held.get(digest, 0) + rate * (to - self.now))
        if self.sizes[digest] - self.held[digest] < 1:
            self.held[digest] = self.sizes[digest]
        if not rate:
            self.pace, self.sampled = self.pace.paused(), to
            return
        self.last_rate = rate
        samples = int((to - self.sampled) // 10)
        for _ in range(min(MOST_SAMPLES, samples)):
            self.pace = self.pace.with_sample(rate)
        self.sampled += 10 * samples

    def decide(self) -> float:
        """Plan, act, and return when to look again if nothing happens."""
        self.running = None if self.running and self.has(self.running.want.digest or Digest("")) else self.running
        for _ in range(6):
            decided = plan(Assignment(node=self.name, endpoints=self.wants), self.inventory(), at(self.now), LIMITS)
            for gone in decided.evictions:
                self.held.pop(gone.digest, None)
                self.evictions += 1
            if decided.evictions:  # there is room: the store has what lacked it tried again at once
                self.short.clear()
                continue
            steps = [
                s for s in decided.hydrations if s.want.digest and self.short.get(s.want.digest, (0, 0))[1] <= self.now
            ]
            first = steps[0] if steps else None
            if self.running is None or first is None or self.running not in steps or gives_way(self.running, first):
                self.running = first
            if not self.running or not self.lacks_room(self.running.want):
                break
            self.running = None
        else:
            self.running = None
        self._tell(decided)
        self._appear()
        ends = [seconds_of(decided.wake_at)] if decided.wake_at else []
        if self.running and self.running.want.digest:
            digest = self.running.want.digest
            ends.append(self.line.done_at(self.now, self.sizes[digest] - self.held.get(digest, 0), self.now + 6 * HOUR))
            hour = (self.now // HOUR + 1) * HOUR
            ends += [hour, hour + MEASURE_SECONDS]
            if self.now % HOUR < MEASURE_SECONDS:
                ends.append(hour - HOUR + MEASURE_SECONDS)
            if self.line.rate(self.now) and self.pace.running < 2:  # not measured yet since it began
                ends.append(self.now + MEASURE_SECONDS)
        return max(self.now + 1, min(ends, default=float("inf")))

    def lacks_room(self, want: ModelWant) -> bool:
        """Refuse a download that does not fit, as the store does: with the bytes that are lacking."""
        assert want.digest
        lacking = round(sum(self.held.values()) + want.size_bytes - self.held.get(want.digest, 0) - self.capacity)
        if lacking > 0:
            self.short[want.digest] = (lacking, self.now + 300)
        return lacking > 0

    def inventory(self) -> Inventory:
        """Return what the plan is told of the store."""
        states = {}
        for digest, done in {**dict.fromkeys(self.short, 0.0), **self.held}.items():
            whole, (lacking, retry) = self.has(digest), self.short.get(digest, (0, 0.0))
            states[digest] = ModelState(
                digest=digest,
                level=ModelLevel.COMMITTED if whole else ModelLevel.PARTIAL,
                done_bytes=int(done),
                total_bytes=self.sizes[digest],
                own_bytes=int(done),
                short_bytes=lacking,
                error="no room" if lacking else "",
                retry_at=at(retry) if lacking else None,
                busy=(busy := self.running is not None and self.running.want.digest == digest),
                rate_bytes_per_second=self.pace.present_bytes_per_second if busy else 0.0,
            )
        used = int(sum(self.held.values()))
        cache = CacheUse(used_bytes=used, free_bytes=self.capacity - used, capacity_bytes=self.capacity)
        return Inventory(models=states, cache=cache, pace_bytes_per_second=self.pace.bytes_per_second,
            present_bytes_per_second=self.pace.present_bytes_per_second, proved=True)  # fmt: skip

    def found(self) -> NodeYield:
        """Return what the planner knows of it."""
        missing = {
            str(m.uri): int(self.sizes[m.digest] - self.held.get(m.digest, 0))
            for w in self.wants
            for m in w.models
            if m.digest
        }
        pace = self.pace.bytes_per_second
        return NodeYield(
            bytes_per_second=pace or 100e6, measured=bool(pace), capacity_bytes=self.capacity, missing=missing,
            zone=f"z{int(self.name[1:]) % 3}",
        )  # fmt: skip

    def _tell(self, decided: NodePlan) -> None:
        """Note when people are told of what this plan says will be late; by windows, as the planner reads it."""
        late = {
            (e.want.key, w.ready_by)
            for e in decided.endpoints
            if e.ready_at and (w := e.want.promise_ahead(at(self.now))) and w.ready_by < e.ready_at
        }
        news = late - self.announced.keys()
        gone = {due for due in self.announced.keys() - late if seconds_of(due[1]) > self.now}
        if news or gone:
            self.written = max(self.now, self.written + STATUS_SECONDS)
        self.announced = {due: when for due, when in self.announced.items() if due not in gone}
        self.announced |= dict.fromkeys(news, self.written + PLANNER_SECONDS)

    def _appear(self) -> None:
        """Note since when windows cannot be met, by the rates that hold; the product has no part in this."""
        rate = (self.line.rate(self.now) if self.running else 0.0) or self.last_rate
        due = [(w.ready_by, want) for want in self.wants if (w := want.next_window(at(self.now)))]
        work, late = 0.0, dict[Due, float]()
        for _, want in sorted(due, key=lambda d: d[0]):
            digest = want.models[0].digest or Digest("")
            lacking = 0.0 if self.has(digest) else want.models[0].size_bytes - self.held.get(digest, 0)
            work += lacking / rate
            if lacking and (window := want.promise_ahead(at(self.now))):
                latest = seconds_of(window.ready_by) - work
                if latest < self.now:
                    late[want.key, window.ready_by] = latest if latest > self.decided else self.now
        passed = {d: when for d, when in self.appeared.items() if seconds_of(d[1]) <= self.now}
        self.appeared = passed | {d: self.appeared.get(d, when) for d, when in late.items()}
        self.decided = self.now


@dataclass(frozen=True, kw_only=True)
class Result:
    """One window on one node when it was due; `told` is when people were told that it would be late."""

    due: float
    job: Job | None
    hit: bool
    told: float | None
    appeared: float


class World:
    """The fleet, its planner, and the year."""

    def __init__(self, seed: int, days: int, nodes: int, endpoints: int, first: int = 0) -> None:
        self.rng, self.days = Random(seed), range(first, first + days)
        self.begin, self.end = first * 24 * HOUR, (first + days) * 24 * HOUR
        outages = {self.rng.randrange(first * 24, (first + days) * 24) for _ in range(days // 30)}
        lines = {f"n{n}": Line(self.rng, (first + days) * 24, outages) for n in range(nodes)}
        self.nodes = {name: Node(name=name, line=line, now=self.begin) for name, line in lines.items()}
        self.endpoints = {e.key: e for e in map(self._endpoint, range(endpoints))}
        self.model_bytes = {k: self.rng.choice([8, 16, 30, 60, 140, 200]) * GB for k in self.endpoints}
        self.version = dict.fromkeys(self.endpoints, 0)
        self.seen: dict[EndpointKey, tuple[Window, ...]] = {}
        self.made: dict[EndpointKey, tuple[tuple[int, tuple[Window, ...]], EndpointWant]] = {}
        self.where: Mapping[str, tuple[EndpointKey, ...]] = {}
        self.events: list[tuple[float, int, str, Any]] = []
        self.tie = itertools.count()
        self.results: list[Result] = []
        self.calendar = {
            "holidays": "12-25 C\n01-01 N\n05-01 M",
            "events": "2026-11-27T07:00 14h Sale\n2026-03-29T03:30 2h DST",
        }
        self.wakes: dict[str, float] = {}

    def _endpoint(self, n: int) -> Endpoint:
        zone = ZONES[n % len(ZONES)]
        crons = [f"{self.rng.randrange(60)} {self.rng.randrange(5, 11)} * * MON-FRI"]
        crons += [f"{self.rng.randrange(60)} {self.rng.choice([1, 2, 3, 19])} * * *"] if n % 3 == 0 else []
        return Endpoint(
            key=EndpointKey(namespace="team", name=f"e{n}"),
            workload=REF,
            schedule=tuple(Schedule(cron=cron, zone=zone) for cron in crons),
            zone=zone,
            nodes=1 + n % 2,
            priority=self.rng.randrange(1000),
            window=timedelta(hours=2),
        )

    def put(self, when: float, kind: str, what: Any = None) -> None:
        """Have something happen."""
        heapq.heappush(self.events, (when, next(self.tie), kind, what))

    def run(self) -> dict[str, int]:
        """Live through the days and count."""
        end = self.end
        for day in self.days:
            self.put(day * 24 * HOUR, "day")
        for key in self.endpoints:
            when = self.begin + self.rng.uniform(1, 10) * 24 * HOUR
            while when < end:
                self.put(when, "release", key)
                when += self.rng.uniform(2, 15) * 24 * HOUR
        for _ in range(len(self.days) * len(self.nodes) // 60):
            self.put(self.rng.uniform(self.begin + 24 * HOUR, end), "lost", self.rng.choice(sorted(self.nodes)))
        while self.events and self.events[0][0] < end:
            now, _, kind, what = heapq.heappop(self.events)
            self._happen(now, kind, what)
        return self._count(end)

    def _happen(self, now: float, kind: str, what: Any) -> None:
        if kind == "wake":
            if self.wakes.get(what) == now:
                self._wake(self.nodes[what], now)
        elif kind == "due":
            self._judge(now, *what)
        elif kind == "day":
            self._new_day(now)
        elif kind == "release":
            self.version[what] += 1
            self._replan(now)
        else:
            node = self.nodes[what]
            node.advance(now)
            node.up = kind == "back"
            if kind == "lost":
                node.held, node.short, node.running, node.wants = {}, {}, None, ()
                self.put(now + self.rng.uniform(1, 24) * HOUR, "back", what)
            self._replan(now)

    def _new_day(self, now: float) -> None:
        almanac = Almanac(calendars=(read_calendar("c", self.calendar, at(now).date()).calendar,))
        self.seen = {k: windows(e, at(now), almanac=almanac) for k, e in self.endpoints.items()}
        for key, found in self.seen.items():
            for window in found:
                if now < seconds_of(window.ready_by) <= now + 24 * HOUR:
                    self.put(seconds_of(window.ready_by), "due", (key, window.ready_by))
        self._replan(now)

    def _want(self, key: EndpointKey) -> EndpointWant:
        mark = (self.version[key], self.seen[key])
        if key in self.made and self.made[key][0] == mark:
            return self.made[key][1]
        digest = Digest(f"sha256:{int(key.name[1:]) * 10**6 + self.version[key]:064x}")
        model = ModelWant(
            name="m", uri=parse_model_uri(f"s3://weights/{key.name}/"), digest=digest, size_bytes=self.model_bytes[key]
        )
        want = EndpointWant(key=key, models=(model,), windows=self.seen[key], priority=self.endpoints[key].priority)
        self.made[key] = (mark, want)
        return want

    def _replan(self, now: float) -> None:
        wants = {k: self._want(k) for k in self.endpoints}
        for node in self.nodes.values():
            node.advance(now)
        ready = (Condition(type="Ready", status="True"),)
        views = [NodeView(name=n.name, conditions=ready) for n in self.nodes.values() if n.up]
        loads = Loads(wants, {n.name: n.found() for n in self.nodes.values() if n.up}, at(now))
        self.where = place(self.endpoints.values(), views, self.where, loads).assigned
        for name, keys in self.where.items():
            self._assign(self.nodes[name], tuple(wants[k] for k in keys), now)

    def _assign(self, node: Node, wants: tuple[EndpointWant, ...], now: float) -> None:
        if wants == node.wants:
            return
        node.wants, node.decided = wants, now  # a cause from outside: nothing follows from it before now
        for want in wants:
            node.sizes[want.models[0].digest or Digest("")] = want.models[0].size_bytes
        node.short.clear()
        asked = {w.key: w for w in wants}
        for key, (digest, job) in list(node.open_jobs.items()):
            if key not in asked or asked[key].models[0].digest != digest:
                job.cancel = now
                del node.open_jobs[key]
        for key, want in asked.items():
            digest = want.models[0].digest or Digest("")
            window = want.next_window(at(now))  # one that is open is due already: first of all, for its traffic is here
            due = seconds_of(window.ready_by) if window else float("inf")
            if key in node.open_jobs and node.open_jobs[key][1].due == float("inf"):
                node.open_jobs[key][1].due = due
            if key not in node.open_jobs and not node.has(digest):
                size = want.models[0].size_bytes - node.held.get(digest, 0)
                node.open_jobs[key] = (digest, Job(due=due, release=now, size=size))
                node.jobs.append(node.open_jobs[key][1])
        self._wake(node, now)

    def _wake(self, node: Node, now: float) -> None:
        node.advance(now)
        if node.up:
            self.wakes[node.name] = node.decide()
            if self.wakes[node.name] < float("inf"):
                self.put(self.wakes[node.name], "wake", node.name)

    def _judge(self, now: float, key: EndpointKey, ready_by: datetime) -> None:
        for name, keys in self.where.items():
            node = self.nodes[name]
            if key in keys and node.up:
                self._wake(node, now)
                digest = self._want(key).models[0].digest or Digest("")
                job = node.open_jobs.get(key)
                same = job[1] if job and job[0] == digest else None
                due = (key, ready_by)
                told, appeared = node.announced.get(due), node.appeared.get(due, now)
                self.results.append(Result(due=now, job=same, hit=node.has(digest), told=told, appeared=appeared))

    def _count(self, end: float) -> dict[str, int]:
        for node in self.nodes.values():
            oracle(node.line, node.jobs, end)
        feasible = [r for r in self.results if r.job is None or r.job.done <= r.due]
        others = [r for r in self.results if r.job and r.job.done > r.due and not r.hit]
        delays = sorted(r.told - r.appeared for r in others if r.told is not None)
        return {
            "days": len(self.days),
            "windows": len(self.results),
            "jobs": sum(len(n.jobs) for n in self.nodes.values()),
            "evictions": sum(n.evictions for n in self.nodes.values()),
            "feasible": len(feasible),
            "met": sum(r.hit for r in feasible),
            "missed_announced": sum(not r.hit and r.told is not None for r in feasible),
            "infeasible": len(others),
            "announced": sum(r.told is not None and r.told <= max(r.due, r.appeared + 60) for r in others),
            "announced_within_60s": sum(d <= 60 for d in delays),
            "longest_delay_seconds": round(max(delays, default=0)),
            "announced_and_met": sum(r.hit and r.told is not None for r in self.results),
        }


def main() -> int:
    """Run a year in four pieces, or as long as asked, and print what was counted.

    Returns 1 if less than 99.9 % of the feasible windows were met, or one that was not feasible was not announced in time.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--endpoints", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    began = time.monotonic()
    pieces = [(first, min(PIECE, options.days - first)) for first in range(0, options.days, PIECE)]
    asked = [
        (options.seed + n, days, options.nodes, options.endpoints, first) for n, (first, days) in enumerate(pieces)
    ]
    with ProcessPoolExecutor(options.processes) as pool:
        found = [p.result() for p in [pool.submit(live, *each) for each in asked]]
    total = {k: max(f[k] for f in found) if k.startswith("longest") else sum(f[k] for f in found) for k in found[0]}
    share = total["met"] / max(1, total["feasible"])
    print(json.dumps({**total, "met_share": round(share, 6), "seconds": round(time.monotonic() - began)}))
    return 0 if share >= 0.999 and total["announced"] == total["infeasible"] else 1


def live(seed: int, days: int, nodes: int, endpoints: int, first: int) -> dict[str, int]:
    """Return what was counted in one piece of the year."""
    return World(seed, days, nodes, endpoints, first).run()


if __name__ == "__main__":
    sys.exit(main())
