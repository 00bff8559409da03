"""What the images room asks of containerd, and the values that come back. `client` answers it over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from agent.images.daemon import Way
from agent.images.disk import Disk
from agent.images.lazy import Served


class Change(StrEnum):
    """What an event says: of an image record, or of the snapshots that images lie in."""

    STARTED = "started"  # the stream has just begun: anything may have changed before, so look at everything
    CHANGED = "changed"
    DELETED = "deleted"
    LAYER_REMOVED = "layer removed"  # a layer's snapshot is gone: any image may lack it


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEvent:
    """One event. `name` is the record's name, the chain id with `Change.LAYER_REMOVED`, "" with `Change.STARTED`."""

    change: Change
    name: str = ""


class ImageStore(Protocol):
    """What a proof reads. Each method raises Transient when containerd is away and Permanent when it refuses."""

    async def records(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the digest each recorded name points to; names without a record are left out."""
        ...

    async def read(self, digest: str, limit_bytes: int) -> bytes | None:
        """Return a blob of the content store, None if it is not there; Permanent if it is larger than the limit."""
        ...

    async def committed(self, snapshotter: str) -> frozenset[str]:
        """Return the names (chain ids) of all committed snapshots of a snapshotter."""
        ...


class RemoteLayers(Protocol):
    """What a proof of laziness reads."""

    async def remote(self, snapshotter: str) -> frozenset[str]:
        """Return the chain ids of the committed snapshots that a snapshotter says it serves remotely."""
        ...

    async def served(self) -> Mapping[str, Served] | None:
        """Return the layers (by digest) that mounts serve; None where mounts cannot be seen."""
        ...


class ProofStore(ImageStore, RemoteLayers, Protocol):
    """All that a proof reads."""


class Puller(Protocol):
    """What a pull needs."""

    async def way(self, name: str, handler: str) -> Way:
        """Return how `pull` will go about it."""
        ...

    async def pull(self, name: str, handler: str) -> None:
        """Pull and unpack `name` for a runtime handler ("" for the default one); cancelling it ends the pull there.

        Where its way is resumable, what was fetched is kept then, and when it fails.

        Raises:
            TransientFault: it may work later.
            PermanentFault: it will not, as things are.
        """
        ...

    async def elsewhere(self) -> Mapping[str, str]:
        """Return the runtime handlers that unpack into another snapshotter than the one that is looked at, with its name.

        "" stands for all that are not named; where it is there, those that unpack into the right one have "".

        Raises:
            Transient: containerd is away.
        """
        ...

    async def retry_after(self, name: str) -> float:
        """Return how many seconds the registry asks to wait with this image, 0 where it does not say."""
        ...

    def sources(self, name: str) -> Mapping[str, int]:
        """Return where the last pull of an image came from, as bytes by place, once; nothing where that is not known."""
        ...

    async def release(self, name: str) -> None:
        """Let go of what an unfinished pull has kept."""
        ...

    async def ingests(self) -> Mapping[str, int]:
        """Return the bytes fetched so far of each blob (by digest) that is being fetched now."""
        ...

    async def has(self, digest: str) -> bool:
        """Say whether the content store has the whole blob."""
        ...


class Disks(Protocol):
    """The file system under the images."""

    async def disk(self) -> Disk | None:
        """Return the file system that images are unpacked to, None where it cannot be seen from here."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A pin of ours: until when it is meant to stand, and whether containerd's own label is there with it."""

    until: datetime
    whole: bool


class Pinner(Disks, Protocol):
    """What pinning needs of containerd. Each method raises Transient when it is away and Permanent when it refuses."""

    async def pins(self) -> Mapping[str, Pin]:
        """Return our pins by image id."""
        ...

    async def pin(self, image_id: str, until: datetime) -> bool:
        """Pin an image; False where it is gone, or pinned already at somebody else's word."""
        ...

    async def unpin(self, image_id: str) -> None:
        """Remove our pin; none is no error."""
        ...

    async def shielded(self, name: str) -> bool:
        """Say whether the kubelet is told that the image is pinned."""
        ...


class PullRuntime(Puller, Disks, Protocol):
    """What the pulls need."""


class ImageEvents(Protocol):
    """The changes of image records, and removals of layers."""

    def events(self) -> AsyncIterator[ImageEvent]:
        """Follow all changes, beginning with `Change.STARTED`; raises Transient when the stream ends."""
        ...


class Runtime(ProofStore, PullRuntime, Pinner, ImageEvents, Protocol):
    """All of it."""
