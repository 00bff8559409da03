"""The images room on the twin, in virtual time: what it claims, when it withdraws, what it pulls and in which order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from agent.config import Settings
from agent.core.assignment import ImageWant
from agent.core.heartbeat import Heartbeat
from agent.core.inventory import ImageLevel, ImageState
from agent.core.latest import Latest
from agent.core.refs import ImageRef, parse_image_ref
from agent.images.daemon import Way
from agent.images.service import ImageService
from agent.plan.decision import NodePlan, PullStep
from tests.fakes.containerd import FakeContainerd, make_image
from tests.fakes.virtual_time import LoopClock, run_virtual

A, B, C = "r.io/a:1", "r.io/b:1", "r.io/c:1"


class Bench:
    """A service, its twin and its cells; it counts pulls as observer."""

    def __init__(self, max_pulls: int) -> None:
        self.node = FakeContainerd()
        self.plan: Latest[NodePlan] = Latest(NodePlan())
        self.images: Latest[Mapping[ImageRef, ImageState]] = Latest({})
        self.heartbeat = Heartbeat()
        self.outcomes: list[tuple[str, str, bool]] = []
        self.service = ImageService(
            self.node,
            plan=self.plan,
            images=self.images,
            settings=replace(Settings(), proof_interval_seconds=15.0, max_pulls=max_pulls),
            clock=LoopClock(),
            heartbeat=self.heartbeat,
            observer=self,
            rng=random.Random(1),
        )

    def pulled(self, ref: ImageRef, seconds: float, size_bytes: int, outcome: str) -> None:
        self.outcomes.append((str(ref), outcome, size_bytes > 0))

    def lost(self, ref: ImageRef) -> None:
        self.outcomes.append((str(ref), "lost", False))

    def offer(self, name: str) -> ImageWant:
        """Have the registry offer `name`; return the want for it."""
        self.node.registry[name] = make_image(name)
        return ImageWant(ref=parse_image_ref(name), digest=self.node.registry[name].target)

    async def hold(self, name: str) -> ImageWant:
        """Have the node hold `name`."""
        want = self.offer(name)
        await self.node.pull(name, "")
        self.node.pulled.clear()
        return want

    def watch(self, *wants: ImageWant) -> None:
        self.plan.set(NodePlan(images=wants))

    def ask(self, *wants: ImageWant, urgent: tuple[str, ...] = ()) -> None:
        """Plan to pull these, in this order."""
        steps = [
            PullStep(
                want=want, runtime_handler="", endpoints=(), due=None, urgent=str(want.ref) in urgent, reason="a test"
            )
            for want in wants
        ]
        self.plan.set(NodePlan(images=wants, pulls=tuple(steps)))

    def state(self, want: ImageWant) -> ImageState:
        return self.images.get()[want.ref]

    def age_seconds(self) -> float:
        return self.heartbeat.ages_seconds(LoopClock().monotonic())["images"]

    async def until(self, want: ImageWant, holds: Callable[[ImageState], bool]) -> float:
        """Wait until the published state of `want` holds; return the virtual seconds it took."""
        began = LoopClock().monotonic()
        async with asyncio.timeout(7200):
            async for states in self.images.follow():
                if want.ref in states and holds(states[want.ref]):
                    break
        return LoopClock().monotonic() - began

    async def until_level(self, want: ImageWant, level: ImageLevel) -> float:
        return await self.until(want, lambda state: state.level is level)


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[None]:
    task = asyncio.create_task(bench.service.run())
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def play(story: Callable[[Bench], Awaitable[None]], *, max_pulls: int = 2) -> None:
    """Run a story in virtual time."""

    async def run() -> None:
        await story(Bench(max_pulls))

    run_virtual(run())


def test_an_image_on_the_node_is_proved_without_a_pull() -> None:
    async def story(bench: Bench) -> None:
        want = await bench.hold(A)
        async with running(bench):
            bench.ask(want)
            assert await bench.until_level(want, ImageLevel.UNPACKED) == 0
            await asyncio.sleep(60)
            assert bench.node.pulled == []
            assert bench.state(want).digest == want.digest
            assert bench.state(want).reason == "all 2 layers are unpacked in overlayfs"

    play(story)


def test_a_missing_image_is_pulled_by_the_name_the_pod_uses_and_then_proved() -> None:
    async def story(bench: Bench) -> None:
        want = bench.offer(A)
        async with running(bench):
            bench.ask(want)
            await bench.until_level(want, ImageLevel.UNPACKED)
            assert bench.node.pulled == [(A, "")]
            await bench.until(want, lambda state: not state.busy)
            assert bench.outcomes == [(A, "ok", True)]

    play(story)


def test_a_deleted_record_withdraws_the_claim_at_once() -> None:
    async def story(bench: Bench) -> None:
        want = await bench.hold(A)
        bench.watch(want)
        async with running(bench):
            await bench.until_level(want, ImageLevel.UNPACKED)
            bench.node.forget(A)
            bench.node.hangs = True  # no look into it is needed
            assert await bench.until_level(want, ImageLevel.ABSENT) == 0
            assert bench.outcomes == [(A, "lost", False)]

    play(story)


def test_a_deletion_during_a_cycle_is_not_overwritten_by_what_the_cycle_saw_before() -> None:
    async def story(bench: Bench) -> None:
        want = await bench.hold(A)
        bench.watch(want)
        seen: list[ImageLevel] = []
        committed = bench.node.committed

        async def delete_between(snapshotter: str) -> frozenset[str]:
            if A in bench.node.names and seen:
                seen.clear()
                bench.node.forget(A)
                for _ in range(5):  # let the event arrive while this cycle is under way
                    await asyncio.sleep(0)
            return await committed(snapshotter)

        bench.node.committed = delete_between  # type: ignore[method-assign]
        async with running(bench):
            await bench.until_level(want, ImageLevel.UNPACKED)
            seen.append(ImageLevel.UNPACKED)
            await bench.until_level(want, ImageLevel.ABSENT)
            assert not seen
            for _ in range(50):
                await asyncio.sleep(0)
                assert bench.state(want).level is ImageLevel.ABSENT

    play(story)


def test_a_removed_snapshot_withdraws_the_claim_at_once() -> None:
    async def story(bench: Bench) -> None:
        want = await bench.hold(A)
        bench.watch(want)
        async with running(bench):
            await bench.until_level(want, ImageLevel.UNPACKED)
            bench.node.drop_snapshot(bench.node.registry[A].chain[0])
            assert await bench.until_level(want, ImageLevel.PRESENT) < 0.1

    play(story)


def test_a_snapshot_of_whose_loss_nobody_told_is_missed_within_one_interval() -> None:
    async def story(bench: Bench) -> None:
        want = await bench.hold(A)
        bench.watch(want)
        async with running(bench):
            await bench.until_level(want, ImageLevel.UNPACKED)
            bench.node.snapshots["overlayfs"].discard(bench.node.registry[A].chain[0])
            assert await bench.until_level(want, ImageLevel.PRESENT) <= 15

    play(story)


def test_a_tag_that_moved_is_pulled_and_else_an_error_that_never_claims() -> None:
    async def story(bench: Bench) -> None:
        await bench.hold(A)
        new = make_image("newer")
        want = ImageWant(ref=parse_image_ref(A), digest=new.target)
        async with running(bench):
            bench.ask(want)
            await bench.until(want, lambda state: state.error != "")
            state = bench.state(want)
            assert state.level is ImageLevel.PRESENT
            assert state.error.startswith("tag moved since the planner resolved it: the tag points to sha256:")
            bench.node.registry[A] = new
            assert 0 < await bench.until_level(want, ImageLevel.UNPACKED) <= 60
            assert bench.state(want).digest == new.target

    play(story)


def test_a_digest_planned_anew_is_pulled_at_once_despite_an_earlier_failure() -> None:
    async def story(bench: Bench) -> None:
        want = bench.offer(A)
        async with running(bench):
            bench.ask(replace(want, digest="sha256:" + "0" * 64))
            await bench.until(want, lambda state: state.error != "")
            bench.ask(want)
            assert await bench.until_level(want, ImageLevel.UNPACKED) == 0

    play(story)


def test_a_tag_the_registry_lacks_is_told_and_tried_again_seldom() -> None:
    async def story(bench: Bench) -> None:
        want = ImageWant(ref=parse_image_ref(A))
        async with running(bench):
            bench.ask(want)
            await bench.until(want, lambda state: state.error != "")
            state = bench.state(want)
            assert (state.level, state.error) == (ImageLevel.ABSENT, "cannot pull r.io/a:1: not found")
            assert state.retry_at is not None
            assert (state.retry_at - LoopClock().now()).total_seconds() >= 30
            await asyncio.sleep(3600)
            assert 6 <= len(bench.node.pulled) <= 25
            assert {outcome for _, outcome, _ in bench.outcomes} == {"not found"}
            bench.offer(A)
            assert await bench.until_level(want, ImageLevel.UNPACKED) <= 615

    play(story)


def test_a_registry_that_limits_the_rate_is_left_alone_for_as_long_as_it_asks() -> None:
    async def story(bench: Bench) -> None:
        want = bench.offer(A)
        bench.node.limits_rate, bench.node.asks_to_wait_seconds = True, 1800
        async with running(bench):
            bench.ask(want)
            await bench.until(want, lambda state: state.error != "")
            await asyncio.sleep(1790)
            assert len(bench.node.pulled) == 1
            bench.node.limits_rate = False
            assert await bench.until_level(want, ImageLevel.UNPACKED) <= 30

    play(story)


def test_no_more_pulls_at_a_time_than_set_in_the_order_of_the_plan() -> None:
    async def story(bench: Bench) -> None:
        wants = [bench.offer(name) for name in (C, A, B)]
        bench.node.gate = asyncio.Event()
        async with running(bench):
            bench.ask(*wants)
            await asyncio.sleep(30)
            assert [name for name, _ in bench.node.pulled] == [C, A]
            bench.node.gate.set()
            await bench.until_level(wants[2], ImageLevel.UNPACKED)
            assert [name for name, _ in bench.node.pulled] == [C, A, B]

    play(story)


def test_while_a_pod_waits_for_an_image_no_other_pull_is_started() -> None:
    async def story(bench: Bench) -> None:
        first, second, third = (bench.offer(name) for name in (A, B, C))
        bench.node.gate = asyncio.Event()
        async with running(bench):
            bench.ask(first, second, third, urgent=(C,))
            await asyncio.sleep(30)
            assert [name for name, _ in bench.node.pulled] == [C]
            bench.node.gate.set()
            bench.plan.set(replace(bench.plan.get(), pulls=bench.plan.get().pulls[:2]))
            await bench.until_level(first, ImageLevel.UNPACKED)

    play(story)


def test_a_pull_that_can_be_resumed_gives_way_to_one_a_pod_waits_for_and_goes_on_after_it() -> None:
    async def story(bench: Bench) -> None:
        first, second, third = (bench.offer(name) for name in (A, B, C))
        bench.node.gate = asyncio.Event()
        async with running(bench):
            bench.ask(first, second, third)
            await bench.until(second, lambda state: state.busy)
            await asyncio.sleep(10)
            bench.ask(first, second, third, urgent=(C,))
            await asyncio.sleep(1)
            assert bench.node.pulling == {C}
            bench.node.gate.set()
            await bench.until_level(third, ImageLevel.UNPACKED)
            bench.ask(first, second)
            await bench.until(second, lambda state: state.level is ImageLevel.UNPACKED and not state.busy)
            assert [state.error for state in bench.images.get().values()] == ["", ""]
            assert sorted(outcome for _, outcome, _ in bench.outcomes) == ["cancelled", "cancelled", "ok", "ok", "ok"]

    play(story)


def test_pulls_that_cannot_be_resumed_finish_beside_one_a_pod_waits_for_but_none_starts() -> None:
    async def story(bench: Bench) -> None:
        first, second, third, fourth = (bench.offer(name) for name in (A, B, C, "r.io/d:1"))
        bench.node.way_of_pulls = Way(resumable=False, reason="not resumable, by the CRI: a test")
        bench.node.gate = asyncio.Event()
        async with running(bench):
            bench.ask(first, second, third, fourth)
            await asyncio.sleep(10)
            assert bench.node.pulling == {A, B}
            bench.ask(first, second, third, fourth, urgent=(C,))
            await asyncio.sleep(10)
            assert bench.node.pulling == {A, B, C}
            assert bench.outcomes == []
            bench.node.gate.set()
            await bench.until_level(first, ImageLevel.UNPACKED)

    play(story)


def test_a_running_pull_that_a_pod_begins_to_wait_for_is_not_begun_anew() -> None:
    async def story(bench: Bench) -> None:
        first, second = bench.offer(A), bench.offer(B)
        bench.node.gate = asyncio.Event()
        async with running(bench):
            bench.ask(first, second)
            await asyncio.sleep(10)
            bench.ask(first, second, urgent=(B,))
            await asyncio.sleep(10)
            assert bench.node.pulling == {B}
            assert [name for name, _ in bench.node.pulled] == [A, B]
            bench.node.gate.set()
            await bench.until_level(second, ImageLevel.UNPACKED)

    play(story)


def test_a_resumable_pull_without_a_byte_for_five_minutes_is_ended_and_tried_again() -> None:
    async def story(bench: Bench) -> None:
        want = bench.offer(A)
        bench.node.gate = asyncio.Event()
        async with running(bench):
            bench.ask(want)
            assert 300 < await bench.until(want, lambda state: state.error != "") < 310
            assert "no byte came for 300 s" in bench.state(want).error
            assert bench.outcomes == [(A, "registry away", False)]
            bench.node.gate.set()
            await bench.until_level(want, ImageLevel.UNPACKED)

    play(story)


def test_a_pull_that_takes_its_time_to_end_is_ended_once() -> None:
    async def story(bench: Bench) -> None:
        want = bench.offer(A)
        bench.node.gate = asyncio.Event()
        pull = bench.node.pull

        async def slow_to_end(name: str, handler: str) -> None:
            try:
                await pull(name, handler)
            finally:
                await asyncio.sleep(10)

        bench.node.pull = slow_to_end  # type: ignore[method-assign]
        async with running(bench):
            bench.ask(want)
            await bench.until(want, lambda state: state.error != "")
            assert "no byte came for 300 s" in bench.state(want).error
            assert bench.outcomes == [(A, "registry away", False)]
            bench.node.gate.set()
            await bench.until_level(want, ImageLevel.UNPACKED)

    play(story)


def test_layers_that_were_unpacked_before_and_discarded_are_done_and_unpacking_the_rest_is_no_stall() -> None:
    async def story(bench: Bench) -> None:
        want = bench.offer(A)
        image = bench.node.registry[A]
        bench.node.snapshots["overlayfs"].add(image.chain[0])
        bench.node.content.update({d: b for d, b in image.blobs.items() if d != image.layers[0]})
        bench.node.gate = asyncio.Event()
        async with running(bench):
            bench.ask(want)
            await bench.until(want, lambda state: state.done_bytes > 0)
            assert bench.state(want).done_bytes == bench.state(want).total_bytes > 0
            await asyncio.sleep(1000)
            assert (bench.state(want).error, bench.outcomes) == ("", [])
            bench.node.gate.set()
            await bench.until_level(want, ImageLevel.UNPACKED)

    play(story)


def test_what_an_interrupted_pull_fetched_is_told_and_let_go_of_when_the_image_leaves_the_plan() -> None:
    async def story(bench: Bench) -> None:
        want = bench.offer(A)
        image = bench.node.registry[A]
        bench.node.gate = asyncio.Event()
        async with running(bench):
            bench.ask(want)
            await bench.node.pull_began.wait()
            bench.node.content.update({d: b for d, b in image.blobs.items() if d not in image.layers})
            bench.node.partial[image.layers[1]] = 3
            await bench.until_level(want, ImageLevel.PARTIAL)
            bench.watch(want)
            await bench.until(want, lambda state: not state.busy)
            state = bench.state(want)
            assert (state.level, state.done_bytes) == (ImageLevel.PARTIAL, 3)
            assert state.reason == "a pull was interrupted; the next one goes on from there"
            bench.watch()
            await asyncio.sleep(1)
            assert bench.node.released == [A]

    play(story)


def test_an_urgent_pull_that_is_backed_off_holds_nobody_up() -> None:
    async def story(bench: Bench) -> None:
        missing, there = ImageWant(ref=parse_image_ref(C)), bench.offer(A)
        async with running(bench):
            bench.ask(missing, there, urgent=(C,))
            assert await bench.until_level(there, ImageLevel.UNPACKED) <= 15

    play(story)


def test_a_pull_no_longer_wanted_is_cancelled() -> None:
    async def story(bench: Bench) -> None:
        want = bench.offer(A)
        bench.node.gate = asyncio.Event()
        async with running(bench):
            bench.ask(want)
            await bench.until(want, lambda state: state.busy)
            await bench.node.pull_began.wait()
            bench.watch(want)
            await bench.until(want, lambda state: not state.busy)
            assert bench.node.pulling == set()
            assert bench.outcomes == [(A, "cancelled", False)]
            assert bench.state(want).error == ""

    play(story)


def test_a_pull_whose_image_is_proved_before_it_returns_is_not_cancelled() -> None:
    async def story(bench: Bench) -> None:
        want = bench.offer(A)
        pull, returning = bench.node.pull, asyncio.Event()

        async def slow_to_return(name: str, handler: str) -> None:
            await pull(name, handler)
            await returning.wait()

        bench.node.pull = slow_to_return  # type: ignore[method-assign]
        async with running(bench):
            bench.ask(want)
            await bench.until_level(want, ImageLevel.UNPACKED)
            bench.watch(want)
            await asyncio.sleep(20)
            returning.set()
            await bench.until(want, lambda state: not state.busy)
            assert bench.outcomes == [(A, "ok", True)]

    play(story)


def test_progress_is_told_while_a_pull_runs() -> None:
    async def story(bench: Bench) -> None:
        want = bench.offer(A)
        image = bench.node.registry[A]
        bench.node.gate = asyncio.Event()
        async with running(bench):
            bench.ask(want)
            await bench.node.pull_began.wait()
            documents = {d: b for d, b in image.blobs.items() if d not in image.layers}
            bench.node.content.update(documents, **{image.layers[0]: image.blobs[image.layers[0]]})
            bench.node.partial[image.layers[1]] = 3
            await bench.until_level(want, ImageLevel.PARTIAL)
            whole = len(image.blobs[image.layers[0]])
            assert bench.state(want).done_bytes == whole + 3
            assert bench.state(want).total_bytes == 2 * whole

    play(story)


@pytest.mark.parametrize("how", ["away", "hangs"])
def test_without_containerd_claims_stand_for_30_seconds_and_come_back_with_it(how: str) -> None:
    async def story(bench: Bench) -> None:
        want = await bench.hold(A)
        bench.watch(want)
        async with running(bench):
            await bench.until_level(want, ImageLevel.UNPACKED)
            setattr(bench.node, how, True)
            assert await bench.until_level(want, ImageLevel.ABSENT) == 30
            assert bench.state(want).reason.startswith("nothing could be proved for 30 s: containerd d")
            assert bench.age_seconds() == 30
            await asyncio.sleep(600)
            assert bench.age_seconds() == 630
            setattr(bench.node, how, False)
            assert await bench.until_level(want, ImageLevel.UNPACKED) <= 12
            assert bench.age_seconds() == 0

    play(story)


def test_a_containerd_that_comes_late_is_used_as_soon_as_it_is_there() -> None:
    async def story(bench: Bench) -> None:
        want = bench.offer(A)
        bench.node.away = True
        async with running(bench):
            bench.ask(want)
            await asyncio.sleep(100)
            assert bench.age_seconds() == float("inf")
            assert bench.node.pulled == []
            bench.node.away = False
            assert await bench.until_level(want, ImageLevel.UNPACKED) <= 2

    play(story)


def test_after_the_event_stream_broke_deletions_are_seen_within_seconds_again() -> None:
    async def story(bench: Bench) -> None:
        want = await bench.hold(A)
        bench.watch(want)
        async with running(bench):
            await bench.until_level(want, ImageLevel.UNPACKED)
            bench.node.stop()
            await asyncio.sleep(1)
            bench.node.away = False
            bench.node.names.clear()  # nobody heard of it
            assert await bench.until_level(want, ImageLevel.ABSENT) <= 5

    play(story)


def test_a_snapshotter_containerd_does_not_know_claims_nothing() -> None:
    async def story(bench: Bench) -> None:
        want = await bench.hold(A)
        bench.node.snapshots = {"other": set()}
        bench.watch(want)
        async with running(bench):
            await bench.until_level(want, ImageLevel.ABSENT)
            assert "snapshotter overlayfs is not loaded" in bench.state(want).reason
            assert bench.age_seconds() == float("inf")

    play(story)


def test_events_of_other_images_cost_no_cycle() -> None:
    async def story(bench: Bench) -> None:
        want = await bench.hold(A)
        bench.watch(want)
        async with running(bench):
            await asyncio.sleep(1)
            before = bench.node.cycles
            await bench.hold(B)
            bench.node.forget(B)
            await asyncio.sleep(1)
            assert bench.node.cycles == before

    play(story)


def test_a_node_that_wants_no_image_proves_without_asking() -> None:
    async def story(bench: Bench) -> None:
        async with running(bench):
            await asyncio.sleep(100)
            assert bench.node.cycles == 0
            assert bench.age_seconds() <= 15
            assert bench.images.get() == {}

    play(story)


def test_cancelled_at_any_point_it_ends_and_nothing_is_claimed_that_is_not_there() -> None:
    async def story(steps: int) -> bool:
        bench = Bench(2)
        want = bench.offer(A)
        bench.ask(want)
        task = asyncio.create_task(bench.service.run())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        state = bench.images.get().get(want.ref)
        claimed = state is not None and state.level is ImageLevel.UNPACKED
        assert not claimed or A in bench.node.names
        assert state is None or not state.busy
        assert bench.node.pulling == set()
        return claimed

    ended = [run_virtual(story(steps)) for steps in range(60)]
    assert (ended[0], ended[-1]) == (False, True)
