"""The catalogue, and what the registry says."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import structlog
from prometheus_client import CollectorRegistry, generate_latest

from agent.core.assignment import Assignment, EndpointWant, ModelWant
from agent.core.errors import Permanent, Transient
from agent.core.inventory import (
    CacheUse,
    GpuReason,
    GpuReport,
    GpuState,
    GpuVerdict,
    ImageLevel,
    ImageState,
    Inventory,
    ModelLevel,
    ModelState,
    StoreCare,
)
from agent.core.refs import Digest, EndpointKey, parse_image_ref, parse_model_uri
from agent.observe.answers import counts_an_answer
from agent.observe.catalogue import CATALOGUE, COLD_START_LABELS, FED, READ, Kind
from agent.observe.counted import CountedWriter
from agent.observe.http import parse_address, what_is_red
from agent.observe.logging import setup_logging
from agent.observe.metrics import Metrics
from agent.observe.start import StartLabels
from agent.observe.state import NodeState, StateCollector

LABELS = StartLabels(namespace="shop", endpoint="chat", size_class="<10GB", node_pool="none", warm="both", outcome="ok")
KEY = EndpointKey(namespace="shop", name="chat")
DIGEST = Digest("sha256:" + "a" * 64)


def test_names_end_in_a_unit_or_total_and_have_our_prefix() -> None:
    gauges_of_things = {
        "prewarm_endpoint_ready",
        "prewarm_images",
        "prewarm_images_pinned",
        "prewarm_models",
        "prewarm_gpus",
        "prewarm_gpu_verdict",
        "prewarm_gpu_state",
        "prewarm_gpu_reason",
        "prewarm_planner_leading",
        "prewarm_planner_stale_nodes",
        "prewarm_planner_braked_nodes",
        "prewarm_planner_unwritten_nodes",
        "prewarm_planner_slow_nodes",
        "prewarm_history_endpoints",
        "prewarm_history_known_ratio",
        "prewarm_planner_kept_nodes",
        "prewarm_planner_unkept_nodes",
        "prewarm_planner_placeholders",
        "prewarm_predicted_windows",
        "prewarm_predicted_returns",
        "prewarm_predicted_idle_ratio",
        "prewarm_predicted_calibration_ratio",
    }
    contract = {"cold_start_total_seconds", "image_pull_seconds", "model_load_seconds"}
    for metric in CATALOGUE:
        assert metric.name.startswith("prewarm_") or metric.name in contract
        assert (
            metric.name.endswith(("_seconds", "_bytes", "_per_second", "_total", "_info"))
            or metric.name in gauges_of_things
        )
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert len({m.name for m in CATALOGUE}) == len(CATALOGUE)


def test_the_three_histograms_keep_their_names_labels_and_buckets() -> None:
    for name in ("cold_start_total_seconds", "image_pull_seconds", "model_load_seconds"):
        metric = next(m for m in CATALOGUE if m.name == name)
        assert metric.buckets == (1, 5, 15, 30, 60, 120, 300, 600)
        assert (
            metric.labels
            == COLD_START_LABELS
            == ("namespace", "endpoint", "size_class", "node_pool", "warm", "outcome")
        )


def test_a_start_is_counted_in_its_histogram() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.image_pull(LABELS, 2.0)
    metrics.model_load(LABELS, 40.0)
    metrics.cold_start(LABELS, 45.5)
    labels = {
        "namespace": "shop",
        "endpoint": "chat",
        "size_class": "<10GB",
        "node_pool": "none",
        "warm": "both",
        "outcome": "ok",
    }
    assert registry.get_sample_value("cold_start_total_seconds_sum", labels) == 45.5
    assert registry.get_sample_value("image_pull_seconds_bucket", labels | {"le": "1.0"}) == 0
    assert registry.get_sample_value("image_pull_seconds_bucket", labels | {"le": "5.0"}) == 1
    assert registry.get_sample_value("model_load_seconds_count", labels) == 1


def test_other_rooms_events_are_counted() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.pulled(parse_image_ref("nginx"), 3.0, 100, "ok")
    metrics.hydrated(DIGEST, 9.0, 500, "ok")
    metrics.xid("fatal")
    metrics.window_met(KEY, 0)
    metrics.window_missed(KEY)
    read = registry.get_sample_value
    assert read("prewarm_image_pull_transfer_seconds_count", {"outcome": "ok"}) == 1
    assert read("prewarm_image_pulled_bytes_total") == 100
    assert read("prewarm_hydrated_bytes_total") == 500
    assert read("prewarm_gpu_xids_total", {"class": "fatal"}) == 1
    assert read("prewarm_windows_missed_total", {"namespace": "shop", "endpoint": "chat"}) == 1
    assert read("prewarm_window_lateness_seconds_bucket", {"namespace": "shop", "endpoint": "chat", "le": "0.0"}) == 1


def test_windows_of_endless_endpoint_names_share_a_bounded_number_of_series() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for number in range(600):
        metrics.window_missed(EndpointKey(namespace="preview", name=f"pr-{number}"))
    (family,) = [f for f in registry.collect() if f.name == "prewarm_windows_missed"]
    assert len(family.samples) == 501
    assert registry.get_sample_value(f"{family.name}_total", {"namespace": "other", "endpoint": "other"}) == 100


class Writer:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def patch_status(self, node: str, body: Mapping[str, object]) -> None:
        if self.error:
            raise self.error

    async def patch_taints(self, node: str, ops: object) -> None: ...

    async def write_status(self, node: str, status: Mapping[str, object]) -> None: ...


async def test_claims_and_withdrawals_are_counted_when_they_have_been_written() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    labels = {"endpoint.prewarm.dev/a.b": "ready", "endpoint.prewarm.dev/a.c": None, "prewarm.dev/gpu": "healthy"}
    await CountedWriter(Writer(), metrics).patch_status("n", {"metadata": {"labels": labels}})
    with pytest.raises(Transient):
        await CountedWriter(Writer(Transient("away")), metrics).patch_status("n", {"metadata": {"labels": labels}})
    read = registry.get_sample_value
    assert (read("prewarm_claims_total"), read("prewarm_claim_withdrawals_total")) == (1, 1)
    assert read("prewarm_api_writes_total", {"kind": "node", "outcome": "ok"}) == 1
    assert read("prewarm_api_writes_total", {"kind": "node", "outcome": "failed"}) == 1


async def test_a_write_that_nobody_waits_for_any_more_has_failed() -> None:
    class Hanging(Writer):
        async def patch_status(self, node: str, body: Mapping[str, object]) -> None:
            await asyncio.Event().wait()

    registry = CollectorRegistry()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await CountedWriter(Hanging(), Metrics(registry)).patch_status("n", {})
    assert registry.get_sample_value("prewarm_api_writes_total", {"kind": "node", "outcome": "failed"}) == 1


def test_gauges_are_read_from_the_cells() -> None:
    registry = CollectorRegistry()
    ref = parse_image_ref("nginx")
    model = ModelWant(name="m", uri=parse_model_uri("s3://models/m/"), digest=DIGEST, size_bytes=7)
    state = NodeState(
        assignment=lambda: Assignment(endpoints=(EndpointWant(key=KEY, models=(model, model)),)),
        inventory=lambda: Inventory(
            images={ref: ImageState(ref=ref, level=ImageLevel.UNPACKED)},
            models={DIGEST: ModelState(digest=DIGEST, level=ModelLevel.COMMITTED)},
            gpu=GpuReport(
                verdict=GpuVerdict.DEGRADED,
                count=8,
                gpus=(
                    GpuState(
                        index=3, verdict=GpuVerdict.DEGRADED, reasons=(GpuReason(code="hot", verdict=None, text=""),)
                    ),
                ),
                reasons=(GpuReason(code="gpus-more-than-set", verdict=None, text=""),),
            ),
            cache=CacheUse(used_bytes=1, free_bytes=2, capacity_bytes=3),
        ),
        labels=lambda: {"endpoint.prewarm.dev/shop.chat": "ready"},
        ages=lambda: {"gpu": float("inf")},
        version="1.2",
        care=lambda: StoreCare(read_bytes=9, bad_parts=1, broken=2, mended=1, turn_age_seconds=60),
    )
    StateCollector(state, registry)
    read, at = registry.get_sample_value, {"namespace": "shop", "endpoint": "chat"}
    assert read("prewarm_endpoint_ready", at) == 1
    assert (read("prewarm_endpoint_model_bytes", at), read("prewarm_endpoint_committed_bytes", at)) == (14, 14)
    verdicts = {v.value: read("prewarm_gpu_verdict", {"verdict": v.value}) for v in GpuVerdict}
    assert verdicts == {"healthy": 0, "degraded": 1, "unhealthy": 0, "unknown": 0, "none": 0}
    assert read("prewarm_gpu_state", {"gpu": "3", "verdict": "degraded"}) == 1
    assert read("prewarm_gpu_reason", {"gpu": "3", "reason": "hot"}) == 1
    assert read("prewarm_gpu_reason", {"gpu": "node", "reason": "gpus-more-than-set"}) == 1
    assert (read("prewarm_gpus"), read("prewarm_store_free_bytes")) == (8, 2)
    assert (read("prewarm_images", {"level": "unpacked"}), read("prewarm_images", {"level": "absent"})) == (1, 0)
    assert read("prewarm_models", {"level": "committed"}) == 1
    assert read("prewarm_heartbeat_age_seconds", {"prover": "gpu"}) == float("inf")
    assert (read("prewarm_scrub_bytes_total"), read("prewarm_scrub_bad_parts_total")) == (9, 1)
    assert [read("prewarm_model_repairs_total", {"outcome": o}) for o in ("broken", "mended")] == [2, 1]
    assert read("prewarm_scrub_age_seconds") == 60
    assert read("prewarm_build_info", {"version": "1.2"}) == 1


def test_everything_in_the_catalogue_is_exposed_and_nothing_else() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    empty = NodeState(assignment=lambda: None, inventory=Inventory, labels=dict, ages=dict, version="0")
    StateCollector(empty, registry)
    exposed = set(re.findall(r"^# TYPE (\S+)", generate_latest(registry).decode(), re.MULTILINE))
    assert exposed == {m.name for m in FED + READ}


@pytest.mark.parametrize(
    "line",
    [
        'vllm:request_success_total{finished_reason="stop",model_name="m"} 1',
        'vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 3.0',
        'nv_inference_request_success{model="m",version="1"} 2',
        "tgi_request_success 1",
        'tgi_request_success_total{method="batch"} 1e+02 1700000000000',
        'sglang:num_requests_total{model_name="m"} 1.0',
    ],
)
def test_a_successful_answer_is_seen(line: str) -> None:
    assert counts_an_answer(f"# HELP x y\nother 1\n{line}\n")


@pytest.mark.parametrize(
    "line",
    [
        'vllm:request_success_total{finished_reason="stop"} 0',
        'vllm:request_success_total{finished_reason="abort"} 4',
        "# TYPE vllm:request_success_total counter",
        'vllm:request_success_created{finished_reason="stop"} 1.7e9',
        "nv_inference_request_failure 5",
        "nv_inference_request_success NaN",
        "tgi_request_success 1.2.3",
        "tgi_request_success",
        "xtgi_request_success 1",
        "",
    ],
)
def test_anything_else_is_no_answer(line: str) -> None:
    assert not counts_an_answer(f"{line}\n")


def test_ready_is_green_while_proofs_are_young_and_withdrawals_are_through() -> None:
    assert what_is_red({"images": 29.9, "gpu": 0}, 5.0) == []
    assert what_is_red({"images": 30, "gpu": float("inf")}, 5.1) == [
        "gpu: has not completed a cycle yet",
        "images: last completed a cycle 30 s ago",
        "publisher: a withdrawal has waited for 5 s",
    ]


def test_addresses() -> None:
    assert parse_address("0.0.0.0:9808") == ("0.0.0.0", 9808)
    assert parse_address("[::1]:80") == ("::1", 80)
    assert parse_address(":80") == ("0.0.0.0", 80)
    for bad in ("9808", "host:", "host:x", "host:99999"):
        with pytest.raises(Permanent, match="http_address"):
            parse_address(bad)


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def test_text_logs_are_one_line_each_whatever_the_values(logged: io.StringIO) -> None:
    setup_logging(level="info", form="text", stream=logged)
    log = structlog.get_logger()
    log.debug("not shown")
    log.info("pulled", image="a b", **{"bad key": 1}, evil='x\nlevel=error event="forged"\x1b[31m')
    logging.getLogger("asyncio").warning("slow\ncallback %s", 3)
    first, second = logged.getvalue().splitlines()
    assert re.fullmatch(r'time=\S+Z level=info event=pulled image="a b" bad_key=1 evil="x level=.*', first)
    assert "\x1b" not in first
    assert 'event="slow callback 3"' in second


def test_json_logs_keep_types(logged: io.StringIO) -> None:
    setup_logging(level="info", form="json", stream=logged)
    structlog.get_logger().warning("late", seconds=1.5, endpoint=KEY, at=datetime(2026, 1, 1, tzinfo=UTC), n=None)
    line = json.loads(logged.getvalue())
    assert (line["level"], line["seconds"], line["endpoint"], line["n"]) == ("warning", 1.5, "shop.chat", None)


def test_an_exception_is_told_on_one_line(logged: io.StringIO) -> None:
    setup_logging(level="info", form="text", stream=logged)
    try:
        raise ValueError("boom")
    except ValueError:
        structlog.get_logger().exception("failed")
    assert len(logged.getvalue().splitlines()) == 1
    assert "ValueError: boom" in logged.getvalue()


def test_pods_that_name_ever_new_endpoints_make_no_end_of_series() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for n in range(700):
        metrics.image_pull(replace(LABELS, endpoint=f"job-{n}"), 1.0)
    metrics.image_pull(replace(LABELS, endpoint="job-7"), 1.0)
    found = [s for m in registry.collect() for s in m.samples if s.name == "image_pull_seconds_count"]
    assert len(found) == 501
    counts = {s.labels["endpoint"]: s.value for s in found}
    assert (counts["job-7"], counts["other"]) == (2, 200)
