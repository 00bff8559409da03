"""The connection to containerd: who is slow to answer it is waited for, who is not there is said to be away at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf.empty_pb2 import Empty

from agent.images.faults import TransientFault
from agent.images.rpc import CALL_SECONDS, Rpc
from agent.pb.containerd import version_pb2


async def _answer(request: Empty, context: object) -> version_pb2.VersionResponse:
    return version_pb2.VersionResponse(version="v2.2.7")


_HANDLER = grpc.unary_unary_rpc_method_handler(
    _answer,
    request_deserializer=Empty.FromString,
    response_serializer=version_pb2.VersionResponse.SerializeToString,
)


@contextlib.asynccontextmanager
async def _slow_daemon(directory: Path, seconds: float) -> AsyncIterator[str]:
    """Serve on a socket whose connections are carried to the daemon `seconds` after they were taken."""
    service = grpc.method_handlers_generic_handler("containerd.services.version.v1.Version", {"Version": _HANDLER})
    daemon = grpc.aio.server(handlers=[service])
    daemon.add_insecure_port(f"unix:{directory / 'daemon.sock'}")
    await daemon.start()

    carrying: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            carrying.add(task)
        await asyncio.sleep(seconds)
        from_daemon, to_daemon = await asyncio.open_unix_connection(directory / "daemon.sock")
        await asyncio.gather(_pump(reader, to_daemon), _pump(from_daemon, writer))

    async with await asyncio.start_unix_server(carry, directory / "slow.sock"):
        yield str(directory / "slow.sock")
    await daemon.stop(None)
    if carrying:
        await asyncio.wait(carrying, timeout=30)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):  # either end may go first
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()


async def _version(rpc: Rpc) -> str:
    answer = await rpc.native("version.v1.Version/Version", Empty(), version_pb2.VersionResponse, "ask the version")
    return answer.version


async def test_a_daemon_that_is_slow_to_answer_a_connection_is_waited_for(tmp_path: Path) -> None:
    async with _slow_daemon(tmp_path, 1.0) as socket:
        rpc = Rpc(socket)
        try:
            assert await _version(rpc) == "v2.2.7"
        finally:
            await rpc.close()


async def test_a_daemon_that_is_not_there_is_away_at_once(tmp_path: Path) -> None:
    rpc, began = Rpc(str(tmp_path / "none.sock")), time.monotonic()
    try:
        with pytest.raises(TransientFault, match="cannot ask the version: containerd does not answer"):
            await _version(rpc)
    finally:
        await rpc.close()
    assert time.monotonic() - began < CALL_SECONDS / 2  # it was not waited for
