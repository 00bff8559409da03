"""The agent's gRPC sockets: `agent.sock` for pods (anyone may connect, nothing may be changed), `admin.sock` for root.

Beside them lies `ask.sock` (ask_socket.py).

Requests from pods are untrusted: sizes and numbers are bounded, values checked, and who asks must be a pod whose sandbox the
container runtime knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from agent.core.clock import Clock
from agent.core.errors import Invalid, PrewarmError, Transient, cut
from agent.core.latest import Signal
from agent.core.refs import Digest, EndpointKey, parse_digest
from agent.core.timers import coarse_timers
from agent.node.ask_socket import serving_questions
from agent.node.grants import Grants, LocalCells, RefKeeper, Sandboxes, UnknownPod
from agent.node.local_messages import progress_message, status_message
from agent.node.readiness import Readiness
from agent.node.waiting import SERVICE, Full, WaitingLine, WaitOrder, parse_order
from agent.pb.prewarm.v1 import local_pb2

_REQUEST_BYTES = 256 * 1024  # 50 models with URIs of 2 KiB, and room
_MAX_STREAMS = 1024
_PATIENCE_SECONDS = 3.0  # a pod may come a moment before the assignment that names its new version
_PROGRESS_SECONDS = 1.0
_VIEW_SECONDS = 0.25  # a view follows its commit within moments; the disk tells no one
_SOCKET_PATH_BYTES = 107  # sun_path of unix(7)

Send = Callable[[local_pb2.WaitProgress], Awaitable[None]]

log = structlog.get_logger()


class Remover(Protocol):
    """Removes versions at a person's word."""

    async def remove(self, digest: Digest) -> None:
        """Remove a version; returns when it is gone.

        Raises:
            Permanent: it stays, for the reason told.
        """
        ...


