"""Every metric, in one place. docs/reference.md has the table of `CATALOGUE`, the README that of `FIRST`; both are checked.

Names and end points of the three cold-start histograms are a public contract: see docs/architecture.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

COLD_START_BUCKETS = (1, 5, 15, 30, 60, 120, 300, 600)  # seconds
TRANSFER_BUCKETS = (1, 5, 15, 30, 60, 120, 300, 600, 1800)
LATENESS_BUCKETS = (0, 1, 10, 60, 300, 900, 3600)
COLD_START_LABELS = ("namespace", "endpoint", "size_class", "node_pool", "warm", "outcome")
ENDPOINT_LABELS = ("namespace", "endpoint")


class Kind(StrEnum):
    """The kind of a metric, as Prometheus names it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric: its full name, what it tells, its labels, and buckets in its own unit if it is a histogram."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name=name, kind=Kind.COUNTER, help=text, labels=labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name=name, kind=Kind.GAUGE, help=text, labels=labels)


def _cold_start(name: str, text: str) -> Metric:
    return Metric(name=name, kind=Kind.HISTOGRAM, help=text, labels=COLD_START_LABELS, buckets=COLD_START_BUCKETS)


COLD_START_TOTAL = _cold_start("cold_start_total_seconds", "Pod created until its first successful inference response")
IMAGE_PULL = _cold_start("image_pull_seconds", "Pod created until its serving container's first start")
MODEL_LOAD = _cold_start("model_load_seconds", "Serving container's first start until the pod was Ready")

PULL_TRANSFER = Metric(
    name="prewarm_image_pull_transfer_seconds",
    kind=Kind.HISTOGRAM,
    help="One image pull by prewarm, from request to unpacked or failed",
    labels=("outcome",),
    buckets=TRANSFER_BUCKETS,
)
PULLED_BYTES = _counter("prewarm_image_pulled_bytes_total", "Compressed bytes of images that prewarm pulled")
SOURCE_BYTES = _counter(
    "prewarm_image_source_bytes_total",
    "Bytes that containerd received while prewarm pulled images, from: mirror, registry, elsewhere (redirects, proxies)",
    "source",
)
IMAGES_LOST = _counter("prewarm_images_lost_total", "Warm images that somebody else removed while they were wanted")
HYDRATION = Metric(
    name="prewarm_hydration_seconds",
    kind=Kind.HISTOGRAM,
    help="One model version from first byte asked for to committed (ok) or given up for now (incomplete)",
    labels=("outcome",),
    buckets=TRANSFER_BUCKETS,
)
HYDRATED_BYTES = _counter("prewarm_hydrated_bytes_total", "Bytes of model versions that were committed")
XIDS = _counter("prewarm_gpu_xids_total", "Xids heard, by what they ask for", "class")
GPU_TESTS = _counter("prewarm_gpu_tests_total", "Active tests of a GPU that ended", "outcome")
API_WRITES = _counter("prewarm_api_writes_total", "Writes to the API server", "kind", "outcome")
CLAIMS = _counter("prewarm_claims_total", "Endpoint labels written as ready")
WITHDRAWALS = _counter("prewarm_claim_withdrawals_total", "Endpoint labels removed")
MEMORY_RELEASES = _counter(
    "prewarm_memory_releases_total",
    "Model versions let go of in memory: window over, budget, pressure, or failed to be read",
    "cause",
)
HEAD_STARTS = _counter(
    "prewarm_head_starts_total",
    "Readings of a model version for pods that were starting: whole, part (no room for all), stopped, or none",
    "outcome",
)
WINDOW_LATENESS = Metric(
    name="prewarm_window_lateness_seconds",
    kind=Kind.HISTOGRAM,
    help="How long after it was due an endpoint was ready for a declared window; 0 when in time",
    labels=ENDPOINT_LABELS,
    buckets=LATENESS_BUCKETS,
)
WINDOWS_MISSED = _counter(
    "prewarm_windows_missed_total", "Declared windows that ended without being ready", *ENDPOINT_LABELS
)

