"""Views in directories that a pod could write to: nothing outside is touched, and no other endpoint suffers."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.core.errors import Transient
from agent.core.refs import EndpointKey, parse_model_uri
from agent.models.manifest import Manifest, ObjectEntry
from agent.models.shelf import Shelf
from agent.models.store import Store
from agent.models.transfer import FileProof

MANIFEST = Manifest(
    uri=parse_model_uri("s3://bucket/m/"), objects=(ObjectEntry(key="m/a", path="a", size=3, etag='"x"'),)
)
CHAT, OTHER = EndpointKey(namespace="n", name="chat"), EndpointKey(namespace="n", name="other")


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    store = Store(tmp_path / "root")
    store.root.mkdir()
    store.open()
    staged = store.stage(MANIFEST.digest)
    (staged / "files").mkdir()
    (staged / "files" / "a").write_bytes(b"abc")
    made = Shelf(store)
    version = store.commit(MANIFEST, [FileProof(path="a", crc64=0, proof="x")], datetime(2030, 1, 1, tzinfo=UTC))
    made.versions[version.digest] = version
    return made


def link(at: Path) -> None:
    at.symlink_to(at.parents[4] / "victim")


@pytest.mark.parametrize("prepare", [link, Path.mkdir, Path.touch, os.mkfifo], ids=["link", "mkdir", "touch", "mkfifo"])
@pytest.mark.parametrize("name", ["{}", "{}.json", ".{}.json.tmp"])
async def test_what_a_pod_put_in_the_way_is_moved_out_and_not_written_through(
    shelf: Shelf, tmp_path: Path, name: str, prepare: Callable[[Path], object]
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    view = shelf.views.directory(CHAT, MANIFEST.digest)
    view.parent.mkdir(parents=True)
    prepare(view.parent / name.format(view.name))
    await shelf.make_views([(CHAT, "m", MANIFEST.digest)])
    assert (view / "a").read_bytes() == b"abc"
    assert not view.is_symlink()
    assert b'"name": "m"' in view.with_name(f"{view.name}.json").read_bytes()
    assert victim.read_text() == "precious"
    assert list((shelf.store.root / "staging").iterdir()) == []
    shelf.views.drop_version(MANIFEST.digest)
    assert not view.exists()


async def test_a_view_that_cannot_be_made_costs_no_other_endpoint_its_own(shelf: Shelf) -> None:
    home = shelf.views.directory(CHAT, MANIFEST.digest).parent
    home.parent.mkdir(parents=True)
    home.write_text("in the way")
    with pytest.raises(Transient):
        await shelf.make_views([(CHAT, "m", MANIFEST.digest), (OTHER, "m", MANIFEST.digest)])
    assert (shelf.views.directory(OTHER, MANIFEST.digest) / "a").read_bytes() == b"abc"
    assert list((shelf.store.root / "staging").iterdir()) == []
