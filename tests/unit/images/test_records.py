"""An image record is never written without its target, which would kill containerd."""

from __future__ import annotations

from pathlib import Path

import pytest

import agent
from agent.core.errors import Invalid
from agent.images.records import Record, relabelled
from agent.pb.containerd import types_pb2

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
