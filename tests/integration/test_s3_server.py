"""The S3 server that tests run against, without a cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from tests.bed import S3Server, needs
from tests.bed.process import wait_until
from tests.bed.s3 import accepts


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    """A server with nothing in it."""
    if reason := needs.why_not("s3"):
        pytest.skip(f"no S3 server: {reason}")
    with S3Server(tmp_path / "s3") as server:
        yield server


async def test_what_was_put_is_read_by_an_sdk_and_logged(s3: S3Server) -> None:
    content = bytes(range(256)) * 400
    s3.put("models", "llama/weights 1.bin", content)

    async with get_session().create_client(
        "s3",
        endpoint_url=s3.url,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        region_name=s3.region,
    ) as client:
        answer = await client.get_object(Bucket="models", Key="llama/weights 1.bin", Range="bytes=100-299")
        part = await answer["Body"].read()

    assert part == content[100:300]
    (get,) = [line for line in s3.access_log() if line.operation == "s3_GetObject"]
    assert (get.bucket, get.key, get.remote) == ("models", "llama/weights 1.bin", "127.0.0.1")


async def test_a_versioned_bucket_keeps_what_was_overwritten(s3: S3Server) -> None:
    s3.make_bucket("versioned", versioned=True)
    s3.put("versioned", "key", b"old")
    s3.put("versioned", "key", b"new")

    async with get_session().create_client(
        "s3",
        endpoint_url=s3.url,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        region_name=s3.region,
    ) as client:
        listed = await client.list_object_versions(Bucket="versioned", Prefix="key")
        old = next(version for version in listed["Versions"] if not version["IsLatest"])
        answer = await client.get_object(Bucket="versioned", Key="key", VersionId=old["VersionId"])
        assert await answer["Body"].read() == b"old"
        s3.delete("versioned", "key")
        with pytest.raises(ClientError, match="NoSuchKey"):
            await client.get_object(Bucket="versioned", Key="key")


def test_it_returns_with_its_data_on_the_same_port(s3: S3Server) -> None:
    s3.put("bucket", "key", b"content")
    address = s3.address

    s3.stop()
    assert not s3.answers()
    s3.start()

    assert s3.address == address
    assert (s3.answers(), s3.data("bucket", "key").read_bytes()) == (True, b"content")


def test_it_dies_with_the_process_that_started_it(s3: S3Server, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from tests.bed import S3Server;"
        "print(S3Server(Path(sys.argv[1])).start().address, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "other")]

    killed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert killed.returncode == -signal.SIGKILL
    wait_until(lambda: not accepts(killed.stdout.strip()), 10, "the orphan is gone")
