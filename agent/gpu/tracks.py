"""What is remembered of one GPU between samples: counters, how long something has held, minutes of throttling. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agent.gpu.observation import Gpu

COUNTERS = (
    "ecc", "corrected", "replays", "pcie_fatal", "thermal_ns", "brake_ns", "link_replays", "link_recoveries",
    "link_recovered", "link_failed",
)  # fmt: skip
HW_THERMAL, HW_POWER_BRAKE = 0x40, 0x80  # nvmlClocksEventReason…
THROTTLED_SHARE = 0.1  # of the time between two looks, in nanoseconds of field 270 or 271
MINUTES = 10
LEAKED_BYTES = 500 << 20
FABRIC_WAITS = (1, 2)  # not started, in progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """A counter that only a reset sets back: `first` is its value at the first look, `rate` per second between the last two."""

    first: int
    last: int
    at: float
    rate: float = 0.0
    risen_at: float | None = None

    def step(self, value: int, at: float) -> Counter:
        """Return it after one more look at `at` (monotonic seconds)."""
        if value < self.last:
            return Counter(first=value, last=value, at=at)
        rate = (value - self.last) / (at - self.at) if at > self.at else self.rate
        risen_at = at if value > self.last else self.risen_at
        return Counter(first=self.first, last=value, at=at, rate=rate, risen_at=risen_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """One GPU's memory. `since` tells when a condition began to hold; `throttled` which of the last minutes were.

    `links` are the NVLinks that have been active; `accepted_ecc` the uncorrected errors that an active test came after.
    """

    counters: Mapping[str, Counter] = field(default_factory=dict)
    since: Mapping[str, float] = field(default_factory=dict)
    throttled: Mapping[int, bool] = field(default_factory=dict)
    links: frozenset[int] = frozenset()
    accepted_ecc: int | None = None

    def after(self, gpu: Gpu, at: float) -> Track:
        """Return the memory after one sample; what was not asked, or failed, leaves it as it is."""
        counters = dict(self.counters)
        for name in COUNTERS:
            if (value := gpu.value(name)) is not None:
                known = counters.get(name)
                counters[name] = known.step(value, at) if known else Counter(first=value, last=value, at=at)
        ecc, before = counters.get("ecc"), self.counters.get("ecc")
        reset = ecc is not None and before is not None and ecc.last < before.last
        active = {n for n, state in enumerate(gpu.values("links") or ()) if state}
        return Track(
            counters=counters,
            since=self._since(gpu, at),
            throttled=self._minutes(gpu, counters, at),
            links=self.links | active if active else self.links,
            accepted_ecc=None if reset else self.accepted_ecc,
        )

    def after_test(self) -> Track:
        """Return the memory after a passed test: the errors so far count no more."""
        ecc = self.counters.get("ecc")
        return replace(self, accepted_ecc=ecc.last if ecc else None)

    def risen_within(self, name: str, seconds: float, at: float) -> bool:
        """Say whether a counter has risen in the last so many seconds."""
        counter = self.counters.get(name)
        return counter is not None and counter.risen_at is not None and at - counter.risen_at <= seconds

    def held_for(self, condition: str, at: float) -> float:
        """Return for how many seconds a condition has held; 0 if it does not."""
        return at - self.since[condition] if condition in self.since else 0.0

    def _since(self, gpu: Gpu, at: float) -> Mapping[str, float]:
        holds: dict[str, bool] = {}
        if (fabric := gpu.value("fabric")) is not None:
            holds["fabric waits"] = fabric in FABRIC_WAITS
        if (used := gpu.value("memory")) is not None and (processes := gpu.value("processes")) is not None:
            holds["memory alone"] = used > LEAKED_BYTES and processes == 0
        since = {name: began for name, began in self.since.items() if holds.get(name, True)}
        return since | {name: since.get(name, at) for name, holding in holds.items() if holding}

    def _minutes(self, gpu: Gpu, counters: Mapping[str, Counter], at: float) -> Mapping[int, bool]:
        reasons = gpu.value("clocks")
        if reasons is None:
            return self.throttled
        slowed = any(
            name in counters and counters[name].rate / 1e9 >= THROTTLED_SHARE for name in ("thermal_ns", "brake_ns")
        )
        now = int(at // 60)
        kept = {minute: was for minute, was in self.throttled.items() if minute > now - MINUTES}
        return kept | {now: kept.get(now, False) or slowed or bool(reasons & (HW_THERMAL | HW_POWER_BRAKE))}
