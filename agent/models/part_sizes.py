"""In which parts an object was uploaded: what a composite checksum is to be compared by.

An outage while asking is an outage: it raises, rather than leave a provable object unproved.

GetObjectAttributes tells a thousand parts a request, but wants a permission of its own and is not known to every server;
HEAD with a part number tells one. Where neither does, the object's checksum cannot be compared and its source is unproved.
"""

from __future__ import annotations

import asyncio
from typing import Any

from agent.models.manifest import Listed

MOST_PARTS = 10_000  # S3's limit (AWS, "Amazon S3 multipart upload limits")
MOST_HEADS = 1000  # requests for one object
_AT_ONCE = 8
_BUSY = (429, 500, 502, 503, 504)  # not 501: what a server does not know it will not know later


class PartSizes:
    """Asks about one object."""

    def __init__(self, client: Any, bucket: str, listed: Listed, version_id: str) -> None:
        version = {"VersionId": version_id} if version_id else {}
        self._client, self._listed = client, listed
        self._asked = {"Bucket": bucket, "Key": listed.key, **version}

    async def find(self, count: int) -> tuple[int, ...]:
        """Return the sizes of `count` parts, in order, which add up to the object; () where they cannot be had."""
        for ask in (self._attributes, self._heads) if count <= MOST_PARTS else ():
            sizes = await ask(count)
            if len(sizes) == count > 0 and min(sizes) > 0 and sum(sizes) == self._listed.size:
                return sizes
        return ()

    async def _attributes(self, count: int) -> tuple[int, ...]:
        from botocore.exceptions import ClientError

        sizes: list[int] = []
        last = 0  # parts need not be numbered without gaps
        try:
            while len(sizes) < count:
                answer = await self._client.get_object_attributes(
                    **self._asked, ObjectAttributes=["ObjectParts"], MaxParts=1000, PartNumberMarker=last
                )
                parts = answer.get("ObjectParts", {}).get("Parts", [])
                if not parts or int(parts[-1]["PartNumber"]) <= last:
                    return ()
                last = int(parts[-1]["PartNumber"])
                sizes += [int(p["Size"]) for p in parts]
        except ClientError as error:
            if _is_busy(error):
                raise
            return ()
        except (KeyError, TypeError, ValueError):
            return ()  # not permitted, not known, or nonsense: the other way may do
        return tuple(sizes)

    async def _heads(self, count: int) -> tuple[int, ...]:
        from botocore.exceptions import BotoCoreError, ClientError

        if count > MOST_HEADS:
            return ()
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(number: int) -> int:
            async with gate:
                answer = await self._client.head_object(**self._asked, PartNumber=number, IfMatch=self._listed.etag)
                return int(answer["ContentLength"]) if answer.get("PartsCount") == count else 0

        try:
            async with asyncio.TaskGroup() as heads:
                tasks = [heads.create_task(one(n), name=f"part {n}") for n in range(1, count + 1)]
        except* (ClientError, KeyError, ValueError) as failed:
            if (busy := failed.subgroup(_is_busy)) is not None:
                raise _first(busy) from None
            tasks = []
        except* BotoCoreError as failed:
            raise _first(failed) from None
        return tuple(t.result() for t in tasks)


def _is_busy(error: BaseException) -> bool:
    status: object = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status in _BUSY


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
