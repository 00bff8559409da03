"""In which parts an object was uploaded: what a composite checksum is to be compared by.

GetObjectAttributes tells a thousand parts a request, but wants a permission of its own and is not known to every server;
HEAD with a part number tells one. Where neither does, the object's checksum cannot be compared and its source is unproved.
"""

from __future__ import annotations

import asyncio
from typing import Any

from agent.models.manifest import Listed

MOST_HEADS = 1000  # requests for one object
_AT_ONCE = 8


class PartSizes:
    """Asks about one object."""

    def __init__(self, client: Any, bucket: str, listed: Listed, version_id: str) -> None:
        version = {"VersionId": version_id} if version_id else {}
        self._client, self._listed = client, listed
        self._asked = {"Bucket": bucket, "Key": listed.key, **version}

    async def find(self, count: int) -> tuple[int, ...]:
        """Return the sizes of `count` parts, in order, which add up to the object; () where they cannot be had."""
        for ask in (self._attributes, self._heads):
            sizes = await ask(count)
            if len(sizes) == count > 0 and min(sizes) > 0 and sum(sizes) == self._listed.size:
                return sizes
        return ()

    async def _attributes(self, count: int) -> tuple[int, ...]:
        from botocore.exceptions import BotoCoreError, ClientError

        sizes: list[int] = []
        try:
            while len(sizes) < count:
                answer = await self._client.get_object_attributes(
                    **self._asked, ObjectAttributes=["ObjectParts"], MaxParts=1000, PartNumberMarker=len(sizes)
                )
                parts = answer.get("ObjectParts", {}).get("Parts", [])
                if not parts:
                    return ()
                sizes += [int(p["Size"]) for p in parts]
        except (ClientError, BotoCoreError, KeyError, TypeError, ValueError):
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
        except* (ClientError, BotoCoreError, KeyError, ValueError):
            tasks = []
        return tuple(t.result() for t in tasks)
