"""The planner's metrics."""

from __future__ import annotations

from datetime import timedelta

from prometheus_client import CollectorRegistry, generate_latest

from agent.core.refs import EndpointKey
from agent.observe import catalogue
from agent.observe.planner import PlannerCollector, PlannerState

KEY = EndpointKey(namespace="a", name="b")


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
    )
    PlannerCollector(state, registry)
    withdrawn[0] = 3
    lines = generate_latest(registry).decode().splitlines()
    values = {name: float(value) for name, _, value in (line.partition(" ") for line in lines if line[0] != "#")}
    assert list(dict.fromkeys(name.partition("{")[0] for name in values)) == [m.name for m in catalogue.PLANNER]
    assert list(values.values()) == [1, 2, 1, 3, 7, 1, 4, 5, 6, 2, 8, 60, 300, 9, 5, 0.5, 1234, 6]
