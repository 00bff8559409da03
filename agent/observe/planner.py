"""The planner's metrics, read from its reports when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from agent.core.refs import EndpointKey
from agent.demand.foretold import Foretold, Windows
from agent.demand.history import SLOT_SECONDS
from agent.observe import catalogue
from agent.observe.catalogue import Kind, Metric

Family = GaugeMetricFamily | CounterMetricFamily


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerState:
    """Where the numbers come from; each callable is cheap and is called at every scrape."""

    leading: Callable[[], bool]
    held: Callable[[], int]
    braked: Callable[[], int]
    withdrawn: Callable[[], int]
    written: Callable[[], int]
    unwritten: Callable[[], int]
    late: Callable[[], Mapping[EndpointKey, timedelta]] = dict
    slow: Callable[[], int] = int
    kept: Callable[[], int] = int
    unkept: Callable[[], int] = int
    placeholders: Callable[[], tuple[int, int]] = lambda: (0, 0)  # that hold a place, that wait for a node
    node_arrival: Callable[[], float] = float
    ended: Callable[[], Mapping[tuple[EndpointKey, str], int]] = dict
    histories: Callable[[], int] = int
    history_known: Callable[[], float] = float
    history_written: Callable[[], float | None] = lambda: None
    history_failures: Callable[[], Mapping[str, int]] = dict
    foretold: Callable[[], Foretold] = Foretold
    predicted: Callable[[], Windows] = dict  # those of it that count


class PlannerCollector(Collector):
    """Prometheus collector over a PlannerState."""

    def __init__(self, state: PlannerState, registry: CollectorRegistry) -> None:
        self._state = state
        registry.register(self)

    def collect(self) -> Iterable[Family]:
        """Yield every metric with its value now."""
        state = self._state
        yield _family(catalogue.LEADING, state.leading())
        yield _family(catalogue.HELD, state.held())
        yield _family(catalogue.BRAKED, state.braked())
        yield _family(catalogue.WITHDRAWN, state.withdrawn())
        yield _family(catalogue.PUBLISHED, state.written())
        yield _family(catalogue.UNPUBLISHED, state.unwritten())
        yield _family(catalogue.SLOW_NODES, state.slow())
        yield _family(catalogue.KEPT, state.kept())
        yield _family(catalogue.UNKEPT, state.unkept())
        placed = catalogue.PLACEHOLDERS
        placeholders = GaugeMetricFamily(placed.name, placed.help, labels=placed.labels)
        for word, count in zip(("holding", "waiting"), state.placeholders(), strict=True):
            placeholders.add_metric((word,), count)
        yield placeholders
        if seconds := state.node_arrival():
            yield _family(catalogue.NODE_ARRIVAL, seconds)
        late = catalogue.WINDOW_LATE_AHEAD
        ahead = GaugeMetricFamily(late.name, late.help, labels=late.labels)
        for key, by in state.late().items():
            ahead.add_metric((key.namespace, key.name), by.total_seconds())
        yield ahead
        ended = catalogue.WINDOWS_ENDED
        windows = CounterMetricFamily(ended.name.removesuffix("_total"), ended.help, labels=ended.labels)
        for (key, outcome), count in state.ended().items():
            windows.add_metric((key.namespace, key.name, outcome), count)
        yield windows
        yield from self._histories()

    def _histories(self) -> Iterable[Family]:
        state, failed = self._state, catalogue.HISTORY_FAILURES
        yield _family(catalogue.HISTORY_ENDPOINTS, state.histories())
        if state.histories():
            yield _family(catalogue.HISTORY_KNOWN, state.history_known())
        if (written := state.history_written()) is not None:
            yield _family(catalogue.HISTORY_WRITTEN, written)
        failures = CounterMetricFamily(failed.name.removesuffix("_total"), failed.help, labels=failed.labels)
        for what, count in state.history_failures().items():
            failures.add_metric((what,), count)
        yield failures
        yield from self._foretold(state.foretold())

    def _foretold(self, found: Foretold) -> Iterable[Family]:
        on = sum(map(len, self._state.predicted().values()))
        windows = _labelled(catalogue.PREDICTED)
        windows.add_metric(("on",), on)
        windows.add_metric(("shadow",), max(0, sum(map(len, found.windows.values())) - on))
        returns, idle = _labelled(catalogue.PREDICTED_RETURNS), _labelled(catalogue.PREDICTED_IDLE_TIME)
        for key, fared in found.fared.items():
            labels = (key.namespace, key.name)
            returns.add_metric((*labels, "met"), fared.met)
            returns.add_metric((*labels, "unmet"), fared.returns - fared.met)
            idle.add_metric(labels, fared.idle_slots * SLOT_SECONDS)
        yield from (windows, returns, idle)
        if found.idle_share is not None:
            yield _family(catalogue.PREDICTED_IDLE, found.idle_share)
        if found.calibration is not None:
            yield _family(catalogue.CALIBRATION, found.calibration)
        yield _family(catalogue.PREDICT_FAILURES, found.failures)


def _labelled(metric: Metric) -> GaugeMetricFamily:
    return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


def _family(metric: Metric, value: float) -> Family:
    if metric.kind is Kind.COUNTER:
        return CounterMetricFamily(metric.name.removesuffix("_total"), metric.help, value=float(value))
    return GaugeMetricFamily(metric.name, metric.help, value=float(value))
