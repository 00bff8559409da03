"""What the node decides to do next, and the sentence it gives for it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from agent.core.assignment import Assignment, EndpointWant, ImageWant, ModelWant, Window, WindowSource
from agent.core.inventory import (
    CacheUse,
    GpuReport,
    GpuVerdict,
    ImageLevel,
    ImageState,
    Inventory,
    ModelLevel,
    ModelState,
)
from agent.core.refs import Digest, EndpointKey, parse_image_ref, parse_model_uri
from agent.plan.decision import Stage
from agent.plan.planning import Limits, plan

NOW = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
LIMITS = Limits(warm_ahead=timedelta(minutes=30), rate_bytes_per_second=1e9)
A, B = Digest("sha256:" + "a" * 64), Digest("sha256:" + "b" * 64)
IMAGE = ImageWant(ref=parse_image_ref("registry.bed/server:1"), digest="sha256:" + "1" * 64)


def model(digest: Digest | None = A, size: int = 10**9, key: str = "llm/") -> ModelWant:
    return ModelWant(name="llm", uri=parse_model_uri(f"s3://models/{key}"), digest=digest, size_bytes=size)


def endpoint(name: str = "chat", *, opens_in: timedelta | None = timedelta(minutes=20), **more: object) -> EndpointWant:
    windows = () if opens_in is None else (Window(ready_by=NOW + opens_in, until=NOW + opens_in + timedelta(hours=1)),)
    basic = EndpointWant(
        key=EndpointKey(namespace="team", name=name), images=(IMAGE,), models=(model(),), windows=windows
    )
    return replace(basic, **more)  # type: ignore[arg-type]


def warm_image(digest: str = IMAGE.digest) -> dict[object, ImageState]:
    return {IMAGE.ref: ImageState(ref=IMAGE.ref, level=ImageLevel.UNPACKED, digest=digest)}


def committed(digest: Digest = A, size: int = 10**9) -> dict[Digest, ModelState]:
    return {digest: ModelState(digest=digest, level=ModelLevel.COMMITTED, done_bytes=size, total_bytes=size)}


def test_nothing_is_planned_without_an_assignment() -> None:
    assert plan(None, Inventory(), NOW, LIMITS).pulls == ()


def test_a_window_that_is_near_starts_pull_and_download() -> None:
    decided = plan(Assignment(endpoints=(endpoint(),)), Inventory(proved=True), NOW, LIMITS)
    assert [s.want for s in decided.pulls] == [IMAGE]
    assert [s.want for s in decided.hydrations] == [model()]
    assert decided.endpoints[0].stage is Stage.WARMING


def test_a_window_far_ahead_waits_for_its_start_and_names_it() -> None:
    decided = plan(Assignment(endpoints=(endpoint(opens_in=timedelta(hours=5)),)), Inventory(), NOW, LIMITS)
    told = decided.endpoints[0]
    assert (decided.pulls, decided.hydrations) == ((), ())
    assert told.stage is Stage.SCHEDULED
    # 1 GB of model and 2 GB assumed for the image at 1 GB/s are 3 s, and 30 min ahead of that
    assert told.start_at == NOW + timedelta(hours=5) - timedelta(minutes=30, seconds=3)
    assert decided.wake_at == told.start_at


def test_the_start_of_a_later_endpoint_leaves_room_for_the_earlier_one() -> None:
    early = endpoint("early", opens_in=timedelta(hours=5), images=(), models=(model(A, 60 * 10**9),))
    late = endpoint("late", opens_in=timedelta(hours=5, minutes=1), images=(), models=(model(B, 60 * 10**9, "b/"),))
    decided = plan(Assignment(endpoints=(late, early)), Inventory(), NOW, LIMITS)
    starts = {e.want.key.name: e.start_at for e in decided.endpoints}
    assert starts["early"] == NOW + timedelta(hours=5) - timedelta(minutes=31)
    assert starts["late"] == NOW + timedelta(hours=5, minutes=1) - timedelta(minutes=31)


def test_what_is_due_first_starts_early_enough_for_what_comes_after_it() -> None:
    small = endpoint("small", opens_in=timedelta(hours=5), images=(), models=(model(A, 60 * 10**9),))
    large = endpoint("large", opens_in=timedelta(hours=5, minutes=1), images=(), models=(model(B, 3600 * 10**9, "b/"),))
    decided = plan(Assignment(endpoints=(large, small)), Inventory(), NOW, LIMITS)
    starts = {e.want.key.name: e.start_at for e in decided.endpoints}
    assert starts["large"] == NOW + timedelta(hours=5, minutes=1) - timedelta(minutes=90)
    assert starts["small"] == starts["large"] - timedelta(minutes=1)


def test_the_measured_pace_of_the_node_decides_the_start() -> None:
    far = endpoint(opens_in=timedelta(hours=9), images=(), models=(model(A, 60 * 10**9),))
    decided = plan(Assignment(endpoints=(far,)), Inventory(pace_bytes_per_second=20e6), NOW, LIMITS)
    assert decided.endpoints[0].start_at == NOW + timedelta(hours=9) - timedelta(minutes=80)


EARLY = replace(LIMITS, early=timedelta(hours=48))
ROOMY = CacheUse(free_bytes=10**12, capacity_bytes=2 * 10**12)


def test_spare_capacity_fetches_one_model_early_and_gives_way_to_what_is_due() -> None:
    far = endpoint("far", opens_in=timedelta(hours=9), images=(), models=(model(B, 10**9, "b/"),))
    farther = endpoint("farther", opens_in=timedelta(hours=20), images=(), models=(model(A),))
    spare = plan(Assignment(endpoints=(far, farther)), Inventory(cache=ROOMY), NOW, EARLY)
    assert [(s.want.digest, s.early, s.urgent) for s in spare.hydrations] == [(B, True, False)]
    assert spare.endpoints[0].stage is Stage.SCHEDULED
    near = endpoint("near", images=())
    busy = plan(Assignment(endpoints=(far, near)), Inventory(cache=ROOMY), NOW, EARLY)
    assert [(s.want.digest, s.early) for s in busy.hydrations] == [(A, False)]


def test_nothing_is_fetched_early_into_a_disk_that_is_nearly_full_or_where_it_is_switched_off() -> None:
    far = Assignment(endpoints=(endpoint("far", opens_in=timedelta(hours=9), images=()),))
    full = CacheUse(free_bytes=5 * 10**11, capacity_bytes=2 * 10**12)
    assert plan(far, Inventory(cache=full), NOW, EARLY).hydrations == ()
    assert plan(far, Inventory(), NOW, EARLY).hydrations == ()
    assert plan(far, Inventory(cache=ROOMY), NOW, LIMITS).hydrations == ()


def test_the_nodes_of_a_fleet_fetch_early_and_start_at_different_times() -> None:
    far, spread = endpoint("far", opens_in=timedelta(hours=40), images=()), replace(EARLY, early=timedelta(hours=6))
    plans = [plan(Assignment(node=f"n{n}", endpoints=(far,)), Inventory(cache=ROOMY), NOW, spread) for n in range(50)]
    wakes = sorted(p.wake_at for p in plans if p.wake_at)
    assert timedelta(hours=4) < wakes[-1] - wakes[0] < timedelta(hours=6)
    starts = {p.endpoints[0].start_at for p in plans}
    assert len(starts) == 50
    assert all(s and timedelta(minutes=30) <= NOW + timedelta(hours=40) - s <= timedelta(minutes=38) for s in starts)


def test_due_first_then_priority_and_a_waiting_pod_before_all() -> None:
    soon = endpoint("soon", opens_in=timedelta(minutes=10), images=(), models=(model(A, key="a/"),))
    later = endpoint("later", opens_in=timedelta(minutes=20), images=(), models=(model(B, key="b/"),))
    asleep = endpoint("asleep", opens_in=None, images=(), models=(model(Digest("sha256:" + "c" * 64), key="c/"),))
    inventory = Inventory(proved=True, waiting=frozenset({asleep.key}))
    decided = plan(Assignment(endpoints=(later, soon, asleep)), inventory, NOW, LIMITS)
    assert [s.endpoints[0].name for s in decided.hydrations] == ["asleep", "soon", "later"]
    assert [s.urgent for s in decided.hydrations] == [True, False, False]
    assert decided.hydrations[0].due is None


def test_a_model_that_two_endpoints_share_is_fetched_once() -> None:
    decided = plan(Assignment(endpoints=(endpoint("a"), endpoint("b"))), Inventory(), NOW, LIMITS)
    assert [[k.name for k in s.endpoints] for s in decided.hydrations] == [["a", "b"]]
    assert [[k.name for k in s.endpoints] for s in decided.pulls] == [["a", "b"]]


def test_an_endpoint_without_a_window_is_idle_until_a_pod_waits() -> None:
    decided = plan(Assignment(endpoints=(endpoint(opens_in=None),)), Inventory(), NOW, LIMITS)
    assert decided.endpoints[0].stage is Stage.IDLE
    assert decided.hydrations == ()


def test_all_warm_is_ready_and_gets_its_view() -> None:
    inventory = Inventory(proved=True, images=warm_image(), models=committed())  # type: ignore[arg-type]
    decided = plan(Assignment(endpoints=(endpoint(),)), inventory, NOW, LIMITS)
    assert decided.endpoints[0].stage is Stage.READY
    assert [(v.name, v.digest) for v in decided.views] == [("llm", A)]
    assert decided.pulls == ()


def test_another_image_under_the_same_tag_is_not_warm() -> None:
    inventory = Inventory(proved=True, images=warm_image("sha256:" + "2" * 64), models=committed())  # type: ignore[arg-type]
    assert len(plan(Assignment(endpoints=(endpoint(),)), inventory, NOW, LIMITS).pulls) == 1


def test_a_failure_is_backed_off_told_and_woken_for() -> None:
    retry = NOW + timedelta(seconds=40)
    state = ModelState(digest=A, error="access denied", retry_at=retry)
    decided = plan(Assignment(endpoints=(endpoint(),)), Inventory(models={A: state}), NOW, LIMITS)
    assert decided.hydrations == ()
    assert decided.endpoints[0].stage is Stage.FAILING
    assert decided.endpoints[0].reason == "model llm: access denied"
    assert decided.wake_at == retry


def test_an_open_window_with_something_missing_is_late_by_how_much() -> None:
    late = endpoint(opens_in=timedelta(minutes=-3))
    decided = plan(Assignment(endpoints=(late,)), Inventory(), NOW, LIMITS)
    assert decided.endpoints[0].stage is Stage.LATE
    assert "opened 3m ago" in decided.endpoints[0].reason
    assert len(decided.hydrations) == 1


def test_a_window_that_cannot_be_met_any_more_is_told_from_that_moment_on_and_fetched_all_the_same() -> None:
    tight = Assignment(endpoints=(endpoint(opens_in=timedelta(minutes=10), images=(), models=(model(A, 60 * 10**9),)),))
    met = plan(tight, Inventory(pace_bytes_per_second=1e9), NOW, LIMITS)
    assert (met.endpoints[0].stage, met.endpoints[0].ready_at) == (Stage.WARMING, None)
    assert met.wake_at == NOW + timedelta(minutes=9, seconds=1)
    assert plan(tight, Inventory(pace_bytes_per_second=1e9), NOW + timedelta(minutes=9), LIMITS).wake_at == met.wake_at
    missed = plan(tight, Inventory(pace_bytes_per_second=1e9), NOW + timedelta(minutes=9, seconds=1), LIMITS)
    told = missed.endpoints[0]
    assert (told.stage, told.ready_at) == (Stage.LATE, NOW + timedelta(minutes=10, seconds=1))
    assert told.reason == "its window cannot be met: model llm takes 1m from now at best"
    assert len(missed.hydrations) == 1


def test_the_window_after_one_that_is_open_is_told_too_if_it_cannot_be_met() -> None:
    """What the open one waits for, and all that is due before, is not through when the next one opens."""
    spans = [(-30, 4), (5, 60)]
    opened = tuple(Window(ready_by=NOW + timedelta(minutes=a), until=NOW + timedelta(minutes=b)) for a, b in spans)
    behind = endpoint(images=(), models=(model(A, 240 * 10**9),), windows=opened)
    other = endpoint("other", opens_in=timedelta(minutes=-59), images=(), models=(model(B, 30 * 10**9, "b/"),))
    both, fast = Assignment(endpoints=(behind, other)), Inventory(pace_bytes_per_second=1e9)
    met = plan(both, fast, NOW, LIMITS)
    assert [(e.want.key.name, e.stage, e.ready_at) for e in met.endpoints][1] == ("chat", Stage.LATE, None)
    assert met.wake_at == NOW + timedelta(seconds=31)  # a moment too late: 270 s of work before a window in 300
    missed = plan(both, fast, NOW + timedelta(seconds=31), LIMITS).endpoints[1]
    assert (missed.due, missed.ready_at) == (opened[0].ready_by, NOW + timedelta(seconds=301))
    assert (
        plan(Assignment(endpoints=(behind,)), fast, NOW + timedelta(seconds=31), LIMITS).endpoints[0].ready_at is None
    )


def test_a_download_that_is_slower_than_usual_is_reckoned_with_at_its_present_rate() -> None:
    tight = Assignment(endpoints=(endpoint(opens_in=timedelta(minutes=10), images=(), models=(model(A, 60 * 10**9),)),))
    state = ModelState(digest=A, busy=True, done_bytes=30 * 10**9, total_bytes=60 * 10**9)
    slow = Inventory(models={A: state}, pace_bytes_per_second=1e9, present_bytes_per_second=40e6)
    assert (
        plan(tight, slow, NOW, LIMITS).endpoints[0].ready_at is None
    )  # nearly stalled: a tenth of the usual is assumed
    later = plan(tight, slow, NOW + timedelta(minutes=6), LIMITS).endpoints[0]
    assert later.ready_at == NOW + timedelta(minutes=11)
    fast = replace(slow, present_bytes_per_second=2e9)
    assert plan(tight, fast, NOW + timedelta(minutes=6), LIMITS).endpoints[0].ready_at is None


def test_what_waits_behind_a_slow_download_is_reckoned_slow_for_a_while_too() -> None:
    def behind(opens_in: timedelta) -> Assignment:
        first = endpoint("first", opens_in=timedelta(minutes=9), images=(), models=(model(A, 30 * 10**9),))
        second = endpoint("second", opens_in=opens_in, images=(), models=(model(B, 600 * 10**9, "b/"),))
        return Assignment(endpoints=(first, second))

    state = ModelState(digest=A, busy=True, total_bytes=30 * 10**9)
    usual = Inventory(models={A: state}, pace_bytes_per_second=1e9, present_bytes_per_second=1e9)
    slow = replace(usual, present_bytes_per_second=5e8)
    told = [plan(behind(timedelta(minutes=15)), now, NOW, LIMITS).endpoints[1] for now in (usual, slow)]
    assert [t.ready_at for t in told] == [None, NOW + timedelta(minutes=21)]
    later = [plan(behind(timedelta(hours=5)), now, NOW, LIMITS).endpoints[1] for now in (usual, slow)]
    assert [t.ready_at for t in later] == [None, None]
    assert later[0].start_at == NOW + timedelta(hours=5, minutes=-10) - LIMITS.warm_ahead
    assert later[1].start_at == later[0].start_at - timedelta(minutes=10, seconds=30)


def test_unhealthy_gpus_stop_hydration_and_say_why() -> None:
    inventory = Inventory(gpu=GpuReport(verdict=GpuVerdict.UNHEALTHY, reason="GPU 3 is lost"))
    decided = plan(Assignment(endpoints=(endpoint(gpus=8),)), inventory, NOW, LIMITS)
    assert decided.hydrations == ()
    assert decided.endpoints[0].reason == "needs 8 GPU: unhealthy, GPU 3 is lost"


def test_a_want_without_version_is_warm_once_the_agent_resolved_and_committed_it() -> None:
    want = endpoint(images=(), models=(model(None),))
    inventory = Inventory(resolved={str(model().uri): A}, models=committed())
    assert plan(Assignment(endpoints=(want,)), inventory, NOW, LIMITS).endpoints[0].stage is Stage.READY


def test_a_stalled_download_and_odd_times_start_everything_now_and_break_nothing() -> None:
    stalled = ModelState(
        digest=A, level=ModelLevel.PARTIAL, done_bytes=1, total_bytes=10**10, busy=True, rate_bytes_per_second=1e-9
    )
    decided = plan(Assignment(endpoints=(endpoint(),)), Inventory(models={A: stalled}), NOW, LIMITS)
    assert [s.want for s in decided.hydrations] == [model()]
    dawn = Window(ready_by=datetime(1, 1, 1, tzinfo=UTC), until=NOW + timedelta(hours=1))
    decided = plan(Assignment(endpoints=(endpoint(windows=(dawn,)),)), Inventory(), NOW, LIMITS)
    assert [s.want for s in decided.hydrations] == [model()]


def guess(opens_in: timedelta, lasts: timedelta = timedelta(hours=1)) -> Window:
    opens = NOW + opens_in
    return Window(ready_by=opens, until=opens + lasts, source=WindowSource.PREDICTED, confidence=10)


def test_a_guess_is_fetched_after_what_is_declared_and_makes_none_late() -> None:
    minutes = timedelta(minutes=1)
    soon = endpoint("soon", images=(), models=(model(A, 600 * 10**9),), windows=(guess(15 * minutes),))
    declared = endpoint("sure", opens_in=20 * minutes, images=(), models=(model(B, 900 * 10**9, "b/"),))
    decided = plan(Assignment(endpoints=(soon, declared)), Inventory(), NOW, LIMITS)
    assert [s.want.digest for s in decided.hydrations] == [B, A]
    assert {e.want.key.name: (e.stage, e.ready_at) for e in decided.endpoints} == {
        "sure": (Stage.WARMING, None),
        "soon": (Stage.WARMING, None),
    }


def test_an_open_guess_does_not_hide_that_the_declared_window_behind_it_cannot_be_met() -> None:
    declared = endpoint(opens_in=timedelta(minutes=20), images=(), models=(model(A, 3600 * 10**9),))
    both = replace(declared, windows=(guess(-timedelta(hours=1), timedelta(minutes=80)), *declared.windows))
    told = plan(Assignment(endpoints=(both,)), Inventory(), NOW, LIMITS).endpoints[0]
    assert told.ready_at == NOW + timedelta(hours=1)


def test_a_guess_starts_early_enough_for_what_a_later_declared_window_needs_too() -> None:
    large = model(A, 3600 * 10**9)
    soon = endpoint("soon", images=(), models=(large,), windows=(guess(timedelta(hours=5)),))
    sure = endpoint("sure", opens_in=timedelta(hours=9), images=(), models=(large,))
    decided = plan(Assignment(endpoints=(soon, sure)), Inventory(), NOW, LIMITS)
    starts = {e.want.key.name: e.start_at for e in decided.endpoints}
    assert starts["soon"] == NOW + timedelta(hours=5) - timedelta(minutes=90)
