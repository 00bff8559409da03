"""The other end of `agent.sock`: what `prewarm wait` and `prewarm status` ask the agent of their node."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from agent.core.errors import Permanent, Transient, cut
from agent.core.refs import Digest
from agent.node.waiting import SERVICE, WaitOrder
from agent.pb.prewarm.v1 import local_pb2

_GONE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
)


class Away(Transient):
    """No agent answers on the socket, or it went away in the middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of a wait. `paths` (by model name) may be linked once `ready`."""

    ready: bool
    message: str
    done_bytes: int
    total_bytes: int
    paths: dict[str, Path]


class LocalClient:
    """One connection to a socket of the agent; an async context manager."""

    def __init__(self, socket: Path) -> None:
        self._channel: Any = grpc.aio.insecure_channel(
            f"unix:{socket}",
            options=(
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.min_reconnect_backoff_ms", 2000),  # also how long a connection attempt may take (default 20 s)
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.max_receive_message_length", 4 << 20),
                ("grpc.keepalive_time_ms", 10_000),  # an agent that is stopped or hangs closes nothing by itself
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.http2.max_pings_without_data", 0),
            ),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def status(self, *, timeout_seconds: float = 5.0) -> local_pb2.StatusResponse:
        """Ask for the node's status.

        Raises:
            Away: no agent answers.
            Permanent: it refuses.
        """
        call = self._channel.unary_unary(
            f"/{SERVICE}/Status",
            request_serializer=local_pb2.StatusRequest.SerializeToString,
            response_deserializer=local_pb2.StatusResponse.FromString,
        )
        try:
            answer: local_pb2.StatusResponse = await call(local_pb2.StatusRequest(), timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from error
        return answer

    async def remove(self, digest: Digest, *, timeout_seconds: float = 120.0) -> None:
        """Have a version removed; returns when it is gone, after some 10 s.

        Raises:
            Away: no agent answers.
            Permanent: it stays, for the reason told.
        """
        call = self._channel.unary_unary(
            f"/{SERVICE}/Remove",
            request_serializer=local_pb2.RemoveRequest.SerializeToString,
            response_deserializer=local_pb2.RemoveResponse.FromString,
        )
        try:
            await call(local_pb2.RemoveRequest(digest=digest), timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # an agent of another release, or a pod's socket
                raise Permanent("the agent on this socket removes nothing") from error
            raise _failure(error) from error

    async def wait(self, order: WaitOrder) -> AsyncGenerator[Progress, None]:
        """Yield progress; the last one is `ready`.

        Raises:
            Away: no agent answers, or it went away: connect again.
            TimeoutError: the order's timeout has passed.
            Permanent: the agent refuses the order, with its reason.
        """
        call = self._channel.unary_stream(
            f"/{SERVICE}/Wait",
            request_serializer=local_pb2.WaitRequest.SerializeToString,
            response_deserializer=local_pb2.WaitProgress.FromString,
        )
        stream = call(_request(order))
        try:
            async for message in stream:
                yield _progress(message)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError(error.details()) from error
            raise _failure(error) from error
        finally:
            stream.cancel()


def _failure(error: grpc.aio.AioRpcError) -> Exception:
    if error.code() in (*_GONE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Away(f"the agent does not answer: {cut(error.details())}")
    return Permanent(cut(error.details()))


def _request(order: WaitOrder) -> local_pb2.WaitRequest:
    return local_pb2.WaitRequest(
        namespace=order.endpoint.namespace,
        endpoint=order.endpoint.name,
        pod_name=order.pod_name,
        pod_uid=order.pod_uid,
        models=[local_pb2.ModelRef(name=m.name, uri=str(m.uri)) for m in order.models],
        timeout=order.timeout_seconds,
    )


def _progress(message: local_pb2.WaitProgress) -> Progress:
    return Progress(
        ready=message.state == local_pb2.WaitProgress.READY,
        message=cut(message.message),
        done_bytes=message.done_bytes,
        total_bytes=message.total_bytes,
        paths={m.name: Path(m.path) for m in message.models if m.path},
    )
