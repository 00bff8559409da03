"""S3 servers that answer nonsense, and endpoints that are none: a failure of that source, told in one sentence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from agent.core.errors import Permanent, PrewarmError, Transient
from agent.core.refs import parse_model_uri
from agent.models import source
from agent.models.bucket import Bucket
from agent.models.resolve import resolve
from agent.models.source import open_source

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


class Scripted:
    """An S3 that answers the n-th request as a function says, by its head: `(status, headers, body)`."""

    def __init__(self, answer: Callable[[int, str], tuple[int, str, str]]) -> None:
        self._answer = answer
        self.asked: list[str] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.asked.append(head)
                status, headers, body = self._answer(len(self.asked), head)
                told = f"HTTP/1.1 {status} OK\r\n{headers}"
                if "Content-Length" not in headers:
                    told += f"Content-Length: {len(body.encode())}\r\n"
                writer.write((told + "\r\n" + ("" if head.startswith("HEAD") else body)).encode())
                await writer.drain()
                if "Connection: close" in headers:
                    break
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            yield
        finally:
            server.close()


def page(number: int, keys: int) -> str:
    contents = "".join(
        f"<Contents><Key>k/{number:05}-{n}</Key><Size>1</Size><ETag>x</ETag></Contents>" for n in range(keys)
    )
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{number}</NextContinuationToken>"
    return f"<ListBucketResult>{more}{contents}</ListBucketResult>"


@pytest.mark.parametrize(
    ("keys", "why", "pages"),
    [(1000, "has more than 10000 objects: name a longer prefix", 11), (0, "after 20 pages S3 still has more", 21)],
)
async def test_a_listing_without_end_is_refused(
    monkeypatch: pytest.MonkeyPatch, keys: int, why: str, pages: int
) -> None:
    monkeypatch.setattr(source, "MOST_PAGES", 20)
    s3 = Scripted(lambda number, _head: (200, "", page(number, keys)))
    async with s3.running(monkeypatch):
        with pytest.raises(Permanent, match=why):
            await resolve(URI)
    assert len(s3.asked) == pages


async def test_a_bucket_of_another_region_is_found_there_and_read_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_number: int, head: str) -> tuple[int, str, str]:
        if "/eu-west-1/s3/" not in head:
            return 301, "x-amz-bucket-region: eu-west-1\r\n", "<Error><Code>PermanentRedirect</Code></Error>"
        if head.startswith("HEAD"):
            return 200, "ETag: x\r\nContent-Length: 1\r\n", ""
        return 200, "", LISTING.format("<Key>k/a</Key><Size>1</Size><ETag>x</ETag>")

    s3 = Scripted(answer)
    async with s3.running(monkeypatch), open_source() as opened:
        assert [o.key for o in (await resolve(URI, opened)).objects] == ["k/a"]
        assert (await opened.bucket("bucket")).region == "eu-west-1"


@pytest.mark.parametrize(
    ("status", "code", "kind", "why"),
    [
        (403, "RequestTimeTooSkewed", Transient, "this machine's clock differs too much from S3's"),
        (400, "ExpiredToken", Transient, "the AWS credentials have expired"),
        (403, "AccessDenied", Permanent, "access denied"),
    ],
)
async def test_a_refused_listing_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, kind: type[PrewarmError], why: str
) -> None:
    s3 = Scripted(lambda _number, _head: (status, "", f"<Error><Code>{code}</Code></Error>"))
    async with s3.running(monkeypatch):
        with pytest.raises(kind, match=why):
            await resolve(URI)


@pytest.mark.parametrize("size", [40, 60], ids=["cut", "altered"])
async def test_an_index_that_arrives_damaged_is_worth_another_try(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    sums = "0" * 60

    def answer(_number: int, head: str) -> tuple[int, str, str]:
        if "list-type" in head:
            return 200, "", LISTING.format("<Key>k/SHA256SUMS</Key><Size>60</Size><ETag>x</ETag>")
        return (
            200,
            "ETag: x\r\nx-amz-checksum-crc32: AAAAAA==\r\nContent-Length: 60\r\nConnection: close\r\n",
            sums[:size],
        )

    s3 = Scripted(answer)
    async with s3.running(monkeypatch):
        with pytest.raises(Transient):
            async with asyncio.timeout(40):
                await resolve(URI)


@pytest.mark.parametrize("etag", ["caf\u00e9", "a&#10;b"])
async def test_an_etag_that_no_header_can_hold_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, etag: str) -> None:
    s3 = Scripted(lambda _n, _head: (200, "", LISTING.format(f"<Key>k/a</Key><Size>1</Size><ETag>{etag}</ETag>")))
    async with s3.running(monkeypatch):
        with pytest.raises(Permanent, match="key 'k/a' has an ETag that no request could name"):
            await resolve(URI)


def test_a_version_id_is_named_as_its_bytes_came() -> None:
    bucket = Bucket(scheme="http", host="h", port=80, base_path="/b/", region="r")
    assert bucket.path("k", b"v\xff".decode(errors="surrogateescape")) == "/b/k?versionId=v%FF"
