"""Metrics that are read when asked for: gauges straight from the node's cells, so that nothing goes stale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from agent.core.assignment import Assignment, EndpointWant
from agent.core.inventory import GpuReport, GpuVerdict, ImageLevel, Inventory, ModelLevel, StoreCare
from agent.core.names import READY, endpoint_label
from agent.observe import catalogue
from agent.observe.catalogue import Kind, Metric
from agent.plan.lacking import model_digest

Samples = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """Where the gauges come from; each callable is cheap and is called at every scrape.

    `labels` are the node labels that readiness allows now; `ages` the heartbeat ages in seconds by prover; `parts` the ranges
    of models asked for so far, by outcome; `sources` the bytes of images received so far, by source; `care` what was done for those that are here.
    """

    assignment: Callable[[], Assignment | None]
    inventory: Callable[[], Inventory]
    labels: Callable[[], Mapping[str, str]]
    ages: Callable[[], Mapping[str, float]]
    version: str
    parts: Callable[[], Mapping[str, int]] = dict
    care: Callable[[], StoreCare] = StoreCare
    sources: Callable[[], Mapping[str, int]] = dict


class StateCollector(Collector):
    """Prometheus collector over a NodeState. Runs in the event loop's thread, as the cells demand."""

    def __init__(self, state: NodeState, registry: CollectorRegistry) -> None:
        self._state = state
        registry.register(self)

    def describe(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Name the families without reading anything."""
        return [_family(m, {}) for m in catalogue.READ]

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Yield every family with its values now."""
        assignment, inventory = self._state.assignment(), self._state.inventory()
        endpoints = assignment.endpoints if assignment else ()
        ages: dict[tuple[str, ...], float] = {(prover,): age for prover, age in self._state.ages().items()}
        yield from _endpoints(endpoints, inventory, self._state.labels())
        yield from _node(inventory)
        yield from _hydration(endpoints, inventory)
        yield _family(catalogue.SOURCE_BYTES, {(kind,): count for kind, count in self._state.sources().items()})
        yield _family(catalogue.PARTS, {(outcome,): count for outcome, count in self._state.parts().items()})
        yield from _care(self._state.care())
        yield _family(catalogue.HEARTBEAT_AGE, ages)
        yield _family(catalogue.BUILD, {(self._state.version,): 1})


def _care(care: StoreCare) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
    yield _family(catalogue.SCRUBBED, {(): care.read_bytes})
    yield _family(catalogue.BAD_PARTS, {(): care.bad_parts})
    yield _family(catalogue.REPAIRS, {("broken",): care.broken, ("mended",): care.mended})
    yield _family(catalogue.SCRUB_AGE, {} if care.turn_age_seconds is None else {(): care.turn_age_seconds})


def _endpoints(
    endpoints: tuple[EndpointWant, ...], inventory: Inventory, labels: Mapping[str, str]
) -> Iterable[GaugeMetricFamily]:
    ready: dict[tuple[str, ...], float] = {}
    wanted: dict[tuple[str, ...], float] = {}
    committed: dict[tuple[str, ...], float] = {}
    resident: dict[tuple[str, ...], float] = {}
    for want in endpoints:
        at = (want.key.namespace, want.key.name)
        label = endpoint_label(want.key.namespace, want.key.name)
        ready[at] = float(labels.get(label) == READY)
        wanted[at] = committed[at] = 0.0
        for model in want.models:
            digest = model_digest(model, inventory)
            state = inventory.models.get(digest) if digest else None
            size = float(model.size_bytes or (state.total_bytes if state else 0))
            wanted[at] += size
            committed[at] += size if state and state.level.committed else 0
            if want.memory:
                resident[at] = resident.get(at, 0.0) + (state.resident_bytes if state else 0)
    yield _family(catalogue.ENDPOINT_READY, ready)
    yield _family(catalogue.MODEL_BYTES, wanted)
    yield _family(catalogue.COMMITTED_BYTES, committed)
    yield _family(catalogue.RESIDENT_BYTES, resident)


def _hydration(endpoints: tuple[EndpointWant, ...], inventory: Inventory) -> Iterable[GaugeMetricFamily]:
    lacking: dict[str, float] = {}
    for model in (m for want in endpoints for m in want.models):
        digest = model_digest(model, inventory)
        state = inventory.models.get(digest) if digest else None
        size = (state.total_bytes if state else 0) or model.size_bytes
        lacking[digest or str(model.uri)] = max(0, size - (state.done_bytes if state else 0))
    rate, queue = sum(s.rate_bytes_per_second for s in inventory.models.values() if s.busy), sum(lacking.values())
    yield _family(catalogue.HYDRATION_RATE, {(): rate})
    yield _family(catalogue.HYDRATION_QUEUE, {(): queue})
    yield _family(catalogue.HYDRATION_ETA, {(): queue / rate} if rate > 0 else {})


def _node(inventory: Inventory) -> Iterable[GaugeMetricFamily]:
    images = Counter(state.level for state in inventory.images.values())
    models = Counter(state.level for state in inventory.models.values())
    yield _family(catalogue.IMAGES, {(level.value,): images[level] for level in ImageLevel})
    yield _family(catalogue.PINNED, {(): sum(state.pinned for state in inventory.images.values())})
    yield _family(catalogue.MODELS, {(level.value,): models[level] for level in ModelLevel})
    yield _family(catalogue.GPU_VERDICT, {(v.value,): float(v is inventory.gpu.verdict) for v in GpuVerdict})
    yield _family(catalogue.GPUS, {(): inventory.gpu.count})
    yield from _gpus(inventory.gpu)
    yield _family(catalogue.STORE_USED, {(): inventory.cache.used_bytes})
    yield _family(catalogue.STORE_FREE, {(): inventory.cache.free_bytes})
    yield _family(catalogue.STORE_CAPACITY, {(): inventory.cache.capacity_bytes})
    yield _family(catalogue.MEMORY_HELD, {(): inventory.memory.held_bytes})
    yield _family(catalogue.MEMORY_BUDGET, {(): inventory.memory.budget_bytes or 0})


def _gpus(report: GpuReport) -> Iterable[GaugeMetricFamily]:
    states: dict[tuple[str, ...], float] = {(str(g.index), g.verdict.value): 1.0 for g in report.gpus}
    reasons: dict[tuple[str, ...], float] = {(str(g.index), r.code): 1.0 for g in report.gpus for r in g.reasons}
    reasons |= {("node", reason.code): 1.0 for reason in report.reasons}
    yield _family(catalogue.GPU_STATE, states)
    yield _family(catalogue.GPU_REASON, reasons)


def _family(metric: Metric, samples: Samples) -> Any:
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in samples.items():
        family.add_metric(labels, value)
    return family
