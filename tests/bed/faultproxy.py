"""A proxy in front of an S3 server that answers chosen requests wrongly: what real networks and servers do to downloads.

    with FaultProxy(s3.address) as proxy:
        proxy.rules.append(Rule("reset", times=3))
        …  # clients are given http://127.0.0.1:{proxy.port}; the Host header passes unchanged, so signatures stay valid

Faults: `503`, `500`, `403`, `404`, `expired-token` (an answer of its own); `wrong-content-range`, `wrong-total`,
`wrong-etag`, `200-for-206` (altered headers); `stall-before-headers` (`arg` seconds), `truncate`, `reset`, `stall`
(`arg` seconds), `corrupt` (one bit), all four at the share `at` of the body; `slow` (`arg` bytes per second).
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from types import TracebackType
from typing import Self

ANSWERS = {
    "503": (503, "SlowDown"),
    "500": (500, "InternalError"),
    "403": (403, "AccessDenied"),
    "404": (404, "NoSuchKey"),
    "expired-token": (400, "ExpiredToken"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request on its way through."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def is_range(self) -> bool:
        """Whether it reads a body by range."""
        return self.method == "GET" and "range" in self.headers


@dataclass(slots=True)
class Rule:
    """One fault for the next `times` requests that match (by default: range reads)."""

    fault: str
    times: int = 1
    arg: float = 0.0
    at: float = 0.5
    match: Callable[[Request], bool] = field(default=lambda request: request.is_range)


class FaultProxy:
    """The proxy, on a free port of the loopback."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._open: set[socket.socket] = set()
        self.rules: list[Rule] = []
        self.requests: list[Request] = []  # all that came
        self.faults: list[str] = []  # all that were done

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ranges(self) -> list[str]:
        """The Range headers of all range reads so far."""
        return [r.headers["range"] for r in self.requests if r.is_range]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, ValueError), client, socket.create_connection(self._upstream) as server:
            with self._lock:
                self._open |= {client, server}
            try:
                with client.makefile("rb") as asked, server.makefile("rb") as answered:
                    while self._one(client, asked, server, answered):
                        pass
            finally:
                with self._lock:
                    self._open -= {client, server}

    def _one(
        self, client: socket.socket, asked: BufferedReader, server: socket.socket, answered: BufferedReader
    ) -> bool:
        """Pass one request; False ends the connection."""
        head = _head(asked)
        if not head:
            return False
        method, path, _ = head[0].decode().split(" ", 2)
        request = Request(method=method, path=path, headers=_headers(head))
        if "expect" in request.headers:  # not part of any signature
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = [line for line in head if not line.lower().startswith(b"expect:")]
        body = asked.read(int(request.headers.get("content-length", 0)))
        rule = self._pick(request)
        fault = rule.fault if rule else ""
        if fault in ANSWERS:
            client.sendall(_refusal(*ANSWERS[fault], head_only=method == "HEAD"))
            return True
        server.sendall(b"".join(head) + b"\r\n" + body)
        answer = _head(answered)
        if not answer:
            return False
        headers = _headers(answer)
        if rule and fault == "stall-before-headers":
            time.sleep(rule.arg)
        client.sendall(b"".join(_altered(answer, fault)) + b"\r\n")
        if "chunked" in headers.get("transfer-encoding", ""):
            return _pass_chunks(client, answered)
        empty = method == "HEAD" or answer[0].split()[1] in (b"304", b"204")
        return _pass_body(client, answered, 0 if empty else int(headers.get("content-length", 0)), rule)

    def _pick(self, request: Request) -> Rule | None:
        with self._lock:
            self.requests.append(request)
            for rule in self.rules:
                if rule.times > 0 and rule.match(request):
                    rule.times -= 1
                    self.faults.append(rule.fault)
                    return rule
        return None


def _head(file: BufferedReader) -> list[bytes]:
    lines: list[bytes] = []
    while (line := file.readline(65536)) not in (b"\r\n", b"\n"):
        if not line:
            return []
        lines.append(line)
    return lines


def _headers(head: list[bytes]) -> dict[str, str]:
    pairs = (line.decode().split(":", 1) for line in head[1:])
    return {name.strip().lower(): value.strip() for name, value in pairs}


def _refusal(status: int, code: str, *, head_only: bool) -> bytes:
    body = b"" if head_only else f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
    head = f"HTTP/1.1 {status} x\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _altered(answer: list[bytes], fault: str) -> list[bytes]:
    def moved(found: re.Match[bytes]) -> bytes:
        return found[1] + str(int(found[2]) + 4096).encode() + b"-" + str(int(found[3]) + 4096).encode()

    match fault:
        case "wrong-content-range":
            return [re.sub(rb"(?i)^(content-range: bytes )(\d+)-(\d+)", moved, line) for line in answer]
        case "wrong-total":
            return [re.sub(rb"(?i)^(content-range: .*/)(\d+)", rb"\g<1>1\2", line) for line in answer]
        case "wrong-etag":
            other = b'"00000000000000000000000000000000-7"'
            return [re.sub(rb'(?i)^(etag: )"[^"]*"', rb"\1" + other, line) for line in answer]
        case "200-for-206":
            kept = [line for line in answer[1:] if not line.lower().startswith(b"content-range")]
            return [b"HTTP/1.1 200 OK\r\n", *kept]
        case _:
            return answer


def _pass_chunks(client: socket.socket, answered: BufferedReader) -> bool:
    while True:
        line = answered.readline()
        size = int(line.split(b";")[0], 16)
        client.sendall(line + answered.read(size + 2))
        if size == 0:
            return True


def _pass_body(client: socket.socket, answered: BufferedReader, length: int, rule: Rule | None) -> bool:
    sent, place = 0, int(length * rule.at) if rule else 0
    while sent < length:
        block = bytearray(answered.read1(min(65536, length - sent)))
        if not block:
            return False
        if rule and sent <= place < sent + len(block):
            if rule.fault in ("truncate", "reset", "stall"):
                client.sendall(block[: place - sent])
                _break(client, rule)
                return False
            if rule.fault == "corrupt":
                block[place - sent] ^= 1
        if rule and rule.fault == "slow":
            time.sleep(len(block) / rule.arg)
        client.sendall(block)
        sent += len(block)
    return True


def _break(client: socket.socket, rule: Rule) -> None:
    if rule.fault == "stall":
        time.sleep(rule.arg)
    elif rule.fault == "reset":  # closing with linger 0 sends RST
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        client.shutdown(socket.SHUT_RDWR)
