"""`prewarm replay` and `prewarm recommend` on the last days of a real Prometheus; and what they say where there is none."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cli import main
from agent.core.assignment_json import parse_time
from tests.bed import needs
from tests.bed.prometheus import PrometheusServer, Sample

DAYS = 11
STEP = 2  # minutes between scrapes
MIDNIGHT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)

# When pods of each endpoint ran on each day (minutes, pods), and what it declares.
ENDPOINTS = {
    "early": ([(460, 720, 1)], "0 9 * * *"),
    "unused": ([(180, 240, 1)], "0 20 * * *"),
    "morning": ([(490, 720, 2)], "0 8 * * *"),
    "rare": ([(550, 558, 1), (1030, 1038, 1)], "0 9 * * *; 0 17 * * *"),
}


def days() -> Iterator[int]:
    """Midnights of the days, as seconds since 1970."""
    return (int((MIDNIGHT - timedelta(days=n)).timestamp()) for n in range(DAYS + 1, -1, -1))


def scrapes(name: str) -> Iterator[Sample]:
    """An endpoint's pods while they run: each is up, and a request ends in each two minutes."""
    now, count = datetime.now(UTC).timestamp(), 0
    for midnight in days():
        for begin, end, pods in ENDPOINTS[name][0]:
            for minute in range(begin, end, STEP):
                at, count = midnight + 60 * minute + 7, count + 1
                for n in range(pods if at < now else 0):
                    labels = f'namespace="shop",pod="{name}-7d9c-x2x4{n}"'
                    yield Sample(series=f"up{{{labels}}}", value=1, at=at)
                    yield Sample(series=f"vllm:request_success_total{{{labels}}}", value=count, at=at)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    if reason := needs.why_not("prometheus"):
        pytest.skip(f"no Prometheus: {reason}")
    made = PrometheusServer(tmp_path_factory.mktemp("prometheus"))
    now = int(datetime.now(UTC).timestamp())
    beat = [Sample(series='up{job="any"}', value=1, at=at) for at in range(min(days()), now, 60 * STEP)]
    made.load([*beat, *(sample for name in ENDPOINTS for sample in scrapes(name))])
    with made:
        yield made


@pytest.fixture(scope="module")
def workloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workloads") / "all.yaml"
    path.write_text(yaml.safe_dump_all(deployment(name) for name in ENDPOINTS))
    return path


