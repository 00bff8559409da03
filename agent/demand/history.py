"""When endpoints had requests: slots of ten minutes, each active, idle or unknown. Pure.

What is not known is never idle: nobody may learn from a gap that nobody came. Slots are counted in UTC, so that no change of
a clock makes or loses one; a reader puts them on the endpoint's wall clock. A forecast reads `Track.bits`: two bitmaps of an
endpoint over the slots it names, bit n for the n-th.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from agent.core.refs import EndpointKey

SLOT_SECONDS = 600
DAY_SLOTS = 144
WEEK_SLOTS = 7 * DAY_SLOTS
KEEP_DAYS = 42  # forecasts stop gaining after five weeks (GenTD26, ServeGen); one more, to be compared with
FORGET_SLOTS = WEEK_SLOTS  # so long after its last slot an endpoint that nobody declares is forgotten


def slot_of(time: datetime) -> int:
    """Return the number of the slot that `time` (aware) is in: whole ten minutes since 1970 in UTC."""
    return int(time.timestamp() // SLOT_SECONDS)


def slot_start(slot: int) -> datetime:
    """Return when a slot begins, in UTC."""
    return datetime.fromtimestamp(slot * SLOT_SECONDS, UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """An endpoint's slots from number `first` on. Bit n of `known` is slot `first` + n; what is `active` is known."""

    first: int = 0
    active: int = 0
    known: int = 0

    def __post_init__(self) -> None:
        if self.first < 0 or self.active < 0 or self.active & ~self.known:
            raise ValueError("a slot is active that is not known")

    @property
    def end(self) -> int:
        """The slot after the last known one; `first` where none is known."""
        return self.first + self.known.bit_length()

    def state(self, slot: int) -> bool | None:
        """Say whether a slot was active; None where nothing is known of it."""
        bit = slot - self.first
        return bool(self.active >> bit & 1) if bit >= 0 and self.known >> bit & 1 else None

    def bits(self, first: int, count: int) -> tuple[int, int]:
        """Return (active, known) of the `count` slots from `first` on; bit 0 is `first`."""
        mask = (1 << max(count, 0)) - 1
        return _shifted(self.active, self.first - first) & mask, _shifted(self.known, self.first - first) & mask

    def within(self, first: int, end: int) -> Track:
        """Return what is known from `first` until before `end`, counted from `first`."""
        active, known = self.bits(first, end - first)
        return Track(first=first, active=active, known=known)

    def amended(self, by: Track) -> Track:
        """Return this track with every slot that `by` knows as `by` knows it."""
        if not self.known or not by.known:
            return by if by.known else self
        first = min(self.first, by.first)
        active, known = (_shifted(bits, self.first - first) for bits in (self.active, self.known))
        by_active, by_known = (_shifted(bits, by.first - first) for bits in (by.active, by.known))
        return Track(first=first, active=active & ~by_known | by_active, known=known | by_known)


def track_of(first: int, states: Collection[bool | None]) -> Track:
    """Return the track of states in order, the first of them of slot `first`."""
    active = sum(1 << n for n, state in enumerate(states) if state)
    return Track(first=first, active=active, known=sum(1 << n for n, s in enumerate(states) if s is not None))


class History:
    """The tracks of all endpoints, none older than KEEP_DAYS."""

    def __init__(self) -> None:
        self._tracks: dict[EndpointKey, Track] = {}

    @property
    def tracks(self) -> Mapping[EndpointKey, Track]:
        """A copy: a track by endpoint."""
        return dict(self._tracks)

    def track(self, key: EndpointKey) -> Track:
        """Return an endpoint's track, an empty one where there is none."""
        return self._tracks.get(key, Track())

    def tell(self, key: EndpointKey, track: Track) -> None:
        """Enter what is known better now than before."""
        self._tracks[key] = self.track(key).amended(track)

    def fill(self, key: EndpointKey, track: Track) -> None:
        """Enter what is worth less than what is there: it counts where nothing is known."""
        self._tracks[key] = track.amended(self.track(key))

    def tidy(self, now: int, declared: Collection[EndpointKey]) -> None:
        """Drop what is older than KEEP_DAYS at slot `now`, or later than it, and endpoints that have left for good."""
        first = oldest(now)
        kept = {key: track.within(first, now + 1) for key, track in self._tracks.items()}
        self._tracks = {
            key: track
            for key, track in kept.items()
            if track.known and (key in declared or track.end > now - FORGET_SLOTS)
        }


def oldest(now: int) -> int:
    """Return the first slot that is kept at slot `now`: a midnight in UTC."""
    return max(0, now // DAY_SLOTS - KEEP_DAYS + 1) * DAY_SLOTS


def known_share(tracks: Collection[Track], now: int) -> float:
    """Return how much of the week before slot `now` is known, over all tracks; 1 where there are none."""
    known = sum(track.bits(now - WEEK_SLOTS, WEEK_SLOTS)[1].bit_count() for track in tracks)
    return known / (len(tracks) * WEEK_SLOTS) if tracks else 1.0


def _shifted(bits: int, by: int) -> int:
    return bits << by if by >= 0 else bits >> -by
