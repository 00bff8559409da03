"""On a real cluster: what `prewarm recommend` and `prewarm replay` tell from the histories in the planner's ConfigMaps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from agent.core.refs import EndpointKey
from agent.demand.history import DAY_SLOTS, slot_of, slot_start, track_of
from agent.demand.history_shards import SHARDS
from agent.fleet.history_reader import SCRAPED
from tests.bed import Bed, Object
from tests.cluster.product import Product, deployment, prewarm
from tests.cluster.test_predict import keep_histories

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

WEEKS = 2
# On how many days of a week pods run, from and until when (minutes of the day), and what is declared.
USES = {
    "mornings": (5, [(550, 720)], "0 9 * * MON-FRI"),
    "twice": (7, [(550, 560), (1030, 1040)], "0 9 * * *; 0 17 * * *"),
}


@pytest.fixture
def end(bed: Bed, product: Product, namespace: str) -> int:
    """The slot before which two weeks of both uses are in the planner's memory, and one use that nobody could foretell."""
    end = slot_of(datetime.now(UTC) - SCRAPED)
    slots = range(end - WEEKS * 7 * DAY_SLOTS, end)
    used = {name: [running(name, slot_start(slot)) for slot in slots] for name in USES}
    used["mornings"][slots.index(slot_of(surprise(end)))] = True
    for name, (_, _, schedule) in USES.items():
        told = {"prewarm.dev/schedule": schedule, "prewarm.dev/min-scale": "recommend", "prewarm.dev/images": "off"}
        bed.apply(deployment(name, told, gpus=1), namespace)
    tracks = {EndpointKey(namespace=namespace, name=name): track_of(slots.start, used[name]) for name in USES}
    keep_histories(bed, tracks, SHARDS - 2)
    return end


def test_advice_from_two_weeks_of_the_planners_memory(bed: Bed, end: int, namespace: str) -> None:
    where = (f"--kubeconfig={bed.kubeconfig}", "-n", namespace)
    found = json.loads(prewarm("recommend", *where, "--json", f"--days={7 * WEEKS}"))
    lines: dict[str, Object] = {line["name"]: line for line in found["recommendations"]}
    assert (found["source"], set(lines)) == ("planner", set(USES))
    morning = lines["mornings"]
    assert (morning["p95Pods"], morning["pods"]) == (1, 1)
    assert morning["gpuHoursPerWeek"] == pytest.approx(5 * 15 / 60, rel=0.15), "08:55 to 09:10 on five days"
    assert morning["coldSecondsSavedPerWeek"] == pytest.approx(5 * 60, rel=0.15)
    rare = lines["twice"]
    assert (rare["p95Pods"], rare["pods"], rare["gpuHoursPerWeek"], rare["coldSecondsSavedPerWeek"]) == (1, 0, 0, 0)

    title, _, _, line, *_ = prewarm("replay", *where, "--learn-days=7", "--budget=0.1").splitlines()
    planned = len(list(begun(end)))
    assert title == f"2 endpoints, 7.0 days counted, {planned + 1} returns after 30 idle minutes"
    assert line.split()[:3] == ["10%", str(planned), "1"], "every use is met but the surprise"


def running(name: str, at: datetime) -> bool:
    days, spans, _ = USES[name]
    return at.weekday() < days and any(first <= 60 * at.hour + at.minute < last for first, last in spans)


def begun(end: int) -> Iterator[datetime]:
    """When the uses began that the last week before slot `end` was to see."""
    until = slot_start(end)
    midnight = until.replace(hour=0, minute=0)
    for day in (midnight - timedelta(days=n) for n in range(8)):
        for days, spans, _ in USES.values():
            starts = [day + timedelta(minutes=first) for first, _ in spans if day.weekday() < days]
            yield from (at for at in starts if until - timedelta(days=7) <= at < until)


def surprise(end: int) -> datetime:
    """A night on which somebody came, out of all order."""
    return slot_start(end).replace(hour=3, minute=20) - timedelta(days=4)
