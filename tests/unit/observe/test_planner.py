"""The planner's metrics."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry, generate_latest

from agent.core.assignment import Window
from agent.core.refs import EndpointKey
from agent.demand.foretold import Fared, Foretold
from agent.observe import catalogue
from agent.observe.planner import PlannerCollector, PlannerState

KEY = EndpointKey(namespace="a", name="b")
WINDOW = Window(ready_by=datetime(2026, 3, 2, tzinfo=UTC), until=datetime(2026, 3, 3, tzinfo=UTC))


def test_every_metric_of_the_planner_shows_its_value_now() -> None:
    registry, withdrawn = CollectorRegistry(), [0]
    state = PlannerState(
        leading=lambda: True,
        held=lambda: 2,
        braked=lambda: 1,
        withdrawn=lambda: withdrawn[0],
        written=lambda: 7,
        unwritten=lambda: 1,
        late=lambda: {KEY: timedelta(minutes=5)},
        slow=lambda: 4,
        kept=lambda: 5,
        unkept=lambda: 6,
        placeholders=lambda: (2, 8),
        node_arrival=lambda: 60.0,
        ended=lambda: {(KEY, "hit"): 9},
        histories=lambda: 5,
        history_known=lambda: 0.5,
        history_written=lambda: 1234.0,
        history_failures=lambda: {"read": 6},
        foretold=lambda: Foretold(
            windows={KEY: (WINDOW,) * 8, replace(KEY, name="c"): (WINDOW,) * 3},
            fared={KEY: Fared(returns=12, met=10, expected=9, idle_slots=2)},
            idle_share=0.25,
            failures=2,
        ),
        predicted=lambda: {KEY: (WINDOW,) * 8},
    )
    PlannerCollector(state, registry)
    withdrawn[0] = 3
    lines = generate_latest(registry).decode().splitlines()
    values = {name: float(value) for name, _, value in (line.partition(" ") for line in lines if line[0] != "#")}
    assert list(dict.fromkeys(name.partition("{")[0] for name in values)) == [m.name for m in catalogue.PLANNER]
    foretold = [8, 3, 10, 2, 1200, 0.25, 0.75, 2]
    assert list(values.values()) == [1, 2, 1, 3, 7, 1, 4, 5, 6, 2, 8, 60, 300, 9, 5, 0.5, 1234, 6, *foretold]
