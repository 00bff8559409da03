"""What the hazard of a return is judged by: one row of numbers for each endpoint and slot. Pure.

Everything here is known two slots before the slot that is decided. `FEATURES` names the columns by the idea they stand for, so that
an idea can be left out (docs/forecast.md has what each brings).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

import numpy as np

from agent.demand.activity import (
    AGE_BINS,
    EXACT_AGES,
    NEAR,
    REPORTED_LATE,
    RETURN_DECAYS,
    RETURN_HALF_LIVES,
    SHARE_DECAYS,
    SHARE_HALF_LIVES,
    Activity,
    age_bin,
)
from agent.demand.arrays import Floats, Ints, logit
from agent.demand.wall import DAY_SLOTS, WEEK_SLOTS, WallTime

FEATURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "level": (
            "base",
            *(f"share_{h}" for h in SHARE_HALF_LIVES),
            *(f"returns_{h}" for h in RETURN_HALF_LIVES),
            "burst",
        ),
        "age": ("age", "hazard_age", "hazard_exact_age"),
        "time of day": ("hazard_day", "hazard_weekday", "hazard_wide", "hazard_narrow"),
        "activity by time of day": ("active_day", "active_weekday", "active_wide", "active_narrow", "rise"),
        "days before": ("yesterday", "last_week", "daily", "active_days", "today"),
        "rhythm": (
            "minute",
            "lag_6",
            "lag_12",
            "lag_18",
            "lag_24",
            "hourly",
            "gap",
            "gap_before",
            "same_gap",
            "same_gap_before",
        ),
        "period": ("same_period", "near_period"),
        "group": ("group_base", "group_time", "group_returns", "group_surprise"),
        "surprise": ("surprise",),
        "calendar": ("off", "sin", "cos"),
    }
)
NAMES: tuple[str, ...] = tuple(name for names in FEATURES.values() for name in names)
AGE_COLUMN = NAMES.index("age")
_FROM_NOW = np.arange(-9, 10)  # slots around the one that is decided
_SLOW = np.stack(
    [
        np.exp(-0.5 * (_FROM_NOW / 4.0) ** 2),
        _FROM_NOW == 0,
        (_FROM_NOW >= 1) & (_FROM_NOW <= 6),
        (_FROM_NOW >= -6) & (_FROM_NOW <= -1),
    ]
).astype(np.float32)
_RECENT = np.stack([NEAR, [0, 1, 1, 1, 0], [0, 0, 1, 0, 0]]).astype(np.float32)
_ANGLE = 2 * np.pi * np.arange(DAY_SLOTS) / DAY_SLOTS
_SIN, _COS = np.sin(_ANGLE), np.cos(_ANGLE)
_LONGEST_AGE = 5001
_LOGITS = [i for i, name in enumerate(NAMES) if name.startswith("hazard_") or name in ("base", "group_base")]
_LAGS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "lag_6": (6,),
        "lag_12": (12,),
        "lag_18": (18,),
        "lag_24": (24,),
        "hourly": tuple(range(6, 150, 6)),
        "yesterday": tuple(DAY_SLOTS + side for side in (-1, 0, 1)),
        "last_week": tuple(WEEK_SLOTS + side for side in (-1, 0, 1)),
        "daily": tuple(day * DAY_SLOTS for day in range(1, 8)),
    }
)
_ALL_LAGS = np.array([lag for lags in _LAGS.values() for lag in lags])
_OF_NAME = np.repeat(np.eye(len(_LAGS), dtype=np.float32), [len(lags) for lags in _LAGS.values()], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The features of every endpoint for one slot."""

    at: datetime
    idle: Ints  # slots idle before this one if nothing happens meanwhile
    columns: Floats  # [endpoint, NAMES]


