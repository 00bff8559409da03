"""Pins on the twin: who is pinned, for how long, within which budget, and what is done about a pin that was taken away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from agent.core.assignment import ImageWant
from agent.core.inventory import ImageLevel
from agent.images.disk import DISK_FACTOR, Disk
from agent.images.faults import Fault, PermanentFault
from agent.images.pinning import pinned_until
from agent.images.runtime import Pin
from agent.plan.decision import NodePlan, PinStep
from tests.fakes.virtual_time import LoopClock, run_virtual
from tests.unit.images.test_service import A, B, Bench, running

HOUR = timedelta(hours=1)


def play(story: Callable[[Bench], Awaitable[None]]) -> None:
    async def run() -> None:
        await story(Bench(2))

    run_virtual(run())


def plan(*wants: ImageWant, pinned: tuple[ImageWant, ...] = (), until: timedelta = HOUR) -> NodePlan:
    steps = tuple(PinStep(want=want, until=LoopClock().now() + until) for want in pinned)
    return NodePlan(images=wants, pins=steps)


def test_an_image_is_pinned_by_its_id_while_the_plan_says_so_and_said_to_be() -> None:
    async def story(bench: Bench) -> None:
        want = await bench.hold(A)
        async with running(bench):
            bench.plan.set(plan(want, pinned=(want,)))
            await bench.until(want, lambda state: state.pinned)
            assert list(bench.node.pinned) == [bench.node.registry[A].config]
            assert "; pinned until " in bench.state(want).reason

    play(story)


def test_a_pin_stands_until_its_time_is_over_and_goes_at_once_when_the_image_leaves_the_plan() -> None:
    async def story(bench: Bench) -> None:
        first, second = await bench.hold(A), await bench.hold(B)
        async with running(bench):
            bench.plan.set(plan(first, second, pinned=(first, second)))
            await bench.until(second, lambda state: state.pinned)
            bench.plan.set(plan(first))
            await asyncio.sleep(1)
            assert list(bench.node.pinned) == [bench.node.registry[A].config]
            await asyncio.sleep(3500)
            assert bench.node.pinned
            await asyncio.sleep(200)
            assert not bench.node.pinned

    play(story)


def test_before_anything_is_assigned_no_pin_is_touched() -> None:
    async def story(bench: Bench) -> None:
        await bench.hold(A)
        pin = Pin(until=LoopClock().now() + HOUR, whole=True)
        bench.node.pinned[bench.node.registry[A].config] = pin
        async with running(bench):
            await asyncio.sleep(100)
            assert bench.node.pinned
            bench.plan.set(plan())
            await asyncio.sleep(20)
            assert not bench.node.pinned

    play(story)


def test_a_pin_that_was_wiped_is_set_again_within_one_cycle() -> None:
    async def story(bench: Bench) -> None:
        want = await bench.hold(A)
        async with running(bench):
            bench.plan.set(plan(want, pinned=(want,)))
            await bench.until(want, lambda state: state.pinned)
            image = bench.node.registry[A].config
            bench.node.pinned[image] = replace(bench.node.pinned[image], whole=False)
            await asyncio.sleep(16)
            assert bench.node.pinned[image].whole

    play(story)


def test_a_containerd_that_ignores_pins_is_said_to() -> None:
    async def story(bench: Bench) -> None:
        want = await bench.hold(A)
        bench.node.pins_count = False
        async with running(bench):
            bench.plan.set(plan(want, pinned=(want,)))
            await bench.until(want, lambda state: "its pin has no effect" in state.reason)
            assert not bench.state(want).pinned
            assert bench.state(want).level is ImageLevel.UNPACKED

    play(story)


def test_a_containerd_that_ignores_pins_is_not_asked_for_ever_and_again_after_a_change() -> None:
    async def story(bench: Bench) -> None:
        want = await bench.hold(A)
        bench.node.pins_count = False
        async with running(bench):
            bench.plan.set(plan(want, pinned=(want,)))
            await asyncio.sleep(100)
            asked = bench.node.asked_shielded
            assert asked > 1  # the runtime may take a moment to heed it
            await asyncio.sleep(100)
            assert bench.node.asked_shielded == asked
            bench.node.pins_count = True
            await bench.node.pull(A, "")
            await bench.until(want, lambda state: state.pinned)

    play(story)


def test_a_pin_without_effect_any_longer_is_noticed_when_the_image_is_pulled_again_and_asked_about_only_then() -> None:
    async def story(bench: Bench) -> None:
        want = await bench.hold(A)
        async with running(bench):
            bench.plan.set(plan(want, pinned=(want,)))
            await bench.until(want, lambda state: state.pinned)
            asked = bench.node.asked_shielded
            await asyncio.sleep(100)
            assert bench.node.asked_shielded == asked
            bench.node.pins_count = False
            await bench.node.pull(A, "")
            await bench.until(want, lambda state: "its pin has no effect" in state.reason)

    play(story)


def test_pins_take_half_of_the_disk_at_most_the_most_urgent_first() -> None:
    async def story(bench: Bench) -> None:
        first, second = await bench.hold(A), await bench.hold(B)
        size = sum(len(bench.node.content[layer]) for layer in bench.node.registry[A].layers) * DISK_FACTOR
        bench.node.space = Disk(capacity_bytes=2 * size, free_bytes=2 * size)
        async with running(bench):
            bench.plan.set(plan(first, second, pinned=(second, first)))
            await bench.until(second, lambda state: state.pinned)
            assert list(bench.node.pinned) == [bench.node.registry[B].config]
            assert "; not pinned: " in bench.state(first).reason

    play(story)


def test_a_pull_that_does_not_fit_is_refused_with_numbers_unless_a_pod_waits_for_it() -> None:
    async def story(bench: Bench) -> None:
        want = bench.offer(A)
        bench.node.space = Disk(capacity_bytes=100_000_000_000, free_bytes=15_000_000_000)
        async with running(bench):
            bench.ask(want)
            await bench.until(want, lambda state: state.error != "")
            assert bench.node.pulled == []
            assert "below 84% of 100 GB" in bench.state(want).error
            assert bench.outcomes == [(A, "no space", False)]
            bench.ask(want, urgent=(A,))
            await bench.until_level(want, ImageLevel.UNPACKED)

    play(story)


def test_a_pull_found_not_to_fit_when_its_manifest_is_here_is_ended() -> None:
    async def story(bench: Bench) -> None:
        want = bench.offer(A)
        image = bench.node.registry[A]
        bench.node.space = Disk(capacity_bytes=1000, free_bytes=160 + 3)
        bench.node.gate = asyncio.Event()
        async with running(bench):
            bench.ask(want)
            await bench.node.pull_began.wait()
            bench.node.content.update({d: b for d, b in image.blobs.items() if d not in image.layers})
            assert await bench.until(want, lambda state: state.error != "") < 1
            assert bench.node.pulling == set()
            assert "containerd's disk has 3 B left" in bench.state(want).error

    play(story)


def test_an_image_that_cannot_be_pinned_is_said_to_and_keeps_no_other_from_it() -> None:
    async def story(bench: Bench) -> None:
        first, second = await bench.hold(A), await bench.hold(B)
        odd, pin = bench.node.registry[A].config, bench.node.pin

        async def refuse_one(image_id: str, until: datetime) -> bool:
            if image_id == odd:
                raise PermanentFault("its record points to sha512:…", Fault.REFUSED)
            return await pin(image_id, until)

        bench.node.pin = refuse_one  # type: ignore[method-assign]
        async with running(bench):
            bench.plan.set(plan(first, second, pinned=(first, second)))
            await bench.until(second, lambda state: state.pinned)
            assert "; not pinned: its record points to sha512:…" in bench.state(first).reason
            assert list(bench.node.pinned) == [bench.node.registry[B].config]

    play(story)


@pytest.mark.parametrize("label", ["", "soon", "2026-12-01", "2099-12-01T00:00:00"])
def test_a_pin_whose_time_cannot_be_told_is_over(label: str) -> None:
    assert pinned_until(label) <= datetime.now(UTC)


def test_the_time_of_a_pin_is_read_as_it_was_written() -> None:
    assert pinned_until("2026-12-01T10:00:00Z") == datetime(2026, 12, 1, 10, tzinfo=UTC)