ENDPOINT_READY = _gauge("prewarm_endpoint_ready", "1 while this node may claim to be warm", *ENDPOINT_LABELS)
MODEL_BYTES = _gauge("prewarm_endpoint_model_bytes", "Bytes of an endpoint's model versions", *ENDPOINT_LABELS)
COMMITTED_BYTES = _gauge("prewarm_endpoint_committed_bytes", "Of these, bytes committed on this node", *ENDPOINT_LABELS)
RESIDENT_BYTES = _gauge(
    "prewarm_endpoint_resident_bytes", "Of these, bytes measured in the page cache (memory: on)", *ENDPOINT_LABELS
)
PINNED = _gauge("prewarm_images_pinned", "Of these, images kept from the kubelet's garbage collection")
IMAGES = _gauge("prewarm_images", "Images this node was asked for, by level", "level")
MODELS = _gauge("prewarm_models", "Model versions known on this node, by level", "level")
GPU_VERDICT = _gauge("prewarm_gpu_verdict", "1 for the verdict that holds", "verdict")
GPUS = _gauge("prewarm_gpus", "GPUs that NVML shows")
HYDRATION_RATE = _gauge("prewarm_hydration_rate_bytes_per_second", "Bytes of models that come in now")
HYDRATION_QUEUE = _gauge("prewarm_hydration_queue_bytes", "Bytes of models that this node was asked for and lacks")
HYDRATION_ETA = _gauge("prewarm_hydration_eta_seconds", "Until they are here at this rate; absent while none come in")
PARTS = _counter("prewarm_hydration_parts_total", "Ranges of models asked for: ok, retried, hedged, corrupt", "outcome")
GPU_STATE = _gauge("prewarm_gpu_state", "1 for the verdict that holds for one GPU, by its index", "gpu", "verdict")
GPU_REASON = _gauge(
    "prewarm_gpu_reason",
    "1 for each reason of docs/gpu.md that stands; `node` where it is about no single GPU",
    "gpu",
    "reason",
)
STORE_USED = _gauge("prewarm_store_used_bytes", "Bytes in the model store")
STORE_FREE = _gauge("prewarm_store_free_bytes", "Bytes free on its file system")
STORE_CAPACITY = _gauge("prewarm_store_capacity_bytes", "Size of its file system in bytes")
SCRUBBED = _counter("prewarm_scrub_bytes_total", "Bytes of models read back from disk and found right")
BAD_PARTS = _counter("prewarm_scrub_bad_parts_total", "Parts of models found damaged on disk")
REPAIRS = _counter(
    "prewarm_model_repairs_total", "Model versions found broken on disk, and whole again: broken, mended", "outcome"
)
SCRUB_AGE = _gauge("prewarm_scrub_age_seconds", "Since all models were last read back; absent before the first turn")
MEMORY_HELD = _gauge("prewarm_memory_held_bytes", "Memory charged to the memory tier's cgroup")
MEMORY_BUDGET = _gauge("prewarm_memory_budget_bytes", "Memory that weights may be kept in now")
HEARTBEAT_AGE = _gauge("prewarm_heartbeat_age_seconds", "Since a prover last completed a cycle", "prover")
BUILD = _gauge("prewarm_build_info", "Always 1", "version")

