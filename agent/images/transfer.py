"""Pulls by containerd's transfer service under a lease of our own; containerd 1.7 and later.

What was fetched outlives a cancelled pull, this process and containerd itself: the next pull asks only for the missing bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
from datetime import UTC, datetime, timedelta

from google.protobuf.empty_pb2 import Empty

from agent.core.errors import Permanent, Transient
from agent.core.refs import parse_image_ref
from agent.images.answering import answering
from agent.images.challenge import Credentials
from agent.images.faults import PermanentFault
from agent.images.layout import this_architecture
from agent.images.rpc import Rpc, boxed
from agent.pb.containerd import leases_pb2, transfer_pb2, transfer_types_pb2, types_pb2

PULL_SECONDS = 2 * 3600.0
_KEEP = timedelta(hours=48)  # as long as a node acts on its last assignment
_LEAST = timedelta(hours=4)  # a lease that ends sooner could end during a pull
_EXPIRE = "containerd.io/gc.expire"
_IMAGE = "prewarm.dev/image"


class Transfers:
    """The transfer service of one containerd."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def pull(self, record: str, *, snapshotter: str, hosts: str, credentials: Credentials | None = None) -> None:
        """Pull and unpack; what was fetched before is kept when this is cancelled or fails.

        Args:
            record: the full name, as containerd records it.
            snapshotter: where it is unpacked.
            hosts: a hosts.toml directory in containerd's file system, "" for none.
            credentials: what registries are told that ask, as the kubelet does: mirrors that the operator configured too.
        """
        what = f"pull {record}"
        lease = await self._lease(record, what)
        async with answering(self._rpc, credentials) as stream:
            request = transfer_pb2.TransferRequest(
                source=boxed(_source(record, hosts, stream)), destination=boxed(_destination(record, snapshotter))
            )
            path = "transfer.v1.Transfer/Transfer"
            await self._rpc.native(path, request, Empty, what, lease=lease, seconds=PULL_SECONDS)
        with contextlib.suppress(Transient, Permanent):  # the image holds its content now, and the lease expires
            await self._drop(lease, what)

    async def release(self, record: str) -> None:
        """Let containerd collect what an unfinished pull has fetched; nothing of the kind is fine."""
        with contextlib.suppress(PermanentFault):
            await self._drop(lease_name(record), f"forget the unfinished pull of {record}", at_once=True)

    async def _lease(self, record: str, what: str) -> str:
        """Return a lease that lasts, the one of an earlier attempt if there is one."""
        name, path = lease_name(record), "leases.v1.Leases/List"
        request = leases_pb2.ListRequest(filters=[f"id=={name}"])
        found = await self._rpc.native(path, request, leases_pb2.ListResponse, what)
        for lease in found.leases:
            if _ends(lease) > datetime.now(UTC) + _LEAST:
                return name
            await self._drop(name, what)
        labels = {_EXPIRE: (datetime.now(UTC) + _KEEP).strftime("%Y-%m-%dT%H:%M:%SZ"), _IMAGE: record}
        create = leases_pb2.CreateRequest(id=name, labels=labels)
        await self._rpc.native("leases.v1.Leases/Create", create, leases_pb2.CreateResponse, what)
        return name

    async def _drop(self, lease: str, what: str, *, at_once: bool = False) -> None:
        """Delete a lease, with what only it held `at_once` or at containerd's next collection."""
        request = leases_pb2.DeleteRequest(id=lease, sync=at_once)
        await self._rpc.native("leases.v1.Leases/Delete", request, Empty, what)


def lease_name(record: str) -> str:
    """Return the name of the lease that an image's pulls share."""
    return f"prewarm-pull-{hashlib.sha256(record.encode()).hexdigest()[:20]}"


def _ends(lease: leases_pb2.Lease) -> datetime:
    try:
        return datetime.fromisoformat(lease.labels[_EXPIRE])
    except (KeyError, ValueError):
        return datetime.min.replace(tzinfo=UTC)


def _source(record: str, hosts: str, stream: str) -> transfer_types_pb2.OCIRegistry:
    return transfer_types_pb2.OCIRegistry(
        reference=record, resolver=transfer_types_pb2.RegistryResolver(host_dir=hosts, auth_stream=stream)
    )


def _destination(record: str, snapshotter: str) -> transfer_types_pb2.ImageStore:
    """The tag, and the same by digest, as the CRI records them.

    The third record, by the image's id, is made by the CRI when it finds the tag without its own label: none is given here.
    """
    platform = types_pb2.Platform(os="linux", architecture=this_architecture())
    ref = parse_image_ref(record)
    by_digest = transfer_types_pb2.ImageReference(name=f"{ref.host}/{ref.repository}", add_digest=True)
    return transfer_types_pb2.ImageStore(
        name=record,
        platforms=[platform],
        extra_references=[] if ref.digest else [by_digest],
        unpacks=[transfer_types_pb2.UnpackConfiguration(platform=platform, snapshotter=snapshotter)],
    )
