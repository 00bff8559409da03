"""An image record is never written without its target, which would kill containerd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import agent
from agent.core.errors import Invalid, Permanent
from agent.images.records import Record, Records, relabelled
from agent.images.rpc import Rpc
from agent.pb.containerd import images_pb2, types_pb2

DIGEST = "sha256:" + "a" * 64


def test_a_record_without_a_target_cannot_be_made() -> None:
    with pytest.raises(Invalid):
        Record(name="r.io/a:1", labels={}, target=types_pb2.Descriptor())


def test_an_update_carries_the_whole_target_and_touches_one_label_only() -> None:
    target = types_pb2.Descriptor.FromString(
        types_pb2.Descriptor(media_type="m", digest=DIGEST, size=7).SerializeToString()
        + b"\x2a\x06\x0a\x01k\x12\x01v"  # field 5, annotations, which this build does not know
    )
    request = relabelled(Record(name="r.io/a:1", labels={"other": "1"}, target=target), "l", "x")
    assert request.image.target.SerializeToString() == target.SerializeToString()
    assert list(request.update_mask.paths) == ["labels.l"]
    assert dict(request.image.labels) == {"l": "x"}


def test_nothing_else_makes_such_a_request() -> None:
    root = Path(agent.__file__).parent
    users = {
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        if "pb" not in file.relative_to(root).parts
        and any(word in file.read_text() for word in ("UpdateImageRequest", "Images/Update", "Images/Create"))
    }
    assert users == {"images/records.py"}


class OneOdd(Rpc):
    """A containerd with two image records, of which the second points to a digest of another kind, or to nothing."""

    def __init__(self, odd: str) -> None:
        self._images = [images_pb2.Image(name=name) for name in ("good", "odd")]
        for image, digest in zip(self._images, (DIGEST, odd), strict=True):
            image.target.digest = digest

    async def native(self, path: str, request: object, kind: object, what: str, **_: object) -> Any:
        if isinstance(request, images_pb2.GetImageRequest):
            return images_pb2.GetImageResponse(image=next(i for i in self._images if i.name == request.name))
        return images_pb2.ListImagesResponse(images=self._images)


@pytest.mark.parametrize("odd", ["", "sha512:" + "a" * 128, "nonsense\n"])
async def test_a_record_of_another_kind_is_refused_by_itself_and_left_out_of_those_that_are_found(odd: str) -> None:
    records = Records(OneOdd(odd))
    assert [record.name for record in await records.find([])] == ["good"]
    found = await records.get("good")
    assert found is not None
    assert found.digest == DIGEST
    with pytest.raises(Permanent, match="image record odd points to"):
        await records.get("odd")
