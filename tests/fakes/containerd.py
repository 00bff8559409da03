"""An in-memory containerd for the images room, held to the same contract as a real one (tests/contract)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from agent.core.refs import parse_image_ref
from agent.images.daemon import Way
from agent.images.disk import Disk
from agent.images.faults import Fault, PermanentFault, TransientFault
from agent.images.layout import chain_ids, this_architecture
from agent.images.lazy import Served
from agent.images.prove import record_name
from agent.images.runtime import Change, ImageEvent, Pin


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class FakeImage:
    """An image as a registry serves it: its blobs, what its tag points to, and its chain."""

    blobs: dict[str, bytes]
    target: str
    manifest: str
    config: str
    layers: tuple[str, ...]
    chain: tuple[str, ...]


def make_image(seed: str, layers: int = 2, *, index: bool = True, architecture: str = "") -> FakeImage:
    """Make an image whose layers are a few bytes each; the same arguments give the same digests."""
    blobs: dict[str, bytes] = {}

    def put(content: bytes) -> dict[str, object]:
        blobs[digest_of(content)] = content
        return {"digest": digest_of(content), "size": len(content)}

    def put_json(document: object) -> dict[str, object]:
        return put(json.dumps(document).encode())

    descriptors = [put(f"{seed} layer {n}".encode()) for n in range(layers)]
    diff_ids = [digest_of(f"{seed} diff {n}".encode()) for n in range(layers)]
    config = put_json({"rootfs": {"type": "layers", "diff_ids": diff_ids}})
    manifest = put_json({"schemaVersion": 2, "config": config, "layers": descriptors})
    target = manifest
    if index:
        on = {"os": "linux", "architecture": architecture or this_architecture()}
        other = {"digest": digest_of(b"other"), "size": 5, "platform": {"os": "linux", "architecture": "vax"}}
        target = put_json({"schemaVersion": 2, "manifests": [other, {**manifest, "platform": on}]})
    return FakeImage(
        blobs=blobs,
        target=str(target["digest"]),
        manifest=str(manifest["digest"]),
        config=str(config["digest"]),
        layers=tuple(str(d["digest"]) for d in descriptors),
        chain=chain_ids({"rootfs": {"diff_ids": diff_ids}}, "fake"),
    )


@dataclass
class FakeContainerd:
    """What a node holds, and what the registry behind it offers by record name."""

    registry: dict[str, FakeImage] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    snapshots: dict[str, set[str]] = field(default_factory=lambda: {"overlayfs": set()})
    partial: dict[str, int] = field(default_factory=dict)
    came: dict[str, dict[str, int]] = field(default_factory=dict)
    away: bool = False
    hangs: bool = False
    limits_rate: bool = False
    asks_to_wait_seconds: float = 0.0
    registry_away: bool = False
    unpacks: bool = True
    pulled: list[tuple[str, str]] = field(default_factory=list)
    pulling: set[str] = field(default_factory=set)
    pull_began: asyncio.Event = field(default_factory=asyncio.Event)
    way_of_pulls: Way = field(default_factory=lambda: Way(resumable=True, reason="resumable, by the twin"))
    remote_layers: set[str] = field(default_factory=set)
    served_layers: dict[str, Served] | None = field(default_factory=dict)
    pinned: dict[str, Pin] = field(default_factory=dict)
    pins_count: bool = True  # False as with containerd 1.6.20
    asked_shielded: int = 0
    space: Disk | None = field(default_factory=lambda: Disk(capacity_bytes=10**12, free_bytes=10**12))
    released: list[str] = field(default_factory=list)
    cycles: int = 0
    gate: asyncio.Event | None = None  # a pull waits for it
    _streams: list[asyncio.Queue[ImageEvent | None]] = field(default_factory=list)

    async def records(self, names: Sequence[str]) -> Mapping[str, str]:
        await self._answer()
        self.cycles += 1
        return {n: d for n, d in self.names.items() if n in names}

    async def read(self, digest: str, limit_bytes: int) -> bytes | None:
        await self._answer()
        content = self.content.get(digest)
        if content is not None and len(content) > limit_bytes:
            raise PermanentFault(f"blob {digest} is too large", Fault.REFUSED)
        return content

    async def committed(self, snapshotter: str) -> frozenset[str]:
        await self._answer()
        if snapshotter not in self.snapshots:
            raise PermanentFault(f"snapshotter {snapshotter} is not loaded", Fault.REFUSED)
        return frozenset(self.snapshots[snapshotter])

    async def elsewhere(self) -> Mapping[str, str]:
        """See `Puller.elsewhere`: its runtimes have no snapshotter of their own."""
        return {}

    async def way(self, name: str, handler: str) -> Way:
        await self._answer()
        return self.way_of_pulls

    async def retry_after(self, name: str) -> float:
        await self._answer()
        return self.asks_to_wait_seconds

    def sources(self, name: str) -> Mapping[str, int]:
        return self.came.pop(name, {})

    async def release(self, name: str) -> None:
        await self._answer()
        self.released.append(name)

    async def remote(self, snapshotter: str) -> frozenset[str]:
        await self._answer()
        return frozenset(self.remote_layers)

    async def served(self) -> Mapping[str, Served] | None:
        await self._answer()
        return self.served_layers

    async def pull(self, name: str, handler: str) -> None:
        await self._answer()
        self.pulled.append((name, handler))
        self.pulling.add(name)
        self.pull_began.set()
        try:
            if self.gate:
                await self.gate.wait()
            await self._answer()
            await self._fetch(name)
        finally:
            self.pulling.discard(name)

    async def pins(self) -> Mapping[str, Pin]:
        await self._answer()
        return dict(self.pinned)

    async def pin(self, image_id: str, until: datetime) -> bool:
        await self._answer()
        if image_id not in self.ids():
            return False
        self.pinned[image_id] = Pin(until=until, whole=True)
        return True

    async def unpin(self, image_id: str) -> None:
        await self._answer()
        self.pinned.pop(image_id, None)

    async def shielded(self, name: str) -> bool:
        await self._answer()
        self.asked_shielded += 1
        target = self.names.get(record_name(parse_image_ref(name)))
        return self.pins_count and any(
            self.pinned[i].whole for i, t in self.ids().items() if t == target and i in self.pinned
        )

    async def disk(self) -> Disk | None:
        await self._answer()
        return self.space

    def ids(self) -> dict[str, str]:
        """The images that are here by id, and what each record points to."""
        return {i.config: i.target for i in self.registry.values() if i.target in self.names.values()}

    async def ingests(self) -> Mapping[str, int]:
        await self._answer()
        return dict(self.partial)

    async def has(self, digest: str) -> bool:
        await self._answer()
        return digest in self.content

    async def events(self) -> AsyncIterator[ImageEvent]:
        await self._answer()
        queue: asyncio.Queue[ImageEvent | None] = asyncio.Queue()
        self._streams.append(queue)
        try:
            yield ImageEvent(change=Change.STARTED)
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._streams.remove(queue)
        raise TransientFault("the stream has ended", Fault.AWAY)

    async def present(self, name: str) -> bool:
        await self._answer()
        return record_name(parse_image_ref(name)) in self.names

    async def remove(self, name: str) -> None:
        """Remove the image by all its names and its snapshots, as the CRI and garbage collection do."""
        target = self.names.get(record_name(parse_image_ref(name)))
        for each in [n for n, d in self.names.items() if d == target]:
            self.forget(each)
        for image in self.registry.values():
            if image.target == target:
                self.snapshots["overlayfs"].difference_update(image.chain)

    def forget(self, name: str) -> None:
        """Remove one record."""
        del self.names[name]
        self._tell(ImageEvent(change=Change.DELETED, name=name))

    def drop_snapshot(self, chain_id: str) -> None:
        self.snapshots["overlayfs"].discard(chain_id)
        self._tell(ImageEvent(change=Change.LAYER_REMOVED, name=chain_id))

    def stop(self) -> None:
        """Go away: running streams end, calls fail."""
        self.away = True
        for queue in self._streams:
            queue.put_nowait(None)

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            raise TransientFault("containerd does not answer", Fault.AWAY)

    async def _fetch(self, name: str) -> None:
        record = record_name(parse_image_ref(name))
        if self.registry_away:
            raise TransientFault(f"cannot pull {name}: connection refused", Fault.REGISTRY)
        if self.limits_rate:
            raise TransientFault(f"cannot pull {name}: too many requests", Fault.RATE_LIMIT)
        if record not in self.registry:
            raise PermanentFault(f"cannot pull {name}: not found", Fault.NOT_FOUND)
        image = self.registry[record]
        self.content.update(image.blobs)
        if self.unpacks:
            self.snapshots["overlayfs"].update(image.chain)
        self.names[record] = image.target
        self.names[f"{record.rpartition(':')[0]}@{image.target}"] = image.target
        self._tell(ImageEvent(change=Change.CHANGED, name=record))

    def _tell(self, event: ImageEvent) -> None:
        for queue in self._streams:
            queue.put_nowait(event)
