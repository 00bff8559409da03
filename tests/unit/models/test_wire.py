"""Answers to a range request that a hostile or broken server, proxy or gateway gives: one sentence each, and never a hang."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from agent.core.errors import Permanent, PrewarmError
from agent.models.bucket import Bucket
from agent.models.wire import Busy, Denied, RangeFailed, SourceChanged, Wire

PATIENCE_SECONDS = 0.4
LONG_PATIENCE_SECONDS = 3.0  # for an answer that is there at once, on a machine that is busy
BODY = b"0123456789" * 20_000  # larger than what counts as progress
RANGE = f"Content-Range: bytes 0-{len(BODY) - 1}/{len(BODY)}\r\nContent-Length: {len(BODY)}\r\n"


@contextlib.contextmanager
def server(answer: bytes, *, drip_seconds: float = 0.0) -> Iterator[Bucket]:
    """Answer every request alike, at once or byte by byte, and keep the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=one, args=(client,), daemon=True).start()

    def one(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            while client.recv(65536):
                for piece in [answer[n : n + 1] for n in range(len(answer))] if drip_seconds else [answer]:
                    client.sendall(piece)
                    time.sleep(drip_seconds)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield Bucket(scheme="http", host="127.0.0.1", port=listener.getsockname()[1], base_path="/b/", region="r")
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def read(bucket: Bucket, patience_seconds: float = LONG_PATIENCE_SECONDS) -> bytes:
    wire, into = Wire(bucket, None, patience_seconds), memoryview(bytearray(len(BODY)))
    try:
        wire.ask("/b/k", {})
        wire.read(into, offset=0, total=len(BODY), etag='"e"', before_slice=lambda _: None)
    finally:
        wire.close()
    return bytes(into)


def answered(status: str, headers: str = "", body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}\r\n".encode() + body


def refusal(status: str, code: str, headers: str = "") -> bytes:
    body = f"<Error><Code>{code}</Code></Error>".encode()
    return answered(status, f"{headers}Content-Length: {len(body)}\r\n", body)


def test_what_is_stored_compressed_arrives_as_it_is_stored() -> None:
    with server(answered("206 x", RANGE + "Content-Encoding: gzip\r\n", BODY)) as bucket:
        assert read(bucket) == BODY


@pytest.mark.parametrize(
    ("answer", "kind", "why"),
    [
        (answered("206 x", RANGE + "Transfer-Encoding: chunked\r\n", BODY), RangeFailed, "in chunks"),
        (answered("206 x", RANGE.replace(f"Length: {len(BODY)}", "Length: 0")), RangeFailed, "was offered '0'"),
        (answered("206 x", RANGE.partition("\r\n")[0] + "\r\n", BODY), RangeFailed, "was offered ''"),
        (answered("206 x", RANGE + "X: " + "x" * 20_000 + "\r\n"), RangeFailed, "head is too long"),
        (answered("200 x", f"Content-Length: {len(BODY)}\r\n", BODY), Busy, "answered a range request with 200"),
        (answered("100 Continue"), RangeFailed, r"an answer that is none \(100\)"),
        (
            refusal("301 x", "PermanentRedirect", "x-amz-bucket-region: eu-west-1\r\n"),
            RangeFailed,
            "301 PermanentRedirect",
        ),
        (refusal("307 x", "TemporaryRedirect", "Location: http://169.254.169.254/\r\n"), RangeFailed, "307 Temporary"),
        (refusal("403 x", "RequestTimeTooSkewed"), RangeFailed, "clock differs too much from S3's"),
        (refusal("400 x", "ExpiredToken"), Denied, "400 ExpiredToken"),
        (refusal("403 x", "AccessDenied"), Denied, "403 AccessDenied"),
        (refusal("400 x", "KeyTooLongError"), Permanent, "400 KeyTooLongError"),
        (refusal("416 x", "InvalidRange"), SourceChanged, "416"),
        (answered("206 x", RANGE + 'ETag: "other"\r\n', BODY), SourceChanged, "replaced"),
        (b"\x16\x03\x01 not HTTP at all\r\n\r\n", RangeFailed, "not HTTP/1.1"),
        (b"HTTP/1.1 206", RangeFailed, "connection failed"),
    ],
)
def test_a_wrong_answer_is_told_in_one_sentence(answer: bytes, kind: type[PrewarmError], why: str) -> None:
    with server(answer) as bucket, pytest.raises(kind, match=why):
        read(bucket)


@pytest.mark.parametrize(
    "answer",
    [
        answered("206 x", "X: y\r\n" * 500),
        refusal("503 x", "SlowDown" * 200),
        answered("206 x", RANGE, BODY),
    ],
    ids=["head", "refusal", "body"],
)
def test_a_server_that_drips_does_not_hold_a_thread(answer: bytes) -> None:
    """A byte before each patience ends: 30 bytes a second here would take an hour and a half."""
    began = time.monotonic()
    with server(answer, drip_seconds=0.03) as bucket, pytest.raises(RangeFailed):
        read(bucket, PATIENCE_SECONDS)
    assert time.monotonic() - began < 3 * 16 * PATIENCE_SECONDS
