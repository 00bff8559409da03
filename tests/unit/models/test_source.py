"""S3 servers that answer nonsense, and endpoints that are none: a failure of that source, told in one sentence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from agent.core.errors import Permanent, PrewarmError, Transient
from agent.core.refs import parse_model_uri
from agent.models.resolve import resolve

URI = parse_model_uri("s3://bucket/k/")
LISTING = "<ListBucketResult><IsTruncated>false</IsTruncated><Contents>{}</Contents></ListBucketResult>"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", "AKIAEXAMPLE"), ("SECRET_ACCESS_KEY", "topsecret"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)


@contextlib.asynccontextmanager
async def s3_that_says(body: str, status: int, header: str) -> AsyncIterator[str]:
    """Answer every request alike; a HEAD without the body. Yields the endpoint's URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while asked := await reader.readuntil(b"\r\n\r\n"):
                head = f"HTTP/1.1 {status} OK\r\n{header}Content-Length: {len(body)}\r\n\r\n"
                writer.write((head + ("" if asked.startswith(b"HEAD") else body)).encode())
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("body", "status", "header"),
    [
        (LISTING.format("<Key>k/a</Key><Size>5</Size>"), 200, ""),
        (LISTING.format("<Key>k/a</Key><ETag>x</ETag>"), 200, ""),
        (LISTING.format("<Key>k/a</Key><Size>five</Size><ETag>x</ETag>"), 200, ""),
        (LISTING.format("<Key>k/a</Key><Size>5</Size><ETag>x</ETag><LastModified>x</LastModified>"), 200, ""),
        (LISTING.format("<Key>k/a</Key><Size>0</Size><ETag>x</ETag>"), 200, ""),  # its HEAD names no ETag
        (LISTING.format("<Key>k/a</Key><Size>0</Size><ETag>x</ETag>"), 200, "ETag: x\r\nLast-Modified: x\r\n"),
        ("", 301, ""),  # to no region
    ],
)
async def test_an_answer_that_makes_no_sense_is_a_failure_of_that_source(
    monkeypatch: pytest.MonkeyPatch, body: str, status: int, header: str
) -> None:
    async with s3_that_says(body, status, header) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(Transient, match=r"makes no sense|names no size or ETag"):
            await resolve(URI)


@pytest.mark.parametrize("url", ["minio:9000", "http://", "http://user:topsecret@a b", "ftp://x", "http://x:99999"])
async def test_an_endpoint_that_is_no_url_is_told_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(PrewarmError) as told:
        await resolve(URI)
    assert isinstance(told.value, Permanent)
    assert "topsecret" not in str(told.value)