LEADING = _gauge("prewarm_planner_leading", "1 on the planner that leads, 0 on the others")
HELD = _gauge(
    "prewarm_planner_stale_nodes", "Nodes whose claims are stale and still stand: held by the brake, or a failed write"
)
BRAKED = _gauge("prewarm_planner_braked_nodes", "Of these, nodes held by the brake: too many went stale at once")
WITHDRAWN = _counter("prewarm_planner_withdrawn_nodes_total", "Times the planner withdrew a node's claims")
PUBLISHED = _counter("prewarm_planner_writes_total", "NodeWarmups written by the planner")
UNPUBLISHED = _gauge("prewarm_planner_unwritten_nodes", "Nodes whose NodeWarmup could not be written")
SLOW_NODES = _gauge("prewarm_planner_slow_nodes", "Nodes that fetch at less than a third of their pool's median rate")
WINDOW_LATE_AHEAD = _gauge(
    "prewarm_planner_window_late_seconds",
    "How late the next window of an endpoint will be at best; only those that cannot be met",
    *ENDPOINT_LABELS,
)
KEPT = _gauge("prewarm_planner_kept_nodes", "Nodes of due windows that autoscalers are asked to leave alone")
UNKEPT = _gauge(
    "prewarm_planner_unkept_nodes",
    "Nodes of due windows that they are not: more than keep_nodes, set by others, a failed write",
)
PLACEHOLDERS = _gauge(
    "prewarm_planner_placeholders", "Placeholder pods that hold a place, and that wait for a node to come", "state"
)
NODE_ARRIVAL = _gauge(
    "prewarm_planner_node_arrival_seconds",
    "How long a node is reckoned to take until pods run there: what nine in ten took, or provision_lead",
)
WINDOWS_ENDED = _counter(
    "prewarm_planner_windows_total",
    "Windows that have ended: hit (ready in time, used), late, unused, missed",
    *ENDPOINT_LABELS,
    "outcome",
)
HISTORY_ENDPOINTS = _gauge("prewarm_history_endpoints", "Endpoints with a history of requests")
HISTORY_KNOWN = _gauge("prewarm_history_known_ratio", "How much of their last seven days is known")
HISTORY_WRITTEN = _gauge("prewarm_history_written_timestamp_seconds", "When histories were last written; absent before")
HISTORY_FAILURES = _counter(
    "prewarm_history_failures_total",
    "Histories not written, ConfigMaps that hold none, questions to Prometheus without an answer: write, shard, read",
    "what",
)
PREDICTED = _gauge("prewarm_predicted_windows", "Windows foretold for the coming day: on, shadow", "predict")
PREDICTED_RETURNS = _gauge(
    "prewarm_predicted_returns",
    "Returns after 30 idle minutes, each counting half after a week, by what prediction did or would have: met, unmet",
    *ENDPOINT_LABELS,
    "outcome",
)
PREDICTED_IDLE_TIME = _gauge(
    "prewarm_predicted_idle_seconds",
    "Idle time, counting half after a week, that prediction kept warm or would have",
    *ENDPOINT_LABELS,
)
PREDICTED_IDLE = _gauge("prewarm_predicted_idle_ratio", "Share of all idle time that this was of late")
CALIBRATION = _gauge("prewarm_predicted_calibration_ratio", "Returns expected over returns seen: 1 is right")
PREDICT_FAILURES = _counter("prewarm_predict_failures_total", "Forecasts that failed; declared windows go on")

FED = (COLD_START_TOTAL, IMAGE_PULL, MODEL_LOAD, PULL_TRANSFER, PULLED_BYTES, IMAGES_LOST, HYDRATION, HYDRATED_BYTES, XIDS, GPU_TESTS,
       API_WRITES, CLAIMS, WITHDRAWALS, MEMORY_RELEASES, HEAD_STARTS, WINDOW_LATENESS, WINDOWS_MISSED)  # fmt: skip
READ = (ENDPOINT_READY, MODEL_BYTES, COMMITTED_BYTES, RESIDENT_BYTES, IMAGES, PINNED, MODELS, GPU_VERDICT, GPUS, GPU_STATE, GPU_REASON,
        STORE_USED, STORE_FREE, STORE_CAPACITY, SCRUBBED, BAD_PARTS, REPAIRS, SCRUB_AGE, MEMORY_HELD, MEMORY_BUDGET, HEARTBEAT_AGE, BUILD, HYDRATION_RATE,
        HYDRATION_QUEUE, HYDRATION_ETA, PARTS, SOURCE_BYTES)  # fmt: skip
PLANNER = (LEADING, HELD, BRAKED, WITHDRAWN, PUBLISHED, UNPUBLISHED, SLOW_NODES, KEPT, UNKEPT, PLACEHOLDERS,
           NODE_ARRIVAL, WINDOW_LATE_AHEAD, WINDOWS_ENDED, HISTORY_ENDPOINTS, HISTORY_KNOWN, HISTORY_WRITTEN, HISTORY_FAILURES,
           PREDICTED, PREDICTED_RETURNS, PREDICTED_IDLE_TIME, PREDICTED_IDLE, CALIBRATION, PREDICT_FAILURES)  # fmt: skip
CATALOGUE: tuple[Metric, ...] = FED + READ + PLANNER
# What a person looks at first.
FIRST = (COLD_START_TOTAL, IMAGE_PULL, MODEL_LOAD, HYDRATION, HYDRATED_BYTES, WINDOW_LATENESS, WINDOWS_MISSED, ENDPOINT_READY,
         GPU_VERDICT, STORE_USED, STORE_FREE, HEARTBEAT_AGE, LEADING, HELD)  # fmt: skip
