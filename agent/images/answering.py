"""Answers containerd when a registry asks it who it is: the auth stream of the transfer service.

A question without an answer would hang the pull for ever, so the answer to everything is the credentials, or "none".
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

import grpc.aio
from google.protobuf.any_pb2 import Any

from agent.images.challenge import Credentials
from agent.images.faults import failure
from agent.images.rpc import CALL_SECONDS, Rpc, boxed
from agent.pb.containerd import streaming_pb2, transfer_types_pb2


@contextlib.asynccontextmanager
async def answering(rpc: Rpc, credentials: Credentials | None) -> AsyncIterator[str]:
    """Answer while the context lasts; yields the stream's name, "" without credentials: then nobody is asked.

    Raises:
        TransientFault: containerd is away.
    """
    if credentials is None:
        yield ""
        return
    name, call = f"prewarm-auth-{secrets.token_hex(8)}", rpc.both_ways()
    try:
        async with asyncio.timeout(CALL_SECONDS):
            await call.write(boxed(streaming_pb2.StreamInit(id=name)))
            await call.read()  # the acknowledgement: until then nobody may name the stream
    except (grpc.aio.AioRpcError, TimeoutError) as error:
        call.cancel()
        raise failure("open a stream", "UNAVAILABLE", str(error) or "no answer in time") from error
    answers = asyncio.create_task(_answer(call, credentials), name="answer a registry")
    try:
        yield name
    finally:
        answers.cancel()
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answers


async def _answer(call: grpc.aio.StreamStreamCall[Any, Any], credentials: Credentials) -> None:
    answer = transfer_types_pb2.AuthResponse(
        authType=transfer_types_pb2.CREDENTIALS, username=credentials.username, secret=credentials.password
    )
    with contextlib.suppress(grpc.aio.AioRpcError):  # the pull itself fails then, and says why
        while await call.read() is not grpc.aio.EOF:
            await call.write(boxed(answer))
