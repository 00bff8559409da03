"""What the objects state of themselves, asked for in threads: the same as the S3 client is told, whatever gets in the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from agent.core.errors import Permanent
from agent.models.heads import THREADS, head_objects
from agent.models.manifest import Listed
from agent.models.resolve import resolve
from agent.models.source import agrees, open_source
from tests.bed.faultproxy import Request, Rule
from tests.integration.models.conftest import SourceBucket, noise


def is_head_of(key: str) -> Callable[[Request], bool]:
    return lambda request: request.method == "HEAD" and key in request.path


def asked(bucket: SourceBucket) -> int:
    return sum(request.method == "HEAD" for request in bucket.proxy.requests)


async def test_each_object_states_to_the_threads_what_it_states_to_the_client(bucket: SourceBucket) -> None:
    for n in range(40):
        bucket.put(f"m/{n} ü+'&/x", noise(100, seed=n))
    async with open_source() as source:
        listed = await source.list_objects(bucket.uri())
        heads = await head_objects(source, bucket.name, listed, "")
        assert asked(bucket) == 40
        for one, head in zip(listed, heads, strict=True):
            assert head is not None
            assert agrees(head, one)
            assert await source.entry(bucket.name, one, one.key, "", head) == await source.head(
                bucket.name, one, one.key
            )


async def test_what_threads_are_not_told_plainly_the_client_asks_for(bucket: SourceBucket) -> None:
    for name in "abcd":
        bucket.put(f"m/{name}", name.encode())
    expected = await resolve(bucket.uri())
    bucket.proxy.rules += [
        Rule(fault, match=is_head_of(f"m/{name}")) for name, fault in (("a", "503"), ("b", "wrong-etag"), ("c", "403"))
    ]
    before = asked(bucket)
    assert await resolve(bucket.uri()) == expected
    assert asked(bucket) - before == 4 + 3
    assert len(bucket.proxy.faults) == 3


async def test_an_object_that_is_gone_since_it_was_listed_is_told_by_name(bucket: SourceBucket) -> None:
    bucket.put("m/a", b"a")
    async with open_source() as source:
        listed = [Listed(key="m/gone", size=1, etag='"x"'), *await source.list_objects(bucket.uri())]
        gone, here = await head_objects(source, bucket.name, listed, "")
        assert gone is None
        assert here is not None
        with pytest.raises(Permanent, match=r"m/gone.*no such key"):
            await source.head(bucket.name, listed[0], "gone")


async def test_cancelled_it_leaves_no_thread_behind(bucket: SourceBucket) -> None:
    for n in range(THREADS):
        bucket.put(f"m/{n}", b"x")
    bucket.proxy.rules += [Rule("stall-before-headers", times=THREADS, arg=30, match=is_head_of("m/"))]
    async with open_source() as source:
        listed = await source.list_objects(bucket.uri())
        asking = asyncio.create_task(head_objects(source, bucket.name, listed, ""))
        while len(bucket.proxy.faults) < THREADS:  # noqa: ASYNC110 (the proxy runs in threads)
            await asyncio.sleep(0.01)
        asking.cancel()
        async with asyncio.timeout(10):
            await asyncio.wait({asking})
        assert asking.cancelled()
    for thread in threading.enumerate():
        if thread.name.startswith("head"):
            thread.join(10)
            assert not thread.is_alive()


async def test_a_server_that_refuses_threads_is_not_asked_on_and_on(bucket: SourceBucket) -> None:
    for n in range(100):
        bucket.put(f"m/{n:02}", b"x")
    bucket.proxy.rules += [Rule("403", times=1000, match=is_head_of("m/"))]
    async with open_source() as source:
        listed = await source.list_objects(bucket.uri())
        assert set(await head_objects(source, bucket.name, listed, "")) == {None}
        assert asked(bucket) == 3 * THREADS
