"""Latest starts and what cannot be in time, against every order there is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from agent.core.assignment import ModelWant
from agent.core.refs import parse_model_uri
from agent.plan.decision import HydrateStep, gives_way
from agent.plan.pace import MOST_SAMPLES, Pace, format_pace, parse_pace
from agent.plan.physics import LONG_AGO, Job, lasting, late_jobs, latest_starts, share_of

NOW = datetime(2026, 3, 2, 8, tzinfo=UTC)
JOBS = st.lists(
    st.builds(
        lambda due, seconds: Job(key="", due=NOW + timedelta(seconds=due), seconds=float(seconds)),
        st.integers(1, 100),
        st.integers(0, 40),
    ),
    max_size=5,
).map(lambda jobs: sorted(jobs, key=lambda j: j.due))


@given(JOBS)
def test_work_that_begins_at_the_latest_starts_is_in_time_and_cannot_begin_later(jobs: list[Job[str]]) -> None:
    starts = latest_starts(jobs, timedelta(0))
    ends = [start + timedelta(seconds=j.seconds) for start, j in zip(starts, jobs, strict=True)]
    assert all(end <= j.due for end, j in zip(ends, jobs, strict=True))
    assert all(a_end <= b_start for a_end, b_start in zip(ends, starts[1:], strict=False))
    nexts = [*starts[1:], None] if jobs else []
    assert all(end in (j.due, after) for end, j, after in zip(ends, jobs, nexts, strict=True))


@given(JOBS)
def test_it_is_said_to_be_late_exactly_when_no_order_is_in_time(jobs: list[Job[str]]) -> None:
    def in_time(order: tuple[Job[str], ...]) -> bool:
        at = NOW
        for job in order:
            at += timedelta(seconds=job.seconds)
            if job.seconds and at > job.due:
                return False
        return True

    assert bool(late_jobs(jobs, NOW, timedelta(0))) is not any(map(in_time, permutations(jobs)))
    if jobs and not late_jobs(jobs, NOW, timedelta(0)):
        assert min(latest_starts([j for j in jobs if j.seconds], timedelta(0)), default=NOW) >= NOW


def test_what_misses_is_told_with_how_much_and_what_stood_before_it() -> None:
    first = Job(key="a", due=NOW + timedelta(minutes=10), seconds=480.0)
    second = Job(key="b", due=NOW + timedelta(minutes=11), seconds=240.0)
    (late,) = late_jobs([second, first], NOW, timedelta(minutes=1))
    assert (late.job.key, late.by, late.behind_seconds) == ("b", timedelta(minutes=2), 480.0)


def test_a_slow_hour_is_taken_to_end() -> None:
    assert [lasting(s, 0.5) for s in (0, 60, 1800, 1801, 36000)] == [0, 120, 3600, 3601, 37800]
    assert lasting(36000, 1) == 36000
    job = Job(key="a", due=NOW + timedelta(hours=3), seconds=7200.0)
    assert [late.by for late in late_jobs([job], NOW, timedelta(0), 0.1)] == []
    assert [late.by for late in late_jobs([job], NOW + timedelta(hours=1), timedelta(0), 0.1)] == [
        timedelta(minutes=54)
    ]


def test_endless_work_and_odd_times_are_bounded() -> None:
    never = Job(key="", due=NOW, seconds=1e300)
    assert latest_starts([never], timedelta(0))[0] < NOW - timedelta(days=365)
    assert late_jobs([never], NOW, timedelta(0))[0].by == timedelta(days=366)
    assert latest_starts([Job(key="", due=LONG_AGO, seconds=1.0)], timedelta(0)) == [LONG_AGO]


def test_jitter_spreads_evenly_and_is_always_the_same() -> None:
    shares = [share_of(f"node-{n}") for n in range(1000)]
    assert 0.45 < sum(shares) / 1000 < 0.55
    assert all(0 <= s < 1 for s in shares)
    assert share_of("") == 0


def test_a_pace_is_what_nine_in_ten_measurements_reached() -> None:
    pace = Pace()
    for rate in range(1, 6):
        pace = pace.with_sample(rate)
    assert pace.bytes_per_second == 0
    for rate in range(6, 101):
        pace = pace.with_sample(rate)
    assert pace.bytes_per_second == 11
    assert pace.present_bytes_per_second == 100
    assert parse_pace(format_pace(pace)) == pace.paused()
    assert pace.paused().with_sample(3).present_bytes_per_second == 0
    for _ in range(MOST_SAMPLES):
        pace = pace.with_sample(0.2)
    assert (pace.bytes_per_second, len(pace.samples)) == (1, MOST_SAMPLES)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)))
def test_what_is_no_pace_is_read_as_none(value: object) -> None:
    assert parse_pace({"samples": value}).samples == () or isinstance(value, list)
    parse_pace(value)


def step(due: int | None = None, *, urgent: bool = False, early: bool = False) -> HydrateStep:
    want = ModelWant(name="m", uri=parse_model_uri("s3://weights/m/"))
    at = None if due is None else NOW + timedelta(minutes=due)
    return HydrateStep(want=want, endpoints=(), due=at, urgent=urgent, early=early, reason="")


def test_a_download_gives_way_to_a_waiting_pod_to_what_is_not_early_and_to_what_is_due_before() -> None:
    order = [step(urgent=True), step(5), step(9), step(5, early=True)]
    for n, running in enumerate(order):
        assert [gives_way(running, first) for first in order] == [m < n for m in range(len(order))]
    assert not gives_way(step(), step(5))
    assert not gives_way(step(3, early=True), step(1, early=True))
