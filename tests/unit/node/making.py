"""Short ways to make the values that the node room reads."""

from __future__ import annotations

from datetime import timedelta

from agent.core.assignment import Assignment, EndpointWant, ImageWant, ModelWant, Window
from agent.core.inventory import (
    GpuReport,
    GpuVerdict,
    ImageLevel,
    ImageState,
    Inventory,
    ModelLevel,
    ModelState,
)
from agent.core.refs import Digest, EndpointKey, parse_image_ref, parse_model_uri
from tests.fakes.virtual_time import START

DIGEST = Digest("sha256:" + "a" * 64)
IMAGE_DIGEST = "sha256:" + "b" * 64
IMAGE = ImageWant(ref=parse_image_ref("registry.local/chat:1"), digest=IMAGE_DIGEST)
URI = parse_model_uri("s3://weights/llama/")
MODEL = ModelWant(name="llama", uri=URI, digest=DIGEST, size_bytes=1000)
CHAT = EndpointKey(namespace="team", name="chat")
LABEL = "endpoint.prewarm.dev/team.chat"


def endpoint(key: EndpointKey = CHAT, *, gpus: int = 0, opens_in: float | None = 600, **other: object) -> EndpointWant:
    """An endpoint with one image and one model, its window opening `opens_in` seconds after START."""
    windows: tuple[Window, ...] = ()
    if opens_in is not None:
        opens = START + timedelta(seconds=opens_in)
        windows = (Window(ready_by=opens, until=opens + timedelta(hours=1)),)
    full: dict[str, object] = {"images": (IMAGE,), "models": (MODEL,)} | other
    return EndpointWant(key=key, gpus=gpus, windows=windows, **full)  # type: ignore[arg-type]


def assigned(*endpoints: EndpointWant) -> Assignment:
    """An assignment of these endpoints, else of one plain one."""
    return Assignment(node="n1", endpoints=endpoints or (endpoint(),), generation=3, uid="nw-1")


def warm(**other: object) -> Inventory:
    """An inventory in which everything of `endpoint()` is proved."""
    full: dict[str, object] = {
        "boot_id": "boot-1",
        "images": {IMAGE.ref: ImageState(ref=IMAGE.ref, level=ImageLevel.UNPACKED, digest=IMAGE_DIGEST)},
        "models": {DIGEST: ModelState(digest=DIGEST, level=ModelLevel.COMMITTED, done_bytes=1000, total_bytes=1000)},
        "gpu": GpuReport(verdict=GpuVerdict.HEALTHY, reason="all 8 answer", count=8),
        "proved": True,
    } | other
    return Inventory(**full)  # type: ignore[arg-type]
