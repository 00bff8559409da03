"""Calls to containerd over its unix socket, with errors as values of this room; `client` and `transfer` are built on it.

Native calls are made in namespace k8s.io. Every call has a deadline except streams that follow something: a containerd that
hangs is noticed by the proof cycle, which has one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

import grpc.aio
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from agent.core.timers import coarse_timers
from agent.images.faults import failure

M = TypeVar("M", bound=Message)

NAMESPACE = "k8s.io"
CALL_SECONDS = 10.0
_MESSAGE_BYTES = 16 << 20  # containerd's own limit
_OPTIONS = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 5000),  # also how long a connection attempt may take on a busy node
    ("grpc.max_reconnect_backoff_ms", 2000),
)
_METADATA = (("containerd-namespace", NAMESPACE),)


class Rpc:
    """One connection. Made and used inside one event loop; `close` it at the end.

    Every method's `what` completes the sentence "cannot …" of the TransientFault or PermanentFault that it raises.
    """

    def __init__(self, socket: str) -> None:
        with coarse_timers():
            self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)

    async def close(self) -> None:
        """End all calls and the connection."""
        await self._channel.close(None)

    async def native(
        self, path: str, request: Message, kind: type[M], what: str, *, lease: str = "", seconds: float = CALL_SECONDS
    ) -> M:
        """Call a method of containerd's own API; what it makes is held by `lease`."""
        return await self.call(f"/containerd.services.{path}", request, kind, what, lease=lease, seconds=seconds)

    async def call(
        self, path: str, request: Message, kind: type[M], what: str, *, lease: str = "", seconds: float = CALL_SECONDS
    ) -> M:
        """Call a method; cancelling it ends the work at containerd."""
        method = self._channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=kind.FromString
        )
        metadata = (*_METADATA, ("containerd-lease", lease)) if lease else _METADATA
        try:
            answer: M = await method(request, timeout=seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise failure(what, error.code().name, error.details() or "") from error
        return answer

    async def pages(self, path: str, request: Message, kind: type[M], what: str) -> AsyncIterator[M]:
        """Yield the parts of an answer that comes in several."""
        async for message in self.follow(path, request, kind, what, seconds=CALL_SECONDS):
            yield message

    async def follow(
        self, path: str, request: Message, kind: type[M], what: str, *, seconds: float | None = None
    ) -> AsyncIterator[M]:
        """Yield what a stream brings until it ends."""
        call = self.open(path, request, kind, seconds)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise failure(what, error.code().name, error.details() or "") from error
        finally:
            call.cancel()

    def open(
        self, path: str, request: Message, kind: type[M], seconds: float | None
    ) -> grpc.aio.UnaryStreamCall[Message, M]:
        """Send a request whose answers come as a stream."""
        method = self._channel.unary_stream(
            f"/containerd.services.{path}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=kind.FromString,
        )
        return method(request, timeout=seconds, metadata=_METADATA)

    def both_ways(self) -> grpc.aio.StreamStreamCall[Any, Any]:
        """Open a stream of the streaming service."""
        method = self._channel.stream_stream(
            "/containerd.services.streaming.v1.Streaming/Stream",
            request_serializer=Any.SerializeToString,
            response_deserializer=Any.FromString,
        )
        return method(metadata=_METADATA)


def boxed(message: Message) -> Any:
    """Return `Any` of a message under its bare name: containerd knows no `type.googleapis.com/`."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
