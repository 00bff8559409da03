"""The S3 server and the objects that `bench.hydrate` downloads: uploaded in parts over HTTP, read over HTTP and TLS."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.bed.s3 import S3Server

BUCKET = "bench"
PART_BYTES = 64 << 20
SECONDS_VALID = 36000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """So many objects of one size."""

    name: str
    count: int
    size_bytes: int

    @property
    def total_bytes(self) -> int:
        """All objects together."""
        return self.count * self.size_bytes

    @property
    def keys(self) -> list[str]:
        """Their names below the prefix."""
        return [f"{n:05}.bin" for n in range(self.count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where one shape is read from. `description` is a file that says the same to the peers in Python."""

    url: str
    prefix: str
    shape: Shape
    authorities: str
    environment: Mapping[str, str]
    requests: Sequence[str]  # presigned paths and queries, in the order of the keys
    description: Path

    @property
    def host(self) -> str:
        """The server's address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The server's port."""
        return urlsplit(self.url).port or 0

    def plan(self, to: Path) -> str:
        """What the C program reads."""
        pairs = zip(self.shape.keys, self.requests, strict=True)
        return "".join(f"{self.shape.size_bytes} {to / key} {request}\n" for key, request in pairs)


def describe(server: S3Server, shape: Shape, prefix: str, directory: Path, authorities: Path | None = None) -> Source:
    """Return the source for one server, with what clients need to read from it."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": server.region,
        "AWS_DEFAULT_REGION": server.region,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    if authorities is not None:
        environment |= {"AWS_CA_BUNDLE": str(authorities), "SSL_CERT_FILE": str(authorities)}
    requests = [_presigned(server, f"{server.url}/{BUCKET}/{prefix}/{key}") for key in shape.keys]
    description = directory / f"source-{urlsplit(server.url).scheme}.json"
    said = {"url": server.url, "prefix": prefix, "requests": requests, "keys": shape.keys, "size": shape.size_bytes}
    description.write_text(json.dumps(said | {"authorities": str(authorities or "")}))
    return Source(
        url=server.url,
        prefix=prefix,
        shape=shape,
        authorities=str(authorities or ""),
        environment=environment,
        requests=requests,
        description=description,
    )


def _presigned(server: S3Server, url: str) -> str:
    from botocore.auth import S3SigV4QueryAuth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest("GET", url)
    credentials = Credentials(server.access_key, server.secret_key)
    S3SigV4QueryAuth(credentials, "s3", server.region, expires=SECONDS_VALID).add_auth(request)
    parts = urlsplit(request.url)
    return f"{parts.path}?{parts.query}"


def upload(server: S3Server, shape: Shape, prefix: str) -> None:
    """Store the objects: no two parts alike, large ones by multipart upload, as weights are."""
    import botocore.session

    noise = os.urandom(PART_BYTES)
    session = botocore.session.get_session()
    session.set_credentials(server.access_key, server.secret_key)
    client = session.create_client("s3", region_name=server.region, endpoint_url=server.url)
    server.make_bucket(BUCKET)

    def one(number: int) -> None:
        key = f"{prefix}/{shape.keys[number]}"
        if shape.size_bytes <= PART_BYTES:
            client.put_object(Bucket=BUCKET, Key=key, Body=_piece(noise, number, shape.size_bytes))
        else:
            _in_parts(client, key, number, shape.size_bytes, noise)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, range(shape.count)))


def _in_parts(client: Any, key: str, number: int, size: int, noise: bytes) -> None:
    upload_id = client.create_multipart_upload(Bucket=BUCKET, Key=key, ChecksumAlgorithm="CRC64NVME")["UploadId"]
    same = {"Bucket": BUCKET, "Key": key, "UploadId": upload_id}
    parts = []
    for n, offset in enumerate(range(0, size, PART_BYTES), start=1):
        body = _piece(noise, number * 10_000 + n, min(PART_BYTES, size - offset))
        done = client.upload_part(**same, PartNumber=n, Body=body, ChecksumAlgorithm="CRC64NVME")
        parts.append({"PartNumber": n, "ETag": done["ETag"], "ChecksumCRC64NVME": done["ChecksumCRC64NVME"]})
    client.complete_multipart_upload(**same, MultipartUpload={"Parts": parts}, ChecksumType="FULL_OBJECT")


def _piece(noise: bytes, number: int, size: int) -> bytes:
    return number.to_bytes(8, "big") + noise[8:size]
