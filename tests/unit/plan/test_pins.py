"""Which images are pinned, and until when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from agent.core.assignment import EndpointWant, ImageWant, Window
from agent.core.refs import endpoint_key, parse_image_ref
from agent.plan.decision import EndpointPlan, Stage
from agent.plan.pins import PIN_BEYOND, pins

NOW = datetime(2026, 3, 2, 9, tzinfo=UTC)
IMAGE = ImageWant(ref=parse_image_ref("r.io/a:1"))


def endpoint(name: str, *, start: int | None, until: int) -> EndpointPlan:
    window = Window(ready_by=NOW + timedelta(minutes=min(until, 5)), until=NOW + timedelta(minutes=until))
    want = EndpointWant(key=endpoint_key("ns", name), images=(IMAGE,), windows=(window,))
    start_at = None if start is None else NOW + timedelta(minutes=start)
    return EndpointPlan(want=want, stage=Stage.READY, reason="", start_at=start_at)


def test_an_image_is_pinned_from_the_start_of_its_warming_to_some_time_after_its_window() -> None:
    (step,) = pins([endpoint("a", start=-1, until=60)], NOW)
    assert (step.want, step.until) == (IMAGE, NOW + timedelta(minutes=60) + PIN_BEYOND)


def test_before_its_warming_starts_and_after_its_window_nothing_is_pinned() -> None:
    assert pins([endpoint("a", start=1, until=60), endpoint("b", start=-60, until=-1)], NOW) == ()


def test_an_image_of_two_endpoints_is_pinned_once_for_the_longer_window() -> None:
    (step,) = pins([endpoint("a", start=-1, until=60), endpoint("b", start=-1, until=90)], NOW)
    assert step.until == NOW + timedelta(minutes=90) + PIN_BEYOND
