"""The bytes of a process's downloads by where they came from, as the kernel counts them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.images.hosts import RegistryHost
from agent.images.sources import ELSEWHERE, MIRROR, REGISTRY, Sources, told

SELF = Path("/proc/self")


@asynccontextmanager
async def sender() -> AsyncIterator[int]:
    """Something that sends as many bytes as a line asks for; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(bytes(int(line)))
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def fetch(port: int, count: int) -> asyncio.StreamWriter:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{count}\n".encode())
    await reader.readexactly(count)
    return writer


async def end(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
        await writer.wait_closed()


def host(port: int) -> RegistryHost:
    return RegistryHost(base=f"http://127.0.0.1:{port}/v2", name="registry.test")


async def test_bytes_are_counted_by_source_also_of_connections_that_have_ended() -> None:
    sources = Sources()
    async with sender() as mirror, sender() as registry, sender() as other:
        before = await fetch(registry, 1_000_000)
        async with sources.counting(SELF, [host(mirror), host(registry)]) as found:
            short = await fetch(mirror, 3_000_000)
            while sources.received()[MIRROR] < 3_000_000:  # noqa: ASYNC110 (the kernel tells nobody)
                await asyncio.sleep(0.05)
            await end(short)
            kept = [await fetch(mirror, 2_000_000), await fetch(registry, 400_000), await fetch(other, 700_000)]
        exact = {f"http://127.0.0.1:{mirror}": 5_000_000, f"http://127.0.0.1:{registry}": 400_000, ELSEWHERE: 700_000}
        assert {place: round(count, -3) for place, count in found.items()} == exact
        assert {k: round(n, -3) for k, n in sources.received().items()} == {
            MIRROR: 5_000_000,
            REGISTRY: 400_000,
            ELSEWHERE: 700_000,
        }
        await end(before, *kept)


async def test_two_pulls_at_a_time_count_nothing_twice() -> None:
    sources = Sources()
    async with sender() as registry:
        async with sources.counting(SELF, [host(registry)]), sources.counting(SELF, [host(registry)]):
            kept = await fetch(registry, 300_000)
        assert round(sources.received()[REGISTRY], -3) == 300_000
        await end(kept)


async def test_where_containerd_cannot_be_seen_nothing_is_said() -> None:
    sources = Sources()
    async with sources.counting(Path("/proc/nobody"), [host(1)]) as found:
        pass
    assert told(found) == ""


def test_a_source_of_next_to_nothing_is_left_out() -> None:
    assert told({"http://a": 99_500, "http://b": 500}) == "fetched 99.5 kB from http://a"
