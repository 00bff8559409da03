"""HEAD of many objects, in threads with a keep-alive connection each, as ranges are read: a tenth of an S3 client's CPU.

Only plain answers count here. What is refused, redirected, lost or not as it was listed is left to the S3 client, which knows
what to do about it and how to say it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from agent.core.errors import PrewarmError
from agent.models.bucket import Bucket
from agent.models.manifest import Listed
from agent.models.source import S3Source
from agent.models.wire import Wire

THREADS = 8
_PATIENCE_SECONDS = 20.0
_FAILURES = 3  # of one thread in a row: then this is no way to ask this server
_FIELDS = {
    "content-length": "ContentLength",
    "etag": "ETag",
    "x-amz-version-id": "VersionId",
    "x-amz-checksum-type": "ChecksumType",
    "x-amz-checksum-crc64nvme": "ChecksumCRC64NVME",
    "x-amz-checksum-crc32c": "ChecksumCRC32C",
    "x-amz-checksum-crc32": "ChecksumCRC32",
    "x-amz-checksum-sha256": "ChecksumSHA256",
    "x-amz-checksum-sha1": "ChecksumSHA1",
    "x-amz-server-side-encryption": "ServerSideEncryption",
    "x-amz-server-side-encryption-customer-algorithm": "SSECustomerAlgorithm",
}

Head = Mapping[str, str]


async def head_objects(
    source: S3Source, bucket_name: str, listed: Sequence[Listed], version_id: str
) -> list[Head | None]:
    """Return, for each object, the fields of its HEAD by botocore's names; None where the S3 client must ask.

    Raises:
        Permanent: the proxy's URL or the certificate authorities cannot be read.
    """
    bucket = await source.bucket(bucket_name)
    tls = await source.tls() if bucket.scheme == "https" else None
    asking = _Asking(source, bucket, listed, version_id)
    wires = [Wire(bucket, tls, _PATIENCE_SECONDS) for _ in range(min(THREADS, len(listed)))]
    loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(THREADS, "head")  # not the loop's: that serves others
    running = [loop.run_in_executor(pool, asking.run, wire) for wire in wires]
    try:
        await asyncio.wait(running)
    finally:
        asking.stop.set()
        for wire in wires:
            wire.abort()
        await asyncio.wait(running)
        pool.shutdown(wait=False)
    return asking.heads


class _Asking:
    """What the threads share."""

    def __init__(self, source: S3Source, bucket: Bucket, listed: Sequence[Listed], version_id: str) -> None:
        self._source, self._bucket, self._listed, self._version_id = source, bucket, listed, version_id
        self._left = deque(range(len(listed)))
        self.heads: list[Head | None] = [None] * len(listed)
        self.stop = threading.Event()

    def run(self, wire: Wire) -> None:
        failures = 0
        try:
            while self._left and failures < _FAILURES and not self.stop.is_set():
                try:
                    number = self._left.popleft()
                except IndexError:  # another thread took the last one
                    return
                try:
                    self.heads[number] = self._ask(wire, self._listed[number])
                    failures = 0
                except PrewarmError:
                    failures += 1
        finally:
            wire.close()

    def _ask(self, wire: Wire, listed: Listed) -> Head:
        path = self._bucket.path(listed.key, self._version_id)
        asked = self._source.sign(self._bucket, path, {"x-amz-checksum-mode": "ENABLED"}, method="HEAD")
        found = wire.head(path, asked)
        return {name: found[field] for field, name in _FIELDS.items() if field in found}