def look(memory: Activity, at: datetime, silent: int = 0) -> View:
    """Return the features for the slot that begins at `at`, which is two slots after the newest report.

    With `silent`, it is that many slots later, and nothing is heard of in between: what a forecast of the further future assumes.
    """
    wall = memory.clock.at(at)
    idle = np.where(memory.age == 0, 1, memory.age + 1) + silent
    found: dict[str, Floats] = {}
    base = _level(memory, found, silent)
    around = _group(memory, wall, base, found)
    _time_of_day(memory, wall, around, found)
    _age(memory, idle, found)
    _ago(memory, found, silent)
    _rhythm(memory, wall, idle, base, found, silent)
    _calendar(memory, wall, found)
    columns = np.stack([found[name] for name in NAMES], dtype=np.float32, casting="unsafe")
    columns[_LOGITS] = logit(columns[_LOGITS])
    return View(at=at, idle=idle, columns=np.ascontiguousarray(columns.T))


def _level(memory: Activity, found: dict[str, Floats], silent: int) -> Floats:
    """How busy an endpoint is; returns its hazard whatever the time, drawn towards that of its groups and the fleet."""
    fleet = (memory.base[:, 0].sum() + 0.1) / (memory.base[:, 1].sum() + 10)
    returns, chances = (memory.in_groups(memory.base[:, i]) for i in (0, 1))
    group = memory.of_groups(((returns + 20 * fleet) / (chances + 20))[memory.pair_group])
    base: Floats = (memory.base[:, 0] + 20 * group) / (memory.base[:, 1] + 20)
    found["base"], found["group_base"] = base, group
    shares = np.log((memory.shares * SHARE_DECAYS**silent + 0.1) / (memory.share_chances + 1))
    found.update((f"share_{half_life}", shares[:, i]) for i, half_life in enumerate(SHARE_HALF_LIVES))
    recent = np.log(memory.returns * RETURN_DECAYS**silent + 0.1)
    found.update((f"returns_{half_life}", recent[:, i]) for i, half_life in enumerate(RETURN_HALF_LIVES))
    found["burst"] = np.log1p(memory.burst)
    return base


def _group(memory: Activity, wall: WallTime, base: Floats, found: dict[str, Floats]) -> Floats:
    """What the groups of an endpoint do; returns the hazard that a new endpoint of theirs would have at this time."""
    group, row = memory.pair_group, memory.pair_row
    usual = found["group_base"]
    asked = memory.distinct_pairs
    clock = row[asked]
    near = memory.group_returns.around(group[asked], wall.off[clock], wall.slot[clock], NEAR[None, :])[0]
    near = near[memory.distinct_of_pair]
    now = memory.of_groups((near[:, 0] + 20 * usual[row]) / (near[:, 1] + 20))
    found["group_time"] = np.log(now / usual)
    size = np.maximum(np.bincount(group, minlength=len(memory.groups)), 1)
    found["group_returns"] = memory.of_groups((memory.in_groups(memory.returns[:, 0]) / size)[group])
    seen, expected = (memory.in_groups(memory.surprise[:, i]) for i in (0, 1))
    found["group_surprise"] = memory.of_groups(np.log((seen + 1) / (expected + 1))[group])
    found["surprise"] = np.log((memory.surprise[:, 0] + 0.3) / (memory.surprise[:, 1] + 0.3))
    odds = base / (1 - base) * now / usual
    around: Floats = odds / (1 + odds)
    return around


def _time_of_day(memory: Activity, wall: WallTime, prior: Floats, found: dict[str, Floats]) -> None:
    places, slot = memory.places, wall.slot
    smooth, sides, alone = memory.recent.around(places, wall.off, slot, _RECENT)
    day = _drawn(smooth, prior, 3)
    found["hazard_day"], found["active_day"], found["active_narrow"] = day, _share(sides), _share(alone)
    smooth, sides = memory.weekdays.around(places, wall.weekday, slot, _RECENT[:2])
    found["hazard_weekday"], found["active_weekday"] = _drawn(smooth, day, 2), _share(sides)
    wide, alone, coming, gone = memory.slow.around(places, wall.off, slot, _SLOW)
    found["hazard_wide"] = _drawn(wide, prior, 6)
    found["hazard_narrow"] = _drawn(alone, found["hazard_wide"], 1)
    found["active_wide"], found["rise"] = _share(wide), _share(coming) - _share(gone)