class Refused(Exception):
    """Ends a call with a gRPC status."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = cut(reason)


class LocalApi:
    """Serves both sockets until cancelled."""

    name = "local-api"

    def __init__(  # noqa: PLR0913 (a composition: each is used by one call)
        self,
        *,
        node: str,
        run_dir: Path,
        cells: LocalCells,
        line: WaitingLine,
        refs: RefKeeper,
        remover: Remover,
        sandboxes: Sandboxes | None,
        view_path: Callable[[EndpointKey, Digest], Path],
        clock: Clock,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._node = node
        self._run_dir = run_dir
        self._cells = cells
        self._line = line
        self._remover = remover
        self._grants = Grants(cells=cells, refs=refs, sandboxes=sandboxes, view_path=view_path)
        self._clock = clock
        self._patience_seconds = patience_seconds

    async def run(self) -> None:
        """Serve; on cancellation open calls end at once, and `prewarm wait` reconnects to the next agent.

        Raises:
            Invalid: the sockets cannot be made.
        """
        servers = self._bind()
        try:
            for server, name, mode in zip(servers, ("agent.sock", "admin.sock"), (0o666, 0o600), strict=True):
                await server.start()
                (self._run_dir / name).chmod(mode)
            async with serving_questions(self._run_dir / "ask.sock", self._grants):
                await asyncio.Event().wait()
        finally:
            for server in servers:
                await server.stop(grace=None)

    def _bind(self) -> list[Any]:
        if len(bytes(self._run_dir / "agent.sock")) > _SOCKET_PATH_BYTES:
            raise Invalid(f"{self._run_dir} is too long a path for a socket (setting run_dir)")
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            with coarse_timers():
                return [self._server("agent.sock", admin=False), self._server("admin.sock", admin=True)]
        except (OSError, RuntimeError) as error:  # grpc says RuntimeError where it cannot bind
            raise Invalid(f"cannot make sockets in {self._run_dir}: {cut(error)} (setting run_dir)") from error

    def _server(self, name: str, *, admin: bool) -> Any:
        path = self._run_dir / name
        path.unlink(missing_ok=True)  # left by an agent that was killed
        server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", _REQUEST_BYTES),
                ("grpc.max_concurrent_streams", _MAX_STREAMS),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),  # waiting pods ask whether we live
            ),
            maximum_concurrent_rpcs=_MAX_STREAMS,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers(admin=admin)),))
        server.add_insecure_port(f"unix:{path}")
        return server

    def _handlers(self, *, admin: bool) -> dict[str, Any]:
        async def status(_request: local_pb2.StatusRequest, _context: Any) -> local_pb2.StatusResponse:
            return self._status(admin=admin)

        return ({"Remove": _remove_handler(self._remover)} if admin else {}) | {
            "Status": grpc.unary_unary_rpc_method_handler(
                status,
                request_deserializer=local_pb2.StatusRequest.FromString,
                response_serializer=local_pb2.StatusResponse.SerializeToString,
            ),
            "Wait": grpc.unary_stream_rpc_method_handler(
                self._wait,
                request_deserializer=_read,
                response_serializer=local_pb2.WaitProgress.SerializeToString,
            ),
        }

    def _status(self, *, admin: bool) -> local_pb2.StatusResponse:
        cells = self._cells
        return status_message(
            self._node,
            cells.assignment.get(),
            cells.inventory.get(),
            cells.plan.get(),
            cells.readiness.get() or Readiness(),
            self._clock.now(),
            whole=admin,
        )

    async def _wait(self, request: local_pb2.WaitRequest | None, context: Any) -> None:
        try:
            order = _order(request)
            await context.write(local_pb2.WaitProgress(message="the agent of this node is asked"))
            await self._grants.check_pod(order)
            with self._line.standing(order):
                async with asyncio.timeout(order.timeout_seconds or None):
                    await self._follow(order, context.write)
        except Refused as refused:
            await context.abort(refused.code, refused.reason)
        except UnknownPod as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, cut(error))
        except Invalid as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, cut(error))
        except Full as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, cut(error))
        except Transient as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, cut(error))
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the models are not here within the pod's timeout")

    async def _follow(self, order: WaitOrder, send: Send) -> None:
        """Send progress, at most once a second, until every version is committed, seen in its view and referred to."""
        signal = Signal()
        cells = (self._cells.assignment, self._cells.inventory, self._cells.plan)
        for cell in cells:
            cell.attach(signal)
        try:
            await self._until_known(order, signal)
            sent: local_pb2.WaitProgress | None = None
            next_at = self._clock.monotonic()
            while True:
                now = self._grants.outlook(order)
                if now.refusal:
                    raise Refused(grpc.StatusCode.NOT_FOUND, now.refusal)
                if await self._grants.granted(order, now):
                    return await send(progress_message(now, self._grants.paths(order, now), ready=True))
                progress = progress_message(now, self._grants.paths(order, now), ready=False)
                left = next_at - self._clock.monotonic()
                if progress != sent and left <= 0:
                    await send(progress)
                    sent, next_at = progress, self._clock.monotonic() + _PROGRESS_SECONDS
                pause = _VIEW_SECONDS if now.committed else max(left, 0.01) if progress != sent else None
                await signal.wait(pause)
        finally:
            for cell in cells:
                cell.detach(signal)

    async def _until_known(self, order: WaitOrder, signal: Signal) -> None:
        """Give an assignment that is on its way a moment; the refusal itself is left to the caller."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_seconds):
                while self._grants.outlook(order).refusal:
                    await signal.wait()


def _remove_handler(remover: Remover) -> Any:
    async def remove(request: local_pb2.RemoveRequest, context: Any) -> local_pb2.RemoveResponse:
        try:
            await remover.remove(parse_digest(request.digest))
        except PrewarmError as error:
            await context.abort(_code_of(error), cut(error))
        return local_pb2.RemoveResponse()

    return grpc.unary_unary_rpc_method_handler(
        remove,
        request_deserializer=local_pb2.RemoveRequest.FromString,
        response_serializer=local_pb2.RemoveResponse.SerializeToString,
    )


def _code_of(error: PrewarmError) -> grpc.StatusCode:
    match error:
        case Invalid():
            return grpc.StatusCode.INVALID_ARGUMENT
        case Transient():
            return grpc.StatusCode.UNAVAILABLE
        case _:
            return grpc.StatusCode.FAILED_PRECONDITION


def _read(raw: bytes) -> local_pb2.WaitRequest | None:
    """Parse a request; None for garbage, which grpc itself would answer with a traceback in our log."""
    try:
        return local_pb2.WaitRequest.FromString(raw)
    except DecodeError:
        return None


def _order(request: local_pb2.WaitRequest | None) -> WaitOrder:
    if request is None:
        raise Invalid("the request is no WaitRequest")
    return parse_order(
        namespace=request.namespace,
        endpoint=request.endpoint,
        pod_name=request.pod_name,
        pod_uid=request.pod_uid,
        models=tuple((m.name, m.uri) for m in request.models),
        timeout=request.timeout,
    )
