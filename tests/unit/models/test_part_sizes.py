"""In which parts an object was uploaded, from answers of S3 that come in pages, with gaps, or make no sense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from agent.models.manifest import Listed
from agent.models.part_sizes import MOST_PARTS, PartSizes


class Attributes:
    """GetObjectAttributes of one object whose parts bear these numbers, `size` bytes each; it knows no part numbers in HEAD."""

    def __init__(self, numbers: Sequence[int], *, stuck: bool = False) -> None:
        self._numbers, self._stuck = numbers, stuck
        self.asked = 0

    async def get_object_attributes(self, **asked: Any) -> Mapping[str, Any]:
        self.asked += 1
        after = 0 if self._stuck else asked["PartNumberMarker"]
        page = [n for n in self._numbers if n > after][: asked["MaxParts"]]
        return {"ObjectParts": {"Parts": [{"PartNumber": n, "Size": 5} for n in page]}}

    async def head_object(self, **_: Any) -> Mapping[str, Any]:
        self.asked += 1
        return {"ContentLength": 1}


async def sizes(client: Attributes, count: int) -> tuple[int, ...]:
    return await PartSizes(client, "bucket", Listed(key="k", size=5 * count, etag='"e"'), "").find(count)


async def test_parts_come_in_pages_whatever_their_numbers() -> None:
    client = Attributes(range(1, 7500, 3))
    assert await sizes(client, 2500) == (5,) * 2500
    assert client.asked == 3


@pytest.mark.parametrize("count", [2500, MOST_PARTS + 1, 0])
async def test_nonsense_ends_and_says_nothing(count: int) -> None:
    client = Attributes(range(1, 1001), stuck=True)
    assert await sizes(client, count) == ()
    assert client.asked <= 2
