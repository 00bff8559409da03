"""A model server for the bed: loads every safetensors file fully into memory, then answers.

HTTP is up from the start; `/v2/health/ready` says 503 until the last byte is in memory. Standard library only, so that
its image stays small, and one file, so that it can be copied anywhere. Phases go to stdout as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import signal
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHUNK_BYTES = 16 << 20
HEADER_LIMIT_BYTES = 100 << 20  # the format's own limit
POLL_SECONDS = 0.2  # while --wait looks for weights


class BadModel(Exception):
    """The files cannot be loaded; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Weights in memory, with what their files say about themselves."""

    name: str
    metadata: dict[str, str]
    tensors: int
    size_bytes: int
    load_seconds: float
    crc32: str | None
    buffers: tuple[mmap.mmap, ...]  # held so that the memory stays taken


def say(event: str, **fields: object) -> None:
    """One phase as a JSON line, with the wall clock and the seconds since the process started."""
    line = {"time": time.time(), "since_start": round(time.monotonic() - STARTED, 4), "event": event, **fields}
    print(json.dumps(line), flush=True)


STARTED = time.monotonic()


def load(directory: Path, *, name: str, crc: bool = False) -> Model:
    """Reads every `*.safetensors` of the directory, symlinks followed, into anonymous memory.

    Raises:
        BadModel: there is none, or one is not a whole safetensors file.
    """
    started = time.monotonic()
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise BadModel(f"no *.safetensors in {directory}")
    metadata: dict[str, str] = {}
    buffers, tensors, checksum = [], 0, 0
    for path in paths:
        header, buffer = read_safetensors(path)
        metadata |= header.pop("__metadata__", {})
        tensors += len(header)
        buffers.append(buffer)
        if crc:
            checksum = zlib.crc32(buffer, checksum)
    return Model(
        name=name,
        metadata=metadata,
        tensors=tensors,
        size_bytes=sum(len(buffer) for buffer in buffers),
        load_seconds=time.monotonic() - started,
        crc32=f"{checksum:08x}" if crc else None,
        buffers=tuple(buffers),
    )


def read_safetensors(path: Path) -> tuple[dict[str, Any], mmap.mmap]:
    """Header and all tensor bytes of one file.

    Raises:
        BadModel: not a safetensors file, cut short, or with bytes that belong to no tensor.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 2 <= length <= min(HEADER_LIMIT_BYTES, size - 8):
            raise BadModel(f"{path}: header of {length} bytes in a file of {size}")
        try:
            header = json.loads(file.read(length))
            end = max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadModel(f"{path}: header is not what safetensors has: {error}") from error
        if end == 0 or end != size - 8 - length:
            raise BadModel(f"{path}: tensors end at byte {end}, the data at {size - 8 - length}")
        buffer = mmap.mmap(-1, end)
        view = memoryview(buffer)
        at = 0
        while at < end:
            got = file.readinto(view[at : at + CHUNK_BYTES])
            if not got:
                raise BadModel(f"{path}: ends {end - at} bytes early")
            at += got
        view.release()
    return header, buffer


class Server(ThreadingHTTPServer):
    """HTTP from the first moment; `model` is None until it has been loaded."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__(("", port), Handler)
        self.model: Model | None = None
        self.successes = 0
        self.lock = threading.Lock()

    def complete(self, prompt: str) -> dict[str, object] | None:
        """An answer in the shape of the OpenAI API, or None while the model is loading."""
        if self.model is None:
            return None
        with self.lock:
            self.successes += 1
            number = self.successes
        if number == 1:
            say("first answer")
        return {
            "id": f"cmpl-{number}",
            "object": "text_completion",
            "model": self.model.name,
            "metadata": self.model.metadata,
            "crc32": self.model.crc32,
            "choices": [{"index": 0, "text": prompt[::-1], "finish_reason": "stop"}],
        }

    def metrics(self) -> Iterator[str]:
        """Lines of the Prometheus text format; request counts under vLLM's names."""
        model = self.model
        yield "# TYPE prewarm_bed_model_ready gauge"
        yield f"prewarm_bed_model_ready {int(model is not None)}"
        if model is None:
            return
        yield "# TYPE prewarm_bed_model_load_seconds gauge"
        yield f"prewarm_bed_model_load_seconds {model.load_seconds:.6f}"
        yield "# TYPE prewarm_bed_model_bytes gauge"
        yield f"prewarm_bed_model_bytes {model.size_bytes}"
        yield "# TYPE vllm:request_success_total counter"
        yield f'vllm:request_success_total{{finished_reason="stop",model_name="{model.name}"}} {self.successes}'


class Handler(BaseHTTPRequestHandler):
    """Routes."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Health and metrics."""
        match self.path.partition("?")[0]:
            case "/v2/health/live":
                self._answer(200, b"")
            case "/v2/health/ready" | "/health":
                self._answer(503 if self.server.model is None else 200, b"")
            case "/metrics":
                self._answer(200, "".join(f"{line}\n" for line in self.server.metrics()).encode(), "text/plain")
            case _:
                self._answer(404, b"no such page\n", "text/plain")

    def do_POST(self) -> None:
        """Completions."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/completions":
            self._answer(404, b"no such page\n", "text/plain")
            return
        try:
            prompt = str(json.loads(body).get("prompt", "")) if body else ""
        except (ValueError, AttributeError):
            self._answer(400, b"the body must be a JSON object\n", "text/plain")
            return
        answer = self.server.complete(prompt)
        if answer is None:
            self._answer(503, b'{"error": "the model is loading"}\n')
        else:
            self._answer(200, json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Silent: stdout is for phases."""

    def _answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def await_weights(directory: Path) -> None:
    """Returns once the directory has a safetensors file."""
    while not any(directory.glob("*.safetensors")):
        time.sleep(POLL_SECONDS)


def main() -> None:
    """Command line; ends with status 1 where the model cannot be loaded."""
    env = os.environ
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=env.get("MODEL_DIR", "/models/model"), help="env MODEL_DIR")
    parser.add_argument("--port", type=int, default=int(env.get("PORT", "8000")), help="0: any; env PORT")
    parser.add_argument("--name", default=env.get("MODEL_NAME", ""), help="the directory's name; env MODEL_NAME")
    parser.add_argument("--wait", action="store_true", help="wait for weights instead of failing without them")
    parser.add_argument("--crc", action="store_true", help="tell the CRC-32 of all tensor bytes")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # at once: nothing here needs a goodbye
    server = Server(args.port)
    say("listening", port=server.server_address[1])
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    if args.wait:
        await_weights(args.model)
    say("loading", model=str(args.model))
    try:
        model = load(args.model, name=args.name or args.model.name, crc=args.crc)
    except (BadModel, OSError) as error:
        say("failed", error=str(error))
        sys.exit(1)
    server.model = model
    fields = {"bytes": model.size_bytes, "tensors": model.tensors, "seconds": round(model.load_seconds, 4)}
    say("ready", **fields, metadata=model.metadata, crc32=model.crc32)
    threading.Event().wait()


if __name__ == "__main__":
    main()
