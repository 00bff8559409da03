"""Which images are to be kept from the kubelet's garbage collection now, and until when. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from agent.core.refs import ImageRef
from agent.plan.decision import EndpointPlan, PinStep

PIN_BEYOND = timedelta(minutes=10)  # a window that is renewed a little late finds its images still there


def pins(endpoints: Iterable[EndpointPlan], now: datetime) -> tuple[PinStep, ...]:
    """Return one step for each image of an endpoint whose warming has begun, most urgent endpoint first.

    An image that several endpoints need is kept for the one that needs it longest.
    """
    steps: dict[ImageRef, PinStep] = {}
    for told in endpoints:
        window = told.want.next_window(now)
        if window is None or told.start_at is None or told.start_at > now:
            continue
        until = window.until + PIN_BEYOND
        for image in told.want.images:
            before = steps.get(image.ref)
            latest = max(before.until, until) if before else until
            steps[image.ref] = PinStep(want=image, until=latest)
    return tuple(steps.values())
