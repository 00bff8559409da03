"""One S3 server for this folder, a bucket for each test, and the environment that points AWS SDKs at it."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.core.refs import ModelUri, parse_model_uri
from tests.bed import needs
from tests.bed.faultproxy import FaultProxy
from tests.bed.s3 import S3Server

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if reason := needs.why_not("s3"):
        pytest.skip(reason)
    with S3Server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@dataclass(frozen=True, slots=True)
class SourceBucket:
    """A bucket of its own, reached through a fault proxy."""

    server: S3Server
    proxy: FaultProxy
    name: str

    def put(self, key: str, content: bytes) -> bytes:
        self.server.put(self.name, key, content)
        return content

    def uri(self, rest: str = "m/") -> ModelUri:
        return parse_model_uri(f"s3://{self.name}/{rest}")


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[SourceBucket]:
    name = f"models-{os.getpid()}-{next(_NUMBERS)}"
    server.make_bucket(name)
    with FaultProxy(server.address) as proxy:
        for key, value in environment(server, proxy.url).items():
            monkeypatch.setenv(key, value)
        yield SourceBucket(server, proxy, name)


def environment(server: S3Server, url: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": server.region,
        "no_proxy": "127.0.0.1",
    }


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that no two ranges share."""
    return random.Random(seed).randbytes(size)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
