"""Tracks of endpoints -> predicted windows: when each is likely enough to be used to be worth being warm. Pure.

`begin`, `learn` until it says there is no more, `foretell`: the first time that goes through all that is known of the past, some 4 ms a slot
for a thousand endpoints, later through what is new. What comes to be known of slots that were learned is learned by going through all again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np

from agent.core.refs import EndpointKey
from agent.demand.activity import REPORTED_LATE, RETURN_AFTER, Site
from agent.demand.arrays import Flags
from agent.demand.endpoint import Endpoint
from agent.demand.forecast import Forecast
from agent.demand.foretold import Foretold, Windows, horizon, lasting, runs
from agent.demand.history import Track, oldest, slot_of, slot_start
from agent.demand.survival import ahead
from agent.demand.wall import DAY_SLOTS, SLOT

_AT_ONCE = 144_000  # endpoints times slots in one call of `learn`: a second or two, and a fit
_LATE = 6  # slots of one endpoint that came to be known, or known otherwise, after they were learned: reason to learn all again,
_AGAIN = timedelta(hours=1)  # but not more often than this
_GAP = DAY_SLOTS  # slots; after a longer pause, too


class Foreteller:
    """Foretells for the endpoints it is asked about. All that it has learned is rebuilt from tracks after a restart."""

    def __init__(self, budget: float, standing: Windows) -> None:
        """`budget` is the share of idle endpoint-time that may be warm; `standing` are the windows that nodes know already."""
        self._budget, self._standing = budget, standing
        self._forecast: Forecast | None = None
        self._began: datetime | None = None
        self._first = self._next = self._end = 0  # slots: the oldest, the next one, the one that has not ended
        self._sites: tuple[Site, ...] = ()
        self._keys: tuple[EndpointKey, ...] = ()
        self._tracks: list[Track] = []
        self._learned: dict[
            EndpointKey, tuple[int, int]
        ] = {}  # bit n: slot `first` + n was active, was known, when it was learned

    def begin(self, endpoints: Sequence[Endpoint], tracks: Mapping[EndpointKey, Track], now: datetime) -> None:
        """Take what is known at `now` of these endpoints."""
        before, self._sites = self._sites, tuple(map(_site, endpoints))
        self._keys, self._tracks = tuple(e.key for e in endpoints), [tracks.get(e.key, Track()) for e in endpoints]
        self._learned = {key: self._learned.get(key, (0, 0)) for key in self._keys}
        self._end = slot_of(now)
        if not self._sites:
            self._forecast = None
        elif self._forecast is None or not before or self._outdated(now) or _moved(before, self._sites):
            self._forecast, self._began, self._learned = Forecast(self._sites, [self._budget]), now, {}
            self._first = oldest(self._end)
            self._next = _first_known(self._tracks, self._first, self._end)
        elif self._sites != before:
            self._forecast.resettle(self._sites)

    def _outdated(self, now: datetime) -> bool:
        """Say whether much was not known when it was learned, or is known otherwise by now, or time has jumped."""
        if not self._next <= self._end <= self._next + _GAP:
            return True
        if self._began and timedelta(0) <= now - self._began < _AGAIN:
            return False
        count = self._next - self._first
        for key, track in zip(self._keys, self._tracks, strict=True):
            (active, known), (active_then, known_then) = track.bits(self._first, count), self._learned.get(key, (0, 0))
            if (known & (~known_then | (active ^ active_then))).bit_count() >= _LATE:
                return True
        return False

    def learn(self) -> bool:
        """Learn some slots that have ended; return whether more are left. Takes a few seconds at most."""
        if self._forecast is None or self._next >= self._end:
            return False
        count = min(self._end - self._next, DAY_SLOTS, max(1, _AT_ONCE // len(self._keys)))
        bits = [track.bits(self._next, count) for track in self._tracks]
        active, known = (_unpacked([pair[i] for pair in bits], count) for i in (0, 1))
        names = np.array([site.name for site in self._sites])
        for i in range(count):
            at, told = slot_start(self._next + i), known[:, i]
            who = names[active[:, i]].tolist() if told.any() else None
            self._forecast.observe(at, who, names[~told].tolist())
            coming = at + REPORTED_LATE * SLOT
            if self._forecast.refit_is_due(coming):
                self._forecast.refit()
            self._forecast.decide(coming)
        shift = self._next - self._first
        for key, now in zip(self._keys, bits, strict=True):
            then = self._learned.get(key, (0, 0))
            self._learned[key] = (then[0] | now[0] << shift, then[1] | now[1] << shift)
        self._next += count
        return self._next < self._end

    def foretell(self, now: datetime) -> Foretold:
        """Return what is foretold from the next slot on, and how past decisions fared. All that has ended must be learned."""
        forecast = self._forecast
        if forecast is None:
            self._standing = {}
            return Foretold()
        at, until = slot_start(self._next - 1 + REPORTED_LATE), horizon(now)
        steps = list(ahead(forecast, at, until))
        worth, chance = np.array([step.worth for step in steps]), np.array([step.chance for step in steps])
        edges = [step.at for step in steps] + [until]
        awake = (forecast.memory.age < RETURN_AFTER).tolist()
        found = {
            key: runs(np.flatnonzero(worth[:, row]).tolist(), chance[:, row].tolist(), edges)
            for row, key in enumerate(self._keys)
        }
        self._standing = {
            key: lasting(self._standing.get(key, ()), windows, up, now)
            for (key, windows), up in zip(found.items(), awake, strict=True)
        }
        told = [any(w.ready_by <= at < w.until for w in self._standing[key]) for key in self._keys]
        forecast.carried_out(at, np.array(told))
        fared = dict(zip(self._keys, forecast.tally.fared(), strict=True))
        return Foretold(windows=self._standing, fared=fared, idle_share=forecast.prices[0].spent_share)


def _site(endpoint: Endpoint) -> Site:
    """An endpoint shares its users with its namespace, and their habits with whoever serves the same model."""
    models = (str(model.uri) for model in endpoint.models)
    return Site(name=str(endpoint.key), timezone=endpoint.zone, groups=(endpoint.key.namespace, *sorted({*models})))


def _moved(before: Iterable[Site], after: Iterable[Site]) -> bool:
    """Say whether an endpoint has another time zone: what was learned of it goes by the old one's wall clock."""
    zones = {site.name: site.timezone for site in before}
    return any(zones.get(site.name, site.timezone) != site.timezone for site in after)


def _first_known(tracks: Iterable[Track], first: int, end: int) -> int:
    """Return the first slot from `first` on of which anything is known; `end` if there is none before."""
    known = [track.bits(first, end - first)[1] for track in tracks]
    return min((first + (bits & -bits).bit_length() - 1 for bits in known if bits), default=end)


def _unpacked(bits: Sequence[int], count: int) -> Flags:
    """Return [endpoint, slot] of integers whose bit n is slot n."""
    size = (count + 7) // 8
    raw = np.frombuffer(b"".join(each.to_bytes(size, "little") for each in bits), np.uint8).reshape(len(bits), size)
    return np.unpackbits(raw, axis=1, count=count, bitorder="little").astype(bool)
