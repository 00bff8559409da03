"""Image records and their labels. The only place that writes a record.

An update whose image has no target kills containerd 1.7 and later (`oci.DescriptorFromProto` dereferences nil). So a record
is only ever written back as it was read: `Record` cannot exist without a target, and `relabelled` is what makes the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.field_mask_pb2 import FieldMask

from agent.core.errors import Permanent, cut
from agent.core.refs import Digest, is_digest, parse_digest
from agent.images.faults import Fault, PermanentFault
from agent.images.rpc import Rpc
from agent.pb.containerd import images_pb2, types_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image record as containerd has it."""

    name: str
    labels: Mapping[str, str]
    target: types_pb2.Descriptor

    def __post_init__(self) -> None:
        parse_digest(self.target.digest)

    @property
    def digest(self) -> Digest:
        """What it points to."""
        return parse_digest(self.target.digest)


def relabelled(record: Record, key: str, value: str) -> images_pb2.UpdateImageRequest:
    """Return the request that sets one label of a record, or removes it where the value is "", and leaves all else."""
    image = images_pb2.Image(name=record.name, target=record.target, labels={key: value})
    return images_pb2.UpdateImageRequest(image=image, update_mask=FieldMask(paths=[f"labels.{key}"]))


class Records:
    """The records of one containerd."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def get(self, name: str) -> Record | None:
        """Return a record, None where there is none.

        Raises:
            Permanent: it points to no sha256 digest.
        """
        request, path = images_pb2.GetImageRequest(name=name), "images.v1.Images/Get"
        try:
            answer = await self._rpc.native(path, request, images_pb2.GetImageResponse, f"look up image {name}")
        except PermanentFault as error:
            if error.fault is Fault.NOT_FOUND:
                return None
            raise
        return _record(answer.image)

    async def find(self, filters: Sequence[str]) -> tuple[Record, ...]:
        """Return the records that any of containerd's filters matches; not those that point to no sha256 digest."""
        request, path = images_pb2.ListImagesRequest(filters=filters), "images.v1.Images/List"
        answer = await self._rpc.native(path, request, images_pb2.ListImagesResponse, "list images")
        return tuple(_record(image) for image in answer.images if is_digest(image.target.digest))

    async def label(self, record: Record, key: str, value: str) -> None:
        """Set or, with "", remove one label."""
        request, what = relabelled(record, key, value), f"label image {record.name}"
        await self._rpc.native("images.v1.Images/Update", request, images_pb2.UpdateImageResponse, what)


def _record(image: images_pb2.Image) -> Record:
    if not is_digest(image.target.digest):  # other kinds are allowed there, and made by nobody we know of
        target = cut(image.target.digest, 100) or "nothing"
        raise Permanent(f"image record {cut(image.name, 200)} points to {target}, not to a sha256 digest")
    return Record(name=image.name, labels=dict(image.labels), target=image.target)
