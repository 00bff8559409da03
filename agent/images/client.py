"""containerd as this room sees it: the CRI and the native API, as values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from agent.core.errors import Permanent
from agent.core.names import LABEL_ENDPOINT_NAME
from agent.core.refs import EndpointKey, parse_image_ref
from agent.core.sandbox import Sandbox
from agent.images.aside import aside
from agent.images.challenge import Credentials
from agent.images.daemon import Daemon, Way, elsewhere, pull_way
from agent.images.disk import Disk, read_disk
from agent.images.faults import Fault, PermanentFault, TransientFault, failure
from agent.images.hosts import RegistryHost
from agent.images.keyring import Keyring
from agent.images.layout import LIMIT_BYTES, parse_document, pick_manifest, this_architecture
from agent.images.lazy import Served, served_layers
from agent.images.pinning import PINNED, PINNED_VALUE, UNTIL, pinned_until
from agent.images.preflight import inspect_daemon
from agent.images.prove import record_name
from agent.images.records import Record, Records
from agent.images.registry import RegistryResolver
from agent.images.rpc import NAMESPACE, Rpc
from agent.images.runtime import Change, ImageEvent, Pin
from agent.images.sources import Sources
from agent.images.transfer import PULL_SECONDS, Transfers
from agent.pb.containerd import content_pb2, events_pb2, images_pb2, snapshots_pb2, types_pb2, version_pb2
from agent.pb.cri import runtime_pb2

_REMOTE = "containerd.io/snapshot/remote"
_PLAIN_HTTP = "server gave HTTP response to HTTPS client"  # which the CRI allows registries on this machine
_SEEN_WITHIN_SECONDS = 10
_TOUCH_TURN = 3
_PULLED = "prewarm.dev/pulled"
_REMOVED = "/snapshot/remove"
_EVENTS = (f'namespace=={NAMESPACE},topic~="/images/"', f'namespace=={NAMESPACE},topic=="{_REMOVED}"')
_CHAIN_ID = "sha256:"  # how the keys of layers begin; those of containers are of another kind
_HANDLER = (
    "io.containerd.cri.runtime-handler"  # containerd before 2.2.2 reads the handler from the sandbox's annotations
)


class ContainerdClient:
    """One containerd. Made and used inside one event loop; `close` it at the end."""

    def __init__(self, socket: str, snapshotter: str = "overlayfs", keyring: Keyring | None = None) -> None:
        self.socket = socket
        self._keyring = keyring
        self._snapshotter = snapshotter
        self._rpc = Rpc(socket)
        self._transfers = Transfers(self._rpc)
        self._records = Records(self._rpc)
        self._daemon: Daemon | None = None
        self._looking: asyncio.Future[Mapping[str, Served]] | None = None
        self._sources = Sources()
        self._came: dict[str, Mapping[str, int]] = {}
        self._refusals: dict[str, str] = {}  # registry hosts that the transfer service will not do for, and why

    async def close(self) -> None:
        """End all calls and the connection."""
        await self._rpc.close()

    async def version(self) -> str:
        """Return the daemon's version as it writes it (`1.6.20~ds1`, `v2.2.7`)."""
        answer = await self._rpc.native(
            "version.v1.Version/Version", Empty(), version_pb2.VersionResponse, "ask containerd's version"
        )
        return answer.version

    async def records(self, names: Sequence[str]) -> Mapping[str, str]:
        """See `ImageStore.records`."""
        request = images_pb2.ListImagesRequest(filters=[f'name=="{name}"' for name in names])
        answer = await self._rpc.native("images.v1.Images/List", request, images_pb2.ListImagesResponse, "list images")
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
        chunks = self._rpc.pages(path, request, content_pb2.ReadContentResponse, what)
        return b"".join([chunk.data async for chunk in chunks])

    async def committed(self, snapshotter: str) -> frozenset[str]:
        """See `ImageStore.committed`."""
        request = snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter, filters=["kind==committed"])
        path, what = "snapshots.v1.Snapshots/List", f"list the snapshots of {snapshotter}"
        pages = self._rpc.pages(path, request, snapshots_pb2.ListSnapshotsResponse, what)
        return frozenset([i.name async for p in pages for i in p.info if i.kind == snapshots_pb2.COMMITTED])

    async def remote(self, snapshotter: str) -> frozenset[str]:
        """See `RemoteLayers.remote`."""
        filters = [f'kind==committed,labels."{_REMOTE}"=="remote snapshot"']
        request = snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter, filters=filters)
        path, what = "snapshots.v1.Snapshots/List", f"list the snapshots of {snapshotter}"
        pages = self._rpc.pages(path, request, snapshots_pb2.ListSnapshotsResponse, what)
        return frozenset([i.name async for p in pages for i in p.info if i.kind == snapshots_pb2.COMMITTED])

    async def served(self) -> Mapping[str, Served] | None:
        """See `RemoteLayers.served`; a daemon that hangs costs one thread, until it answers."""
        daemon = await self.daemon()
        if daemon.config is None:
            return None
        if self._looking is None or self._looking.done():
            self._looking = aside(lambda: served_layers(daemon.root.parent), "lazy layers")
        return await asyncio.shield(self._looking)

    async def daemon(self) -> Daemon:
        """Return what this containerd is; asked anew after each of its starts.

        Raises:
            Transient: containerd is away.
        """
        if self._daemon is None:
            self._daemon = await inspect_daemon(self._rpc, self.socket)
            self._refusals.clear()
        return self._daemon

    async def elsewhere(self) -> Mapping[str, str]:
        """See `Puller.elsewhere`."""
        config = (await self.daemon()).config
        return elsewhere(config, self._snapshotter) if config else {}

    async def way(self, name: str, handler: str) -> Way:
        """See `Puller.way`."""
        daemon, host = await self.daemon(), parse_image_ref(name).host
        roots = await asyncio.to_thread(daemon.roots_for, host)
        way = pull_way(daemon, snapshotter=self._snapshotter, handler=handler, roots=roots)
        if way.resumable and host in self._refusals:
            return Way(resumable=False, reason=f"not resumable, by the CRI: {self._refusals[host]}")
        return way

    async def pull(self, name: str, handler: str) -> None:
        """See `Puller.pull`."""
        way = await self.way(name, handler)
        daemon, host = await self.daemon(), parse_image_ref(name).host
        hosts = await asyncio.to_thread(_hosts, daemon, host)
        async with self._sources.counting(daemon.root.parent, hosts) as found:
            self._came[name] = found
            await self._pull_as_any(way, name, handler)

    def sources(self, name: str) -> Mapping[str, int]:
        """See `Puller.sources`."""
        return self._came.pop(name, {})

    def received(self) -> Mapping[str, int]:
        """Return what pulls have received so far, by the kind of its source."""
        return self._sources.received()

    async def _pull_as_any(self, way: Way, name: str, handler: str) -> None:
        """Try all credentials there are, as the kubelet does: one may be of somebody else, or old."""
        keys = await self._keyring.credentials(parse_image_ref(name)) if self._keyring else ()
        for credentials in keys[:-1]:
            try:
                return await self._pull(way, name, handler, credentials)
            except PermanentFault as error:
                if error.fault is not Fault.AUTH:
                    raise
        return await self._pull(way, name, handler, keys[-1] if keys else None)

    async def _pull(self, way: Way, name: str, handler: str, credentials: Credentials | None) -> None:
        if not way.resumable:
            await self._pull_as_kubelet(name, handler, credentials)
            return
        record = record_name(parse_image_ref(name))
        try:
            await self._transfers.pull(record, snapshotter=self._snapshotter, hosts=way.hosts, credentials=credentials)
        except (TransientFault, PermanentFault) as error:
            if error.fault is not Fault.REFUSED and _PLAIN_HTTP not in str(error):
                raise
            self._refusals[parse_image_ref(name).host] = str(error)
            await self._pull_as_kubelet(name, handler, credentials)
        else:
            await self._check_platform(record)
            await self._seen_by_kubelet(name)

    async def retry_after(self, name: str) -> float:
        """See `Puller.retry_after`: containerd keeps it to itself, so the registry is asked once more."""
        ref, daemon = parse_image_ref(name), await self.daemon()
        directory = await asyncio.to_thread(daemon.hosts_directory, ref.host)
        resolver = RegistryResolver(directory, root=daemon.root)
        try:
            await resolver.resolve(ref)
        except TransientFault as error:
            return error.retry_after_seconds
        except PermanentFault:
            return 0.0
        finally:
            await resolver.close()
        return 0.0

    async def release(self, name: str) -> None:
        """See `Puller.release`."""
        if (await self.daemon()).transfer:
            await self._transfers.release(record_name(parse_image_ref(name)))

    async def pins(self) -> Mapping[str, Pin]:
        """See `Pinner.pins`."""
        found = await self._records.find([f'labels."{UNTIL}"'])
        return {r.name: _pin(r) for r in found if r.name.startswith("sha256:")}

    async def pin(self, image_id: str, until: datetime) -> bool:
        """See `Pinner.pin`."""
        record = await self._records.get(image_id)
        if record is None or (record.labels.get(PINNED) == PINNED_VALUE and UNTIL not in record.labels):
            return False
        await self._records.label(record, UNTIL, f"{until.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")
        await self._records.label(record, PINNED, PINNED_VALUE)
        return True

    async def unpin(self, image_id: str) -> None:
        """See `Pinner.unpin`; the word on whose it was goes last."""
        record = await self._records.get(image_id)
        if record and UNTIL in record.labels:
            await self._records.label(record, PINNED, "")
            await self._records.label(record, UNTIL, "")

    async def keep(self, image_id: str, *, pinned: bool) -> None:
        """Pin an image at a person's word, or take any pin back: the agent, which marks its own, leaves a person's alone.

        Raises:
            PermanentFault: there is no such image.
        """
        record = await self._records.get(image_id) if image_id else None
        if record is None:
            raise PermanentFault("there is no such image here: warm it first", Fault.NOT_FOUND)
        await self._records.label(record, PINNED, PINNED_VALUE if pinned else "")
        if UNTIL in record.labels:  # the agent's; what it still needs it pins again
            await self._records.label(record, UNTIL, "")

    async def shielded(self, name: str) -> bool:
        """See `Pinner.shielded`."""
        return (await self._status(name)).image.pinned

    async def disk(self) -> Disk | None:
        """See `Pinner.disk`."""
        daemon = await self.daemon()
        directory = daemon.directories.get(self._snapshotter)
        return await asyncio.to_thread(read_disk, daemon.root, directory) if directory else None

    async def _pull_as_kubelet(self, name: str, handler: str, credentials: Credentials | None) -> None:
        request = runtime_pb2.PullImageRequest(image=runtime_pb2.ImageSpec(image=name, runtime_handler=handler))
        if handler:  # read only where a sandbox is named
            request.sandbox_config.metadata.name = "prewarm"
            request.sandbox_config.annotations[_HANDLER] = handler
        if credentials:
            request.auth.username, request.auth.password = credentials.username, credentials.password
        path = "/runtime.v1.ImageService/PullImage"
        await self._rpc.call(path, request, runtime_pb2.PullImageResponse, f"pull {name}", seconds=PULL_SECONDS)

    async def _check_platform(self, record: str) -> None:
        """Refuse an image of other platforms: the transfer service of containerd 2.2 records it and unpacks nothing.

        Raises:
            PermanentFault: it has nothing for this machine.
        """
        digest = (await self.records([record])).get(record, "")
        content = await self.read(digest, LIMIT_BYTES) if digest else None
        try:
            if content is not None:
                pick_manifest(parse_document(content, digest), digest, this_architecture())
        except Permanent as error:
            raise PermanentFault(f"cannot pull {record}: {error}", Fault.PLATFORM) from error

    async def _seen_by_kubelet(self, name: str) -> None:
        """Return when the CRI knows the image too: it learns of it by an event, and tells nobody when it has.

        The transfer service of containerd 1.7 sends no event; that of a changed label makes the CRI look as well.
        """
        for turn in range(_SEEN_WITHIN_SECONDS * 20):
            if await self.present(name):
                return
            if turn == _TOUCH_TURN and (record := await self._records.get(record_name(parse_image_ref(name)))):
                await self._records.label(record, _PULLED, "true")
            await asyncio.sleep(0.05)
        raise TransientFault(f"pulled {name}, but the CRI did not see it within {_SEEN_WITHIN_SECONDS} s", Fault.OTHER)

    async def ingests(self) -> Mapping[str, int]:
        """See `Puller.ingests`."""
        request = content_pb2.ListStatusesRequest()
        path = "content.v1.Content/ListStatuses"
        answer = await self._rpc.native(path, request, content_pb2.ListStatusesResponse, "list running downloads")
        return {status.ref[status.ref.find("sha256:") :]: status.offset for status in answer.statuses}

    async def has(self, digest: str) -> bool:
        """See `Puller.has`."""
        return await self._size(digest) is not None

    async def events(self) -> AsyncIterator[ImageEvent]:
        """See `ImageEvents.events`."""
        what = "follow image events"
        request = events_pb2.SubscribeRequest(filters=_EVENTS)
        call = self._rpc.open("events.v1.Events/Subscribe", request, types_pb2.Envelope, None)
        try:
            self._daemon = None  # it may be another one than before
            await self.version()  # goes out after the subscription, on the same connection
            yield ImageEvent(change=Change.STARTED)
            async for envelope in call:
                if event := _event(envelope):
                    yield event
        except grpc.aio.AioRpcError as error:
            raise failure(what, error.code().name, error.details() or "") from error
        finally:
            call.cancel()
        raise failure(what, "UNAVAILABLE", "the stream has ended")

    async def present(self, name: str) -> bool:
        """Say whether the CRI, and so kubelet, sees the image."""
        return (await self._status(name)).HasField("image")

    async def _status(self, name: str) -> runtime_pb2.ImageStatusResponse:
        request = runtime_pb2.ImageStatusRequest(image=runtime_pb2.ImageSpec(image=name))
        path = "/runtime.v1.ImageService/ImageStatus"
        return await self._rpc.call(path, request, runtime_pb2.ImageStatusResponse, f"look up {name}")

    async def remove(self, name: str) -> None:
        """Remove the image with all its names, as kubelet's garbage collection does; absent is fine."""
        request = runtime_pb2.RemoveImageRequest(image=runtime_pb2.ImageSpec(image=name))
        path = "/runtime.v1.ImageService/RemoveImage"
        await self._rpc.call(path, request, runtime_pb2.RemoveImageResponse, f"remove {name}")

    async def sandboxes(self) -> tuple[Sandbox, ...]:
        """Return all pod sandboxes of this node, stopped ones too."""
        request = runtime_pb2.ListPodSandboxRequest()
        path = "/runtime.v1.RuntimeService/ListPodSandbox"
        answer = await self._rpc.call(path, request, runtime_pb2.ListPodSandboxResponse, "list pod sandboxes")
        return tuple(_sandbox(item) for item in answer.items)

    async def _size(self, digest: str) -> int | None:
        request, path = content_pb2.InfoRequest(digest=digest), "content.v1.Content/Info"
        try:
            answer = await self._rpc.native(path, request, content_pb2.InfoResponse, f"look up blob {digest}")
        except PermanentFault as error:
            if error.fault is Fault.NOT_FOUND:
                return None
            raise
        return answer.info.size


def _hosts(daemon: Daemon, host: str) -> tuple[RegistryHost, ...]:
    """Return where images of a registry may come from; nothing where that cannot be told."""
    try:
        return daemon.hosts(host)
    except Permanent:  # containerd itself will say what is wrong with it
        return ()


def _pin(record: Record) -> Pin:
    return Pin(until=pinned_until(record.labels[UNTIL]), whole=record.labels.get(PINNED) == PINNED_VALUE)


def _event(envelope: types_pb2.Envelope) -> ImageEvent | None:
    """Read one event, None if it is of no image; all four bodies carry the record's name or snapshot's key in field 1."""
    name = images_pb2.ImageUpdate.FromString(envelope.event.value).name
    if envelope.topic == _REMOVED:
        return ImageEvent(change=Change.LAYER_REMOVED, name=name) if name.startswith(_CHAIN_ID) else None
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
