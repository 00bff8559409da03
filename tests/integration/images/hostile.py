"""A front before a registry that answers chosen requests wrongly."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is done to requests whose path has `where` in it: a status, or a good body cut or slowed down."""

    where: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_at: float = 1.0  # the share of the body that is sent before the connection ends
    bytes_per_second: int = 0


class Front:
    """The front; `fault` is the one that is done now."""

    def __init__(self, registry: tuple[str, int]) -> None:
        self.registry = registry
        self.fault: Fault | None = None
        self.times = 0
        self.asked: Counter[str] = Counter()  # bodies of blobs, by digest
        self.wants = ""  # the Authorization header without which nothing is answered

    def fault_for(self, path: str) -> Fault | None:
        fault = self.fault
        if fault is None or fault.where not in path:
            return None
        self.times += 1
        return fault


@contextmanager
def hostile_front(registry: tuple[str, int]) -> Iterator[tuple[Front, tuple[str, int]]]:
    """Run one; yields it and its address."""
    front = Front(registry)
    handler = type("Handler", (_Handler,), {"front": front})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield front, ("127.0.0.1", server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    front: Front

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        if self.front.wants and self.headers.get("Authorization") != self.front.wants:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="registry"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.command == "GET" and "/blobs/" in self.path:
            self.front.asked[self.path.rpartition("/blobs/")[2].partition("?")[0]] += 1
        fault = self.front.fault_for(self.path)
        if fault and fault.status:
            self.send_response(fault.status)
            for name, value in {"Content-Length": "0", **fault.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        upstream = http.client.HTTPConnection(*self.front.registry, timeout=60)
        try:
            wanted = {k: v for k, v in self.headers.items() if k.lower() in ("accept", "range")}
            upstream.request(self.command, self.path, headers=wanted)
            self._pass_on(upstream.getresponse(), fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has had enough
        finally:
            upstream.close()

    def _pass_on(self, answer: http.client.HTTPResponse, fault: Fault | None) -> None:
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        body = answer.read()
        if fault is None:
            self.wfile.write(body)
            return
        body = body[: int(len(body) * fault.cut_at)]
        _write_slowly(self.wfile.write, body, fault.bytes_per_second)
        self.close_connection = fault.cut_at < 1


def _write_slowly(write: Callable[[bytes], object], body: bytes, bytes_per_second: int) -> None:
    if not bytes_per_second:
        write(body)
        return
    step = max(1, bytes_per_second // 10)
    for at in range(0, len(body), step):
        write(body[at : at + step])
        time.sleep(0.1)
