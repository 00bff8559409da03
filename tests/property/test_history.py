"""Histories against the simplest model there is: a dict from slot to what is known of it."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.errors import Invalid
from agent.core.refs import EndpointKey
from agent.demand.history import DAY_SLOTS, KEEP_DAYS, History, Track, oldest, slot_of, slot_start, track_of
from agent.demand.history_observer import Observer, Sight
from agent.demand.history_shards import Shard, decode, encode

NOW = slot_of(datetime(2026, 3, 2, 9, 0, tzinfo=UTC))
STATES = st.lists(st.sampled_from([True, False, None]), max_size=60)
TRACKS = st.builds(track_of, st.integers(NOW - 400, NOW), STATES)
KEYS = st.builds(
    EndpointKey,
    namespace=st.from_regex(r"[a-z][a-z0-9-]{0,18}[a-z0-9]", fullmatch=True),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,38}[A-Za-z0-9]", fullmatch=True),
)


def as_dict(track: Track) -> dict[int, bool]:
    known = {slot: track.state(slot) for slot in range(track.first - 5, track.end + 5)}
    return {slot: state for slot, state in known.items() if state is not None}


@given(st.integers(0, NOW), STATES)
def test_a_track_says_of_each_slot_what_it_was_made_of(first: int, states: list[bool | None]) -> None:
    track = track_of(first, states)
    assert [track.state(first + n) for n in range(len(states))] == states
    assert track.state(first - 1) is None
    assert track.state(first + len(states)) is None


@given(TRACKS, TRACKS)
def test_what_is_amended_counts_and_the_rest_stays(old: Track, new: Track) -> None:
    assert as_dict(old.amended(new)) == as_dict(old) | as_dict(new)


@given(TRACKS, st.integers(NOW - 500, NOW + 100), st.integers(0, 300))
def test_bits_are_the_slots_asked_for(track: Track, first: int, count: int) -> None:
    active, known = track.bits(first, count)
    for n in range(count):
        state = track.state(first + n)
        assert (known >> n & 1, active >> n & 1) == (state is not None, state is True)
    assert known >> count == 0


@settings(max_examples=40)
@given(st.dictionaries(KEYS, TRACKS, max_size=8), st.integers(0, 1 << 40))
def test_a_shard_is_read_as_it_was_written(tracks: dict[EndpointKey, Track], seconds: int) -> None:
    written_at = datetime.fromtimestamp(seconds % (1 << 33), UTC)
    read = decode(encode(Shard(written_at=written_at, tracks=tracks)))
    assert read.written_at == written_at
    assert {k: as_dict(t) for k, t in read.tracks.items()} == {k: as_dict(t) for k, t in tracks.items() if t.known}


@given(st.dictionaries(KEYS, TRACKS, max_size=3), st.data())
def test_a_damaged_shard_is_refused_and_never_read_as_another(
    tracks: dict[EndpointKey, Track], data: st.DataObject
) -> None:
    content = encode(Shard(written_at=slot_start(NOW), tracks=tracks))
    at = data.draw(st.integers(0, len(content) - 1))
    flipped = bytes([*content[:at], content[at] ^ data.draw(st.integers(1, 255)), *content[at + 1 :]])
    for damaged in (flipped, content[:at], content + b"\0"):
        with pytest.raises(Invalid):
            decode(damaged)


@given(st.binary(max_size=400))
def test_bytes_of_anybody_are_refused_in_a_sentence(content: bytes) -> None:
    with pytest.raises(Invalid, match="history"):
        decode(content)


@given(st.binary(max_size=400))
def test_even_with_a_right_checksum_nonsense_is_refused(body: bytes) -> None:
    content = b"PWH\x01" + zlib.crc32(body).to_bytes(4, "big") + body
    try:
        assert decode(content).tracks == {}  # an endpoint's bitmaps do not come by chance
    except Invalid as error:
        told = str(error)
        assert "damaged history" in told


@given(TRACKS, st.integers(0, (KEEP_DAYS + 20) * DAY_SLOTS))
def test_nothing_is_older_than_is_kept_and_nothing_kept_is_changed(track: Track, later: int) -> None:
    key, now, history = EndpointKey(namespace="a", name="b"), NOW + later, History()
    history.tell(key, track)
    history.tidy(now, {key})
    kept = as_dict(history.track(key))
    assert kept == {slot: state for slot, state in as_dict(track).items() if oldest(now) <= slot <= now}
    assert now - oldest(now) < KEEP_DAYS * DAY_SLOTS


LOOKS = st.lists(
    st.tuples(st.sampled_from([1, 60, 300, 600, 1250]), st.booleans(), st.sampled_from(["up", "down", "gone"])),
    min_size=1,
    max_size=40,
)


@given(LOOKS)
def test_a_slot_is_idle_only_if_it_was_watched_without_pods_from_end_to_end(
    looks: list[tuple[int, bool, str]],
) -> None:
    """`looks`: seconds since the last one, whether the API server answers, and what there is of the endpoint."""
    key, observer, at = EndpointKey(namespace="a", name="b"), Observer(), slot_start(NOW)
    seen: dict[int, list[tuple[bool, str]]] = {}
    told: dict[int, bool] = {}
    before = (False, "gone")
    for seconds, current, what in looks:
        last, at = slot_of(at), at + timedelta(seconds=seconds)
        if slot_of(at) - last > 1:
            seen.setdefault(last, []).append((False, "gone"))  # nobody looked at its end
        for slot in range(last + 1, slot_of(at) + 1):
            seen.setdefault(slot, [before] if slot_of(at) - last == 1 else [(False, "gone")])
        sight = Sight(
            declared={key} if what != "gone" else set(), running={key} if what == "up" else set(), current=current
        )
        before = (current, what)
        seen.setdefault(slot_of(at), [(False, "gone")]).append(before)
        for observed in observer.look(at, sight):
            told |= dict.fromkeys([observed.slot] * (key in observed.idle), False)
            told |= dict.fromkeys([observed.slot] * (key in observed.active), True)
    for slot, active in told.items():
        looked = seen[slot]
        if active:
            assert (True, "up") in looked[1:]
        else:
            assert set(looked) == {(True, "down")}
