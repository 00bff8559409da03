"""What the forecast remembers of each endpoint's traffic, updated slot by slot. Pure.

An endpoint is active in a slot of ten minutes, or idle. It is at risk where it has been idle for RETURN_AFTER slots, and returns where
it is active in such a slot. A slot of which nothing is known adds neither events nor chances; and until the endpoint is seen
active again (or a day has passed), its idle age is a guess that no table learns from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from agent.demand.arrays import Flags, Floats, Ints, decay
from agent.demand.slot_table import SlotTable, add_at, taken
from agent.demand.wall import DAY_SLOTS, WEEK_SLOTS, DayOff, WallClock, WallTime, weekend

RETURN_AFTER = 3  # slots: 30 minutes without a request
REPORTED_LATE = 2  # slots between the newest report and the slot that is decided
NEVER = 1_000_000
AGE_EDGES = np.array([4, 5, 6, 8, 10, 13, 18, 24, 36, 54, 72, 100, 144, 200, 288, 432, 720, 1008, 1500, 3000])
AGE_BINS = len(AGE_EDGES) + 1
EXACT_AGES = 150  # slots: ages that have a hazard of their own, a little more than a day
RING = WEEK_SLOTS + 16
SHARE_HALF_LIVES = (6, 24, 144, 1008, 4032)  # slots
SHARE_DECAYS = np.array([decay(slots) for slots in SHARE_HALF_LIVES], np.float32)
RETURN_HALF_LIVES = (36, 288, 2016)  # slots
RETURN_DECAYS = np.array([decay(slots) for slots in RETURN_HALF_LIVES], np.float32)
_RHYTHM_DECAY = 0.5 ** (1 / 10)  # a day
_BASE_DECAY = decay(7 * DAY_SLOTS)
_SURPRISE_DECAY = decay(18)
_DAY_DECAY = 0.5 ** (1 / 10)  # a day of the same kind
CHANNELS = ("active", "seen", "returned", "at risk")
NEAR = np.array([0.4, 0.7, 1, 0.7, 0.4], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What is known of an endpoint without any traffic: its clock, and with whom it shares users or models."""

    name: str
    timezone: str
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a reported slot brought, one row for each endpoint."""

    at_risk: Flags
    returned: Flags


class Activity:
    """The memory of the forecast. Rows are endpoints in the order of `sites`."""

    def __init__(self, sites: Sequence[Site], day_off: DayOff = weekend) -> None:
        count = len(sites)
        self._day_off = day_off
        self.slots = 0
        self._known_in_a_row = np.zeros(count, np.int64)
        self.age = np.full(count, NEVER, np.int64)  # slots idle up to the newest report, that one included
        self.certain = np.zeros(count, bool)  # False before the first request, and after a gap until the next one
        self.shares = np.zeros((count, len(SHARE_HALF_LIVES)), np.float32)
        self.share_chances = np.zeros((count, len(SHARE_HALF_LIVES)), np.float32)
        self.returns = np.zeros((count, len(RETURN_HALF_LIVES)), np.float32)
        self.base = np.zeros((count, 2), np.float32)  # returns, slots at risk
        self.by_age = np.zeros((count, AGE_BINS, 2), np.float32)
        self.by_exact_age = np.zeros((count, EXACT_AGES, 2), np.float32)
        self.by_minute = np.zeros((count, 6, 2), np.float32)
        self.last_gaps = np.zeros((count, 2), np.int64)  # idle slots before the last return and the one before
        self.last_start = np.zeros(count, np.int64)  # slot number of the last return
        self.period = np.zeros(count, np.int64)  # slots between the last two returns
        self.burst = np.zeros(count, np.int64)  # active slots in a row, now or last
        self.today = np.zeros(count, bool)  # active since midnight
        self.today_known = np.zeros(count, bool)  # anything known since midnight
        self.weekday = np.full(count, -1, np.int64)  # of the newest report, on the endpoint's clock
        self.off = np.zeros(count, np.int64)
        self.days = np.zeros((count, 2, 2), np.float32)  # active days and all days, of working days and of days off
        self.surprise = np.zeros((count, 2), np.float32)  # active slots and expected ones, of the last hours
        self.ring = np.zeros((RING, count), bool)  # the newest slots, each at its number modulo RING
        self.ring_known = np.zeros((RING, count), bool)
        self.recent = SlotTable(count, 2, 7, len(CHANNELS))  # by working days and days off, as `slow`
        self.weekdays = SlotTable(count, 7, 28, len(CHANNELS))
        self.slow = SlotTable(count, 2, 35, len(CHANNELS))
        self._place(sites)
        self.group_returns = SlotTable(len(self.groups), 2, 14, 2)

    @property
    def rows(self) -> Ints:
        """The number of every row."""
        return self._rows

    @property
    def places(self) -> Ints:
        """The row of each endpoint in the tables by time of the day, where those of one clock are side by side."""
        return self._places

    def _place(self, sites: Sequence[Site]) -> None:
        self.sites = tuple(sites)
        self.clock = WallClock([site.timezone for site in sites], self._day_off)
        self._rows = np.arange(len(sites))
        self._places = np.empty_like(self._rows)
        self._places[np.argsort(self.clock.zone_of_row, kind="stable")] = self._rows
        self._names = np.array([site.name for site in sites], object)
        self._row_of = {site.name: row for row, site in enumerate(sites)}
        self.groups = sorted({group for site in sites for group in site.groups})
        number = {group: i for i, group in enumerate(self.groups)}
        pairs = [(number[group], row) for row, site in enumerate(sites) for group in site.groups]
        self.pair_group = np.array([group for group, _ in pairs], np.int64)
        self.pair_row = np.array([row for _, row in pairs], np.int64)
        # Pairs whose group and clock are the same see the same of the group: one of these, and of each pair the number of that one.
        shown = self.pair_group * len(sites) + self.clock.zone_of_row[self.pair_row]
        _, self.distinct_pairs, self.distinct_of_pair = np.unique(shown, return_index=True, return_inverse=True)
        self.groups_of_row = np.maximum(np.bincount(self.pair_row, minlength=len(sites)), 1).astype(np.float32)

    def names(self, flags: Flags) -> frozenset[str]:
        """Return the names of these endpoints."""
        return frozenset(self._names[flags].tolist())

    def flags(self, active: Iterable[str]) -> Flags:
        """Return who of the endpoints is named; names of others are left alone."""
        found = np.zeros(len(self.sites), bool)
        found[[row for name in active if (row := self._row_of.get(name)) is not None]] = True
        return found

    def in_groups(self, values: Floats) -> Floats:
        """Return the sum over the members of each group."""
        return np.bincount(self.pair_group, values[self.pair_row], len(self.groups)).astype(np.float32)

    def of_groups(self, values: Floats) -> Floats:
        """Return for each endpoint the mean over its groups of a value that each pair of group and endpoint has."""
        return (np.bincount(self.pair_row, values, len(self.sites)) / self.groups_of_row).astype(np.float32)

    def observe(self, at: datetime, active: Flags | None, known: Flags | None = None) -> Outcome | None:
        """Learn what happened in the slot that began at `at`, for all or for those `known`.

        None where nothing is known of it; then nothing is returned.
        """
        if active is None:
            self._skip()
            return None
        wall = self.clock.at(at)
        known = np.ones(len(self.sites), bool) if known is None else known
        active = active & known
        at_risk = self.certain & (self.age >= RETURN_AFTER) & known
        returned = at_risk & active
        self._note_times_of_day(wall, active, known, at_risk, returned)
        self._note_ages(wall, at_risk, returned)
        self._note_levels(active, known, at_risk, returned)
        self._note_days(wall, active, known)
        self._note_gaps(active, known, returned)
        self._remember(active, known)
        return Outcome(at_risk=at_risk, returned=returned)

    def _skip(self) -> None:
        """Let a slot pass of which nothing is known."""
        self._known_in_a_row[:] = 0
        self.age += 1
        self.certain[:] = False
        self.ring[self.slots % RING] = False
        self.ring_known[self.slots % RING] = False
        self.slots += 1

    def _note_times_of_day(self, wall: WallTime, active: Flags, known: Flags, at_risk: Flags, returned: Flags) -> None:
        places, slot = self._places, wall.slot
        usual = self.slow.around(places, wall.off, slot, NEAR[None, :])[0]
        expected = (usual[:, 0] + 0.5 * self.shares[:, 3] / np.maximum(self.share_chances[:, 3], 1e-9)) / (
            usual[:, 1] + 0.5
        )
        self.surprise = self.surprise * np.float32(_SURPRISE_DECAY) + np.stack([active, expected * known], axis=1)
        seen = ((self.age < NEVER) | active) & known
        counts = np.stack([active, seen, returned, at_risk], axis=1, dtype=np.float32)
        self.recent.add(places, wall.off, slot, counts)
        self.weekdays.add(places, wall.weekday, slot, counts)
        self.slow.add(places, wall.off, slot, counts)
        member = self.pair_row
        self.group_returns.add(self.pair_group, wall.off[member], slot[member], counts[member, 2:])

    def _note_ages(self, wall: WallTime, at_risk: Flags, returned: Flags) -> None:
        if self.slots % DAY_SLOTS == 0:
            self.by_age *= np.float32(_RHYTHM_DECAY)
            self.by_exact_age *= np.float32(_RHYTHM_DECAY)
            self.by_minute *= np.float32(_RHYTHM_DECAY)
        rows = np.flatnonzero(at_risk)
        age = self.age[rows]
        count = np.ones((len(rows), 2), np.float32)
        count[:, 0] = returned[rows]
        add_at(self.by_age, rows * AGE_BINS + age_bin(age), count)
        add_at(self.by_minute, rows * 6 + wall.slot[rows] % 6, count)
        young = age < EXACT_AGES
        add_at(self.by_exact_age, (rows * EXACT_AGES + age)[young], count[young])

    def _note_levels(self, active: Flags, known: Flags, at_risk: Flags, returned: Flags) -> None:
        self.base = self.base * np.float32(_BASE_DECAY) + np.stack([returned, at_risk], axis=1)
        self.shares = self.shares * SHARE_DECAYS + active[:, None]
        self.share_chances = self.share_chances * SHARE_DECAYS + known[:, None]
        self.returns = self.returns * RETURN_DECAYS + returned[:, None]

    def _note_days(self, wall: WallTime, active: Flags, known: Flags) -> None:
        """Where a day has ended, enter whether the endpoint was active in it; not if nothing of that is known."""
        changed = (wall.weekday != self.weekday) & (self.weekday >= 0)
        ended = np.flatnonzero(changed & self.today_known)
        kind = self.off[ended]
        day = np.stack([self.today[ended], np.ones(len(ended))], axis=1).astype(np.float32)
        self.days[ended, kind] = self.days[ended, kind] * np.float32(_DAY_DECAY) + day
        self.weekday, self.off = wall.weekday, wall.off
        self.today, self.today_known = self.today & ~changed | active, self.today_known & ~changed | known

    def _note_gaps(self, active: Flags, known: Flags, returned: Flags) -> None:
        self.last_gaps[returned] = np.stack([self.age, self.last_gaps[:, 0]], axis=1)[returned]
        self.period[returned] = self.slots - self.last_start[returned]
        self.last_start[returned] = self.slots
        self.burst = np.where(active, np.where(self.age > 0, 1, self.burst + 1), self.burst)
        self.age = np.where(active, 0, self.age + 1)
        self._known_in_a_row = np.where(known, self._known_in_a_row + 1, 0)
        recovered = (self._known_in_a_row >= DAY_SLOTS) & (self.age < NEVER)
        self.certain = self.certain & known | active | recovered

    def _remember(self, active: Flags, known: Flags) -> None:
        self.ring[self.slots % RING] = active
        self.ring_known[self.slots % RING] = known
        self.slots += 1

    def ago(self, lags: Ints) -> tuple[Flags, Flags]:
        """Return who was active in the slots `lags` before the one that is decided [lag, row], and of whom that is known."""
        newest = self.slots - 1 + REPORTED_LATE
        at = (newest - lags) % RING
        told = (lags >= REPORTED_LATE) & (lags <= min(newest, RING))
        known = self.ring_known[at] & told[:, None]
        return self.ring[at] & known, known

    def resettle(self, sites: Sequence[Site]) -> None:
        """Go on with these endpoints: those known already keep their memory, new ones have none, others are forgotten."""
        group_of = {group: i for i, group in enumerate(self.groups)}
        rows = np.array([self._row_of.get(site.name, -1) for site in sites], np.int64)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray) and name not in _SHARED:
                setattr(self, name, taken(value, rows, axis=1 if name in _BY_SLOT else 0))
        self.age[rows < 0], self.weekday[rows < 0] = NEVER, -1
        places = np.where(rows < 0, -1, self._places[rows])
        self._place(sites)
        for table in (self.recent, self.weekdays, self.slow):
            table.take(places[np.argsort(self._places)])
        self.group_returns.take(np.array([group_of.get(group, -1) for group in self.groups], np.int64))


_SHARED = (
    "pair_group",
    "pair_row",
    "distinct_pairs",
    "distinct_of_pair",
    "groups_of_row",
    "_names",
    "_rows",
    "_places",
)  # arrays whose rows are no endpoints
_BY_SLOT = ("ring", "ring_known")  # arrays whose columns are


def age_bin(age: Ints) -> Ints:
    """Return the bin of an idle age, of AGE_BINS."""
    return np.searchsorted(AGE_EDGES, age, side="right")