def deployment(name: str) -> dict[str, object]:
    container = {"name": "server", "image": "a/b:1", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    annotations = {"prewarm.dev/schedule": ENDPOINTS[name][1], "prewarm.dev/min-scale": "recommend"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "shop", "annotations": annotations},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    found: dict[str, Any] = json.loads(out.out)
    return found


def test_replay_counts_the_returns_that_were_and_proposes_what_to_declare(
    server: PrometheusServer, workloads: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["replay", "-f", str(workloads), "--from-prometheus", server.url, "--days", str(DAYS), "--learn-days", "3"]
    found = told(capsys, *words, "--budget", "0.2,0.5", "--html", str(tmp_path / "page.html"))
    begin, end = (parse_time(str(found[name]), name).timestamp() for name in ("counted_from", "counted_until"))
    began = [midnight + 60 * span[0] for midnight in days() for spans, _ in ENDPOINTS.values() for span in spans]
    low, high = found["replay"]
    assert low["returns"] == high["returns"] == sum(begin <= at < end for at in began)
    assert low["hits"] + low["misses"] == low["returns"]
    assert high["hits"] >= 0.8 * high["returns"]
    assert high["waste_pct"] <= 60
    proposed = {each["endpoint"]: each for each in found["proposals"]}
    assert "declared 09:00, real P10 07:40: " in proposed["shop/early"]["why"]
    assert proposed["shop/early"]["annotations"]["prewarm.dev/schedule"] == "40 7 * * MON-FRI"
    assert "declared windows saw a request within its first hour" in proposed["shop/unused"]["why"]
    assert "shop/early" in (tmp_path / "page.html").read_text()


def test_recommend_says_pods_costs_and_nothing_for_an_endpoint_used_twice_a_day(
    server: PrometheusServer, workloads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recommend", "-f", str(workloads), "--from-prometheus", server.url, "--days", str(DAYS)]
    found = told(capsys, *words)
    assert found["source"] == "prometheus"
    lines = {line["name"]: line for line in found["recommendations"]}
    assert (lines["rare"]["p95Pods"], lines["rare"]["pods"], lines["rare"]["gpuHoursPerWeek"]) == (1, 0, 0)
    assert (lines["unused"]["p95Pods"], lines["unused"]["pods"]) == (0, 0)
    assert (lines["early"]["pods"], lines["early"]["coldSecondsSavedPerWeek"]) == (1, 0), "its pod runs anyway"
    morning = lines["morning"]
    assert (morning["p95Pods"], morning["pods"], morning["covered"]) == (2, 2, 1)
    assert morning["gpuHoursPerWeek"] == pytest.approx(7 * 2 * 15 / 60, rel=0.15)
    assert morning["coldSecondsSavedPerWeek"] == pytest.approx(7 * 2 * 60, rel=0.15)
    assert main([*words, "shop/morning", "--query", 'sum(up{pod=~"$pods"}) * 8', "--per-pod", "4"]) == 0
    assert "morning" in (out := capsys.readouterr().out)
    assert 'set prewarm.dev/replicas: "4"' in out


@contextlib.contextmanager
def answering(status: int, body: bytes = b"{}") -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with HTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{made.server_address[1]}"
        finally:
            made.shutdown()
            thread.join()


EMPTY = b'{"status":"success","data":{"resultType":"matrix","result":[]}}'


NOTHING = "Prometheus knows nothing of these endpoints in the last 3 days: "


def test_endpoints_that_prometheus_does_not_know_are_worth_no_pods_so_far(
    workloads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-f", str(workloads), "--days", "3", "--json", "--from-prometheus"]
    with answering(200, EMPTY) as url:
        assert main(["replay", *words, url]) == 1
        out = capsys.readouterr()
        assert (out.out, NOTHING in out.err) == ("", True)
        assert main(["recommend", *words, url]) == 0
    out = capsys.readouterr()
    assert (NOTHING in out.err, out.err.count("\n")) == (True, 1)
    assert {(r["pods"], r["windowsSeen"]) for r in json.loads(out.out)["recommendations"]} == {(0, 0)}


@pytest.mark.parametrize("command", ["replay", "recommend"])
@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, b"{}", "--token-file"),
        (404, b"no", "--from-prometheus"),
        (400, b'{"error":"bad"}', "refuses the query: bad"),
    ],
)
def test_what_prometheus_does_not_answer_is_one_sentence_with_a_cure(
    workloads: Path, command: str, status: int, body: bytes, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(status, body) as url:
        assert main([command, "-f", str(workloads), "--from-prometheus", url, "--days", "3"]) == 1
    out = capsys.readouterr()
    assert out.out == ""
    assert says in out.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["replay", "--from-prometheus", "http://127.0.0.1:9"], 1, "Prometheus at 127.0.0.1 does not answer"),
        (
            ["replay", "--from-prometheus", "http://127.0.0.1:9", "--token-file", "/nonexistent"],
            1,
            "cannot read the token",
        ),
        (["replay", "--days", "99"], 2, "a number from 1 to 42"),
        (["replay", "--from-prometheus", "ftp://x"], 2, "write it like http://prometheus"),
        (["replay", "--from-prometheus", "http://me:word@x"], 2, "carries a user or password"),
        (["replay", "-n", "other"], 1, "no endpoint of namespace other"),
        (["recommend", "shop/nobody"], 1, "no endpoint shop/nobody in "),
        (["recommend", "nobody"], 2, "'nobody': write NAMESPACE/NAME"),
        (["recommend", "--per-pod", "0"], 2, "--per-pod 0: a number above 0"),
        (["recommend", "--worth", "nan"], 2, "--worth nan: a number above 0"),
    ],
)
def test_a_mistake_is_one_sentence_with_a_cure(
    workloads: Path, words: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of([*words, "-f", str(workloads)]) == code
    out = capsys.readouterr()
    assert out.out == ""
    assert says in out.err.splitlines()[-1]
    assert "word@" not in out.err


def code_of(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as ended:
        return int(ended.code or 0)


def test_without_a_cluster_or_a_file_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", "--kubeconfig", str(tmp_path / "none")]) == 1
    assert "cannot use kubeconfig" in capsys.readouterr().err


def test_ctrl_c_ends_it_without_a_word(workloads: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "agent", "replay", "-f", str(workloads), "--from-prometheus", url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            asked, _ = silent.accept()
            time.sleep(0.1)  # it waits for the answer by now, or very soon
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            asked.close()
    assert (process.returncode, out, err) == (130, "", "")
