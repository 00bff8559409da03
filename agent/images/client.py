"""containerd over its unix socket: the CRI and the native API, as values; the only importer of grpc in this room.

Native calls are made in namespace k8s.io. Every call has a deadline except the event stream: a containerd that hangs is
noticed by the proof cycle, which has one. grpcio's own threads cost some 0.08 % of a core while a channel is open (measured,
1.85, the same with 2 and 64 cores).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import grpc.aio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from agent.core.names import LABEL_ENDPOINT_NAME
from agent.core.refs import EndpointKey
from agent.core.sandbox import Sandbox
from agent.images.faults import Fault, PermanentFault, failure
from agent.images.runtime import Change, ImageEvent
from agent.pb.containerd import content_pb2, events_pb2, images_pb2, snapshots_pb2, types_pb2, version_pb2
from agent.pb.cri import runtime_pb2

M = TypeVar("M", bound=Message)

NAMESPACE = "k8s.io"
_CALL_SECONDS = 10.0
_PULL_SECONDS = 2 * 3600.0  # containerd ends a pull without progress by itself (1.7 and later: after 5 min)
_MESSAGE_BYTES = 16 << 20  # containerd's own limit
_OPTIONS = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
_METADATA = (("containerd-namespace", NAMESPACE),)
_EVENTS = f'namespace=={NAMESPACE},topic~="/images/"'
_HANDLER = (
    "io.containerd.cri.runtime-handler"  # containerd before 2.2.2 reads the handler from the sandbox's annotations
)


class ContainerdClient:
    """One containerd. Made and used inside one event loop; `close` it at the end."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)

    async def close(self) -> None:
        """End all calls and the connection."""
        await self._channel.close(None)

    async def version(self) -> str:
        """Return the daemon's version as it writes it (`1.6.20~ds1`, `v2.2.7`)."""
        answer = await self._native(
            "version.v1.Version/Version", Empty(), version_pb2.VersionResponse, "ask containerd's version"
        )
        return answer.version

    async def records(self, names: Sequence[str]) -> Mapping[str, str]:
        """See `ImageStore.records`."""
        request = images_pb2.ListImagesRequest(filters=[f'name=="{name}"' for name in names])
        answer = await self._native("images.v1.Images/List", request, images_pb2.ListImagesResponse, "list images")
        return {image.name: image.target.digest for image in answer.images}

    async def read(self, digest: str, limit_bytes: int) -> bytes | None:
        """See `ImageStore.read`."""
        size_bytes = await self._size(digest)
        if size_bytes is None:
            return None
        if size_bytes > limit_bytes:
            raise PermanentFault(
                f"blob {digest} has {size_bytes} bytes, over the limit of {limit_bytes}", Fault.REFUSED
            )
        request = content_pb2.ReadContentRequest(digest=digest)
        path, what = "content.v1.Content/Read", f"read blob {digest}"
        chunks = self._stream(path, request, content_pb2.ReadContentResponse, what)
        return b"".join([chunk.data async for chunk in chunks])

    async def committed(self, snapshotter: str) -> frozenset[str]:
        """See `ImageStore.committed`."""
        request = snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter, filters=["kind==committed"])
        path, what = "snapshots.v1.Snapshots/List", f"list the snapshots of {snapshotter}"
        pages = self._stream(path, request, snapshots_pb2.ListSnapshotsResponse, what)
        return frozenset([i.name async for p in pages for i in p.info if i.kind == snapshots_pb2.COMMITTED])

    async def pull(self, name: str, handler: str) -> None:
        """See `Puller.pull`; through the CRI, as kubelet would."""
        request = runtime_pb2.PullImageRequest(image=runtime_pb2.ImageSpec(image=name, runtime_handler=handler))
        if handler:  # read only where a sandbox is named
            request.sandbox_config.metadata.name = "prewarm"
            request.sandbox_config.annotations[_HANDLER] = handler
        path = "/runtime.v1.ImageService/PullImage"
        await self._call(path, request, runtime_pb2.PullImageResponse, f"pull {name}", seconds=_PULL_SECONDS)

    async def ingests(self) -> Mapping[str, int]:
        """See `Puller.ingests`."""
        request = content_pb2.ListStatusesRequest()
        path = "content.v1.Content/ListStatuses"
        answer = await self._native(path, request, content_pb2.ListStatusesResponse, "list running downloads")
        return {status.ref[status.ref.find("sha256:") :]: status.offset for status in answer.statuses}

    async def has(self, digest: str) -> bool:
        """See `Puller.has`."""
        return await self._size(digest) is not None

    async def events(self) -> AsyncIterator[ImageEvent]:
        """See `ImageEvents.events`."""
        what = "follow image events"
        request = events_pb2.SubscribeRequest(filters=[_EVENTS])
        call = self._open("events.v1.Events/Subscribe", request, types_pb2.Envelope, None)
        try:
            await self.version()  # goes out after the subscription, on the same connection
            yield ImageEvent(change=Change.STARTED)
            async for envelope in call:
                yield _event(envelope)
        except grpc.aio.AioRpcError as error:
            raise failure(what, error.code().name, error.details() or "") from error
        finally:
            call.cancel()
        raise failure(what, "UNAVAILABLE", "the stream has ended")

    async def present(self, name: str) -> bool:
        """Say whether the CRI, and so kubelet, sees the image."""
        request = runtime_pb2.ImageStatusRequest(image=runtime_pb2.ImageSpec(image=name))
        path = "/runtime.v1.ImageService/ImageStatus"
        answer = await self._call(path, request, runtime_pb2.ImageStatusResponse, f"look up {name}")
        return answer.HasField("image")

    async def remove(self, name: str) -> None:
        """Remove the image with all its names, as kubelet's garbage collection does; absent is fine."""
        request = runtime_pb2.RemoveImageRequest(image=runtime_pb2.ImageSpec(image=name))
        path = "/runtime.v1.ImageService/RemoveImage"
        await self._call(path, request, runtime_pb2.RemoveImageResponse, f"remove {name}")

    async def sandboxes(self) -> tuple[Sandbox, ...]:
        """Return all pod sandboxes of this node, stopped ones too."""
        request = runtime_pb2.ListPodSandboxRequest()
        path = "/runtime.v1.RuntimeService/ListPodSandbox"
        answer = await self._call(path, request, runtime_pb2.ListPodSandboxResponse, "list pod sandboxes")
        return tuple(_sandbox(item) for item in answer.items)

    async def _size(self, digest: str) -> int | None:
        request, path = content_pb2.InfoRequest(digest=digest), "content.v1.Content/Info"
        try:
            answer = await self._native(path, request, content_pb2.InfoResponse, f"look up blob {digest}")
        except PermanentFault as error:
            if error.fault is Fault.NOT_FOUND:
                return None
            raise
        return answer.info.size

    async def _native(self, path: str, request: Message, kind: type[M], what: str) -> M:
        return await self._call(f"/containerd.services.{path}", request, kind, what)

    async def _call(
        self, path: str, request: Message, kind: type[M], what: str, *, seconds: float = _CALL_SECONDS
    ) -> M:
        method = self._channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=kind.FromString
        )
        try:
            answer: M = await method(request, timeout=seconds, metadata=_METADATA)
        except grpc.aio.AioRpcError as error:
            raise failure(what, error.code().name, error.details() or "") from error
        return answer

    def _open(
        self, path: str, request: Message, kind: type[M], seconds: float | None
    ) -> grpc.aio.UnaryStreamCall[Message, M]:
        method = self._channel.unary_stream(
            f"/containerd.services.{path}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=kind.FromString,
        )
        return method(request, timeout=seconds, metadata=_METADATA)

    async def _stream(self, path: str, request: Message, kind: type[M], what: str) -> AsyncIterator[M]:
        call = self._open(path, request, kind, _CALL_SECONDS)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise failure(what, error.code().name, error.details() or "") from error
        finally:
            call.cancel()


def _event(envelope: types_pb2.Envelope) -> ImageEvent:
    """Read one event; all three bodies carry the record's name in field 1."""
    name = images_pb2.ImageUpdate.FromString(envelope.event.value).name
    deleted = envelope.event.type_url.endswith(".ImageDelete")
    return ImageEvent(change=Change.DELETED if deleted else Change.CHANGED, name=name)


def _sandbox(item: runtime_pb2.PodSandbox) -> Sandbox:
    endpoint = item.labels.get(LABEL_ENDPOINT_NAME, "")
    return Sandbox(
        namespace=item.metadata.namespace,
        name=item.metadata.name,
        uid=item.metadata.uid,
        created=datetime.fromtimestamp(item.created_at / 1e9, UTC),
        ready=item.state == runtime_pb2.SANDBOX_READY,
        endpoint=EndpointKey(namespace=item.metadata.namespace, name=endpoint) if endpoint else None,
    )