def _share(counts: Floats) -> Floats:
    """Return the share of active slots."""
    share: Floats = counts[:, 0] / (counts[:, 1] + 0.5)
    return share


def _drawn(counts: Floats, prior: Floats, weight: float) -> Floats:
    """Return returns per slot at risk, drawn towards a prior that counts as many slots as `weight`."""
    drawn: Floats = (counts[:, 2] + weight * prior) / (counts[:, 3] + weight)
    return drawn


def _age(memory: Activity, idle: Ints, found: dict[str, Floats]) -> None:
    """The hazard at this idle age: all endpoints', then this endpoint's by bins, then by the exact age."""
    rows, bins = memory.rows, age_bin(idle)
    fleet = memory.by_age.sum(axis=0)
    pooled = ((fleet[:, 0] + 0.05) / (fleet[:, 1] + 1))[bins]
    own = memory.by_age.reshape(-1, 2).take(rows * AGE_BINS + bins, axis=0)
    binned = (own[:, 0] + 3 * pooled) / (own[:, 1] + 3)
    exact = memory.by_exact_age.reshape(-1, 2).take(rows * EXACT_AGES + np.minimum(idle, EXACT_AGES - 1), axis=0)
    found["hazard_age"] = binned
    found["hazard_exact_age"] = np.where(idle < EXACT_AGES, (exact[:, 0] + 2 * binned) / (exact[:, 1] + 2), binned)
    found["age"] = np.log1p(np.minimum(idle, _LONGEST_AGE))


def _ago(memory: Activity, found: dict[str, Floats], silent: int) -> None:
    """The share of known slots so long ago that were active; where none is known, what is usual now."""
    lags = _ALL_LAGS - silent
    active, known = memory.ago(lags)
    told = known | (lags < REPORTED_LATE)[:, None]  # the silence assumed is known, too
    events, chances = _OF_NAME @ active.astype(np.float32), _OF_NAME @ told.astype(np.float32)
    shares = np.where(chances > 0, events / np.maximum(chances, 1), found["active_wide"])
    found.update(zip(_LAGS, shares, strict=True))
    for name in ("yesterday", "last_week"):
        found[name] = np.minimum(1, 3 * found[name])


def _rhythm(memory: Activity, wall: WallTime, idle: Ints, base: Floats, found: dict[str, Floats], silent: int) -> None:
    """Traffic by the clock of a machine: at a minute of the hour, or so long after the last time."""
    minute = memory.by_minute[memory.rows, wall.slot % 6]
    found["minute"] = logit((minute[:, 0] + 5 * base) / (minute[:, 1] + 5)) - logit(base)
    apart = np.abs(np.log((idle[:, None] + 1) / (memory.last_gaps + 1)))
    alike = np.where(memory.last_gaps > 0, np.exp(-6 * apart), 0)
    same = memory.last_gaps == idle[:, None]
    found["gap"], found["gap_before"] = alike.T
    found["same_gap"], found["same_gap_before"] = same.T
    off = memory.slots - 1 + REPORTED_LATE + silent - memory.last_start - memory.period
    known = memory.period > 0
    found["same_period"], found["near_period"] = known & (off == 0), known & (np.abs(off) <= 1)


def _calendar(memory: Activity, wall: WallTime, found: dict[str, Floats]) -> None:
    kind = memory.days[memory.rows, wall.off]
    found["active_days"] = (kind[:, 0] + 0.5) / (kind[:, 1] + 1)
    found["today"] = memory.today & (wall.weekday == memory.weekday)
    found["off"], found["sin"], found["cos"] = wall.off.astype(np.float32), _SIN[wall.slot], _COS[wall.slot]
