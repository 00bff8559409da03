"""The bed's model server as a process of its own, over HTTP."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed.modelserver import server as module
from tests.bed.modelserver.weights import write_model

SERVER = Path(module.__file__)
SIZE_BYTES = 5_000_001
DEADLINE_SECONDS = 30

Start = Callable[..., "Running"]


class Running:
    """A server process and what it has said."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, str(SERVER), "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = self.heard("listening")["port"]

    def heard(self, event: str) -> dict[str, Any]:
        """Reads on until the server says `event`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said: dict[str, Any] = json.loads(line)
            if said["event"] == event:
                return said
        raise AssertionError(f"the server ended without saying {event!r}")

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_SECONDS)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


@pytest.fixture
def start() -> Iterator[Start]:
    servers: list[Running] = []

    def run(*options: str) -> Running:
        servers.append(Running(*options))
        return servers[-1]

    yield run
    for running in servers:
        running.process.kill()
        running.process.communicate(timeout=DEADLINE_SECONDS)


def test_not_ready_before_the_last_byte_is_in_memory(start: Start, tmp_path: Path) -> None:
    write_model(tmp_path, SIZE_BYTES)
    fifo = tmp_path / "z.safetensors"  # last in order: loading stays there until someone writes
    os.mkfifo(fifo)
    running = start("--model", str(tmp_path))
    running.heard("loading")
    assert running.ask("GET", "/v2/health/live")[0] == 200
    assert running.ask("GET", "/v2/health/ready")[0] == 503
    assert running.ask("POST", "/v1/completions", "{}")[0] == 503
    assert "request_success" not in running.ask("GET", "/metrics")[1]


def test_ready_server_tells_the_version_it_read_from_the_weights_and_counts_answers(
    start: Start, tmp_path: Path
) -> None:
    write_model(tmp_path / "llama", SIZE_BYTES, shards=3, version="v7")
    running = start("--model", str(tmp_path / "llama"))
    ready = running.heard("ready")
    assert (ready["bytes"], ready["tensors"], ready["metadata"]["version"]) == (SIZE_BYTES, 3, "v7")
    assert running.ask("GET", "/v2/health/ready")[0] == 200
    for _ in range(2):
        status, text = running.ask("POST", "/v1/completions", '{"prompt": "abc"}')
        answer = json.loads(text)
        assert (status, answer["model"], answer["metadata"]["version"]) == (200, "llama", "v7")
    metrics = running.ask("GET", "/metrics")[1].splitlines()
    assert 'vllm:request_success_total{finished_reason="stop",model_name="llama"} 2' in metrics
    assert f"prewarm_bed_model_bytes {SIZE_BYTES}" in metrics
    assert any(re.match(r"prewarm_bed_model_load_seconds \d+\.\d", line) for line in metrics)


def test_a_refused_request_is_not_counted(start: Start, tmp_path: Path) -> None:
    write_model(tmp_path, SIZE_BYTES)
    running = start("--model", str(tmp_path))
    running.heard("ready")
    assert running.ask("POST", "/v1/completions", "[nonsense")[0] == 400
    assert running.ask("GET", "/nowhere")[0] == 404
    assert running.ask("GET", "/metrics")[1].splitlines()[-1].endswith(" 0")


def test_all_tensor_bytes_are_read_through_symlinks(start: Start, tmp_path: Path) -> None:
    (shard,) = write_model(tmp_path / "store", SIZE_BYTES)
    (tmp_path / "view").symlink_to(tmp_path / "store")
    running = start("--model", str(tmp_path / "view"), "--crc")
    assert running.heard("ready")["crc32"] == f"{zlib.crc32(shard.read_bytes()[-SIZE_BYTES:]):08x}"


def test_waits_for_weights_when_told_to(start: Start, tmp_path: Path) -> None:
    running = start("--model", str(tmp_path / "later"), "--wait")
    assert running.ask("GET", "/v2/health/ready")[0] == 503
    write_model(tmp_path / "now", SIZE_BYTES)
    (tmp_path / "now").rename(tmp_path / "later")
    assert running.heard("ready")["bytes"] == SIZE_BYTES


def empty(shard: Path) -> None:
    shard.unlink()


def cut_short(shard: Path) -> None:
    os.truncate(shard, SIZE_BYTES - 1)


def not_safetensors(shard: Path) -> None:
    shard.write_bytes(b"PK" * 100)


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [(empty, "no *.safetensors in"), (cut_short, "tensors end at byte"), (not_safetensors, "header of")],
)
def test_a_model_that_is_not_whole_ends_the_server(
    start: Start, tmp_path: Path, harm: Callable[[Path], None], complaint: str
) -> None:
    (shard,) = write_model(tmp_path, SIZE_BYTES)
    harm(shard)
    running = start("--model", str(tmp_path))
    assert complaint in running.heard("failed")["error"]
    assert running.process.wait(timeout=DEADLINE_SECONDS) == 1


def test_sigterm_ends_it_at_once(start: Start, tmp_path: Path) -> None:
    write_model(tmp_path, SIZE_BYTES)
    running = start("--model", str(tmp_path))
    running.heard("ready")
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(timeout=DEADLINE_SECONDS) == 0


def test_weights_are_the_same_for_the_same_seed_and_share_no_page_with_another_version(tmp_path: Path) -> None:
    def pages(name: str, version: str) -> list[bytes]:
        (shard,) = write_model(tmp_path / name, 40 << 20, version=version)
        data = shard.read_bytes()[-(40 << 20) :]
        return [hashlib.sha256(data[at : at + 4096]).digest() for at in range(0, len(data), 4096)]

    first, again, other = pages("a", "v1"), pages("b", "v1"), pages("c", "v2")
    assert first == again
    assert len(set(first)) == len(first)
    assert not set(first) & set(other)


def test_weights_do_not_compress(tmp_path: Path) -> None:
    (shard,) = write_model(tmp_path, 20 << 20)
    data = shard.read_bytes()
    assert len(zlib.compress(data, 1)) > 0.99 * len(data)


def test_index_names_the_shard_of_every_tensor(tmp_path: Path) -> None:
    shards = write_model(tmp_path, SIZE_BYTES, shards=2)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == SIZE_BYTES
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    for shard in shards:
        header, buffer = module.read_safetensors(shard)
        assert set(header) - {"__metadata__"} == {n for n, f in index["weight_map"].items() if f == shard.name}
        buffer.close()
