"""Shards at their limits, the queries for each kind of workload, and histories as text."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from agent.config import HISTORY_KINDS
from agent.core.errors import Invalid
from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint, WorkloadRef
from agent.demand.heat_map import day_states, heat_map
from agent.demand.history import (
    DAY_SLOTS,
    FORGET_SLOTS,
    KEEP_DAYS,
    History,
    Track,
    known_share,
    oldest,
    slot_of,
    slot_start,
    track_of,
)
from agent.demand.history_queries import DEFAULTS, query_of
from agent.demand.history_shards import MAX_BYTES, SHARD_ENDPOINTS, Shard, decode, encode

NOW = slot_of(datetime(2026, 3, 2, 9, 0, tzinfo=UTC))
CHAT = EndpointKey(namespace="team-a", name="chat")


def endpoint(kind: str = "Deployment", name: str = "chat", history: str = "") -> Endpoint:
    ref = WorkloadRef(api_version="v1", kind=kind, namespace="team-a", name=name, uid="u")
    return Endpoint(key=EndpointKey(namespace="team-a", name=name), workload=ref, history=history)


def test_a_full_shard_fits_into_a_configmap() -> None:
    first = oldest(NOW)
    full = (1 << (NOW + 1 - first)) - 1
    track = Track(first=first, active=full, known=full)
    tracks = {EndpointKey(namespace="n" * 31, name=f"{n:031d}"): track for n in range(SHARD_ENDPOINTS)}
    content = encode(Shard(written_at=slot_start(NOW), tracks=tracks))
    assert len(content) < 0.85 * MAX_BYTES
    assert decode(content).tracks[EndpointKey(namespace="n" * 31, name=f"{7:031d}")].bits(first, 6048) == (full, full)


def test_an_endpoint_takes_eighteen_bytes_a_day_and_as_many_for_what_is_known() -> None:
    def size(days: int) -> int:
        known = (1 << days * DAY_SLOTS) - 1
        track = Track(first=oldest(NOW), active=known, known=known)
        return len(encode(Shard(written_at=slot_start(NOW), tracks={CHAT: track})))

    assert size(8) - size(1) == 7 * (18 + 18)


def test_another_version_s_shard_is_refused_by_its_format() -> None:
    content = encode(Shard(written_at=slot_start(NOW)))
    with pytest.raises(Invalid, match="format 2, this version reads format 1"):
        decode(content[:3] + b"\x02" + content[4:])


def test_an_endpoint_that_has_left_is_forgotten_after_a_week_and_one_that_is_declared_is_not() -> None:
    history = History()
    history.tell(CHAT, track_of(NOW, [True]))
    history.tidy(NOW + FORGET_SLOTS, set())
    assert CHAT in history.tracks
    history.tidy(NOW + FORGET_SLOTS + 1, {CHAT})
    assert CHAT in history.tracks
    history.tidy(NOW + FORGET_SLOTS + 1, set())
    assert history.tracks == {}


def test_slots_of_a_clock_that_ran_ahead_are_dropped() -> None:
    history = History()
    history.tell(CHAT, track_of(NOW + 5, [True]))
    history.tidy(NOW, {CHAT})
    assert history.tracks == {}


def test_what_is_known_is_a_share_of_the_last_week() -> None:
    day = Track(first=NOW - DAY_SLOTS, known=(1 << DAY_SLOTS) - 1)
    assert known_share([day], NOW) == pytest.approx(1 / 7)
    assert known_share([day, Track()], NOW) == pytest.approx(1 / 14)
    assert known_share([], NOW) == 1


def test_every_kind_of_the_setting_has_a_query() -> None:
    assert tuple(DEFAULTS) == HISTORY_KINDS


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("Deployment", ['vllm:request_success_total{namespace="team-a",pod=~"chat-[a-z0-9]+-[a-z0-9]{5}"}']),
        ("StatefulSet", ['nv_inference_request_success{namespace="team-a",pod=~"chat-[0-9]+"}']),
        ("LeaderWorkerSet", ['pod=~"chat-[0-9]+(-[0-9]+)?"']),
        ("Service", ['revision_request_count{namespace_name="team-a",service_name="chat"}', "-deployment"]),
        ("InferenceService", ['request_predict_seconds_count{namespace="team-a",pod=~"chat-predictor-.+"}']),
        ("Deployment", ['destination_workload_namespace="team-a",destination_workload=~"chat"']),
    ],
)
def test_the_query_names_the_workload_s_own_series(kind: str, parts: list[str]) -> None:
    query = query_of(endpoint(kind))
    assert all(part in query for part in parts)
    assert "$" not in query


def test_a_dot_in_a_name_stands_for_itself() -> None:
    assert 'pod=~"chat[.]v1-[0-9]+"' in query_of(endpoint("StatefulSet", "chat.v1"))


def test_a_setting_replaces_a_kind_and_an_annotation_all_of_them() -> None:
    overrides = {"vllm": 'mine{ns="$namespace",w="$name"}'}
    query = query_of(endpoint(), overrides)
    assert 'mine{ns="team-a",w="chat"}' in query
    assert "vllm:" not in query
    assert "nv_inference" in query
    assert query_of(endpoint(history='sum(x{a="$name"})'), overrides) == 'sum(x{a="$name"})'


def test_a_week_is_a_line_a_day_and_a_mark_for_each_half_hour() -> None:
    midnight = NOW // DAY_SLOTS * DAY_SLOTS
    states = [False] * 6 + [True, False, False, True, True, False, True, True, True, None, None, None]
    track = track_of(midnight, states)
    hours, yesterday, today, legend = heat_map(track, slot_start(midnight + 20), "UTC", 2)
    assert hours.split() == ["00", "03", "06", "09", "12", "15", "18", "21"]
    assert hours.index("09") == 15 + 18
    assert yesterday == "Sun 2026-03-01 " + "?" * 48
    assert today == "Mon 2026-03-02 ··░▒█??"
    assert "unknown" in legend


def test_the_wall_clock_s_change_leaves_a_gap_in_spring() -> None:
    night = slot_of(datetime(2026, 3, 28, 23, 0, tzinfo=UTC))  # midnight in Paris; 02:00 to 03:00 do not exist
    track = Track(first=night, known=(1 << DAY_SLOTS) - 1)
    *_, line, _ = heat_map(track, slot_start(night + 60), "Europe/Paris", 1)
    assert line == "Sun 2026-03-29 ····  " + "·" * 17


def test_days_as_text_tell_every_slot() -> None:
    midnight = NOW // DAY_SLOTS * DAY_SLOTS
    (yesterday, unknown), (today, slots) = day_states(track_of(midnight, [True, False]), slot_start(NOW), 2)
    assert (yesterday, unknown) == ("2026-03-01", "?" * 144)
    assert (today, slots) == ("2026-03-02", "10" + "?" * 142)


def test_a_track_cannot_be_active_where_nothing_is_known() -> None:
    with pytest.raises(ValueError, match="not known"):
        replace(Track(known=1), active=2)


def test_six_weeks_are_kept_and_no_day_more() -> None:
    assert oldest(NOW) == (NOW // DAY_SLOTS - KEEP_DAYS + 1) * DAY_SLOTS
