"""Metrics that are counted as things happen: one object that speaks the observer Protocols of the other rooms."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from agent.core.errors import PrewarmError
from agent.core.names import ENDPOINT_PREFIX, READY
from agent.core.refs import Digest, EndpointKey, ImageRef
from agent.observe import catalogue
from agent.observe.catalogue import Kind, Metric
from agent.observe.start import StartLabels

_MAX_ENDPOINTS = 500  # users name endpoints: names that change with each pod or preview must not fill memory
_OTHER = "other"


class Metrics:
    """Counters and histograms of the catalogue in one registry; every method is cheap and never raises."""

    def __init__(self, registry: CollectorRegistry) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads
        made = {m.name: _counter(m, registry) for m in catalogue.FED if m.kind is Kind.COUNTER}
        self._counters: Mapping[str, Counter] = made
        self._histograms = {m.name: _histogram(m, registry) for m in catalogue.FED if m.kind is Kind.HISTOGRAM}
        self._endpoints: set[tuple[str, str]] = set()

    def image_pull(self, labels: StartLabels, seconds: float) -> None:
        """Count one start's time to the serving container (StartObserver)."""
        self._start(catalogue.IMAGE_PULL, labels, seconds)

    def model_load(self, labels: StartLabels, seconds: float) -> None:
        """Count one start's time from the serving container to Ready (StartObserver)."""
        self._start(catalogue.MODEL_LOAD, labels, seconds)

    def cold_start(self, labels: StartLabels, seconds: float) -> None:
        """Count one start's time to its first answer (StartObserver)."""
        self._start(catalogue.COLD_START_TOTAL, labels, seconds)

    def pulled(self, ref: ImageRef, seconds: float, size_bytes: int, outcome: str) -> None:
        """Count one ended image pull (PullObserver)."""
        del ref  # image names are no bounded set
        self._histograms[catalogue.PULL_TRANSFER.name].labels(outcome).observe(seconds)
        self._counters[catalogue.PULLED_BYTES.name].inc(size_bytes)

    def lost(self, ref: ImageRef) -> None:
        """Count one warm image that somebody else removed (PullObserver)."""
        del ref
        self._counters[catalogue.IMAGES_LOST.name].inc()

    def hydrated(self, digest: Digest, seconds: float, size_bytes: int, outcome: str) -> None:
        """Count one ended hydration; `size_bytes` is 0 unless it was committed."""
        del digest
        self._histograms[catalogue.HYDRATION.name].labels(outcome).observe(seconds)
        self._counters[catalogue.HYDRATED_BYTES.name].inc(size_bytes)

    def released(self, cause: str) -> None:
        """Count one version let go from memory (MemoryObserver)."""
        self._counters[catalogue.MEMORY_RELEASES.name].labels(cause).inc()

    def head_start(self, outcome: str) -> None:
        """Count one reading of a version for pods that start (HeadStartObserver)."""
        self._counters[catalogue.HEAD_STARTS.name].labels(outcome).inc()

    def xid(self, kind: str) -> None:
        """Count one Xid (GpuObserver)."""
        self._counters[catalogue.XIDS.name].labels(kind).inc()

    def gpu_test(self, outcome: str) -> None:
        """Count one active test (GpuObserver)."""
        self._counters[catalogue.GPU_TESTS.name].labels(outcome).inc()

    def window_met(self, key: EndpointKey, late_seconds: float) -> None:
        """Count a window whose endpoint was ready, 0 seconds late if in time (WindowObserver)."""
        self._histograms[catalogue.WINDOW_LATENESS.name].labels(*self._bounded(key.namespace, key.name)).observe(
            late_seconds
        )

    def window_missed(self, key: EndpointKey) -> None:
        """Count a window that ended without its endpoint being ready (WindowObserver)."""
        self._counters[catalogue.WINDOWS_MISSED.name].labels(*self._bounded(key.namespace, key.name)).inc()

    def api_write(self, kind: str, error: PrewarmError | None = None) -> None:
        """Count one write to the API server by the kind of object written."""
        self._counters[catalogue.API_WRITES.name].labels(kind, "failed" if error else "ok").inc()

    def labels_written(self, labels: Mapping[str, object]) -> None:
        """Count claims made and withdrawn by one written patch of node labels (None removes a label)."""
        values = [value for key, value in labels.items() if key.startswith(ENDPOINT_PREFIX)]
        self._counters[catalogue.CLAIMS.name].inc(values.count(READY))
        self._counters[catalogue.WITHDRAWALS.name].inc(values.count(None))

    def _start(self, metric: Metric, labels: StartLabels, seconds: float) -> None:
        endpoint = self._bounded(labels.namespace, labels.endpoint)
        values = (*endpoint, labels.size_class, labels.node_pool, labels.warm, labels.outcome)
        self._histograms[metric.name].labels(*values).observe(max(0.0, seconds))

    def _bounded(self, namespace: str, endpoint: str) -> tuple[str, str]:
        """Return the two labels, `other` for endpoints past the limit."""
        found = namespace, endpoint
        if found not in self._endpoints and len(self._endpoints) >= _MAX_ENDPOINTS:
            return _OTHER, _OTHER
        self._endpoints.add(found)
        return found


def _counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    return Counter(metric.name, metric.help, metric.labels, registry=registry)


def _histogram(metric: Metric, registry: CollectorRegistry) -> Histogram:
    return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)
