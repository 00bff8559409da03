"""Views in directories that a pod could write to: nothing outside is touched, and no other endpoint suffers."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.config import Settings
from agent.core.clock import SystemClock
from agent.core.errors import Transient
from agent.core.heartbeat import Heartbeat
from agent.core.inventory import ModelLevel, ModelsView
from agent.core.latest import Latest
from agent.core.refs import Digest, EndpointKey, parse_model_uri
from agent.core.sandbox import Sandbox
from agent.models import eviction
from agent.models.journal import Journal
from agent.models.manifest import Manifest, ObjectEntry
from agent.models.service import ModelService
from agent.models.shelf import Shelf
from agent.models.store import Store
from agent.models.transfer import FileProof
from agent.plan.decision import EvictStep, NodePlan, ViewWant

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


async def test_what_a_pod_made_beside_its_view_is_no_version_that_it_uses(shelf: Shelf) -> None:
    other = replace(shelf.versions[MANIFEST.digest], digest=Digest("sha256:" + "0" * 64))
    shelf.versions[other.digest] = other
    await shelf.make_views([(CHAT, "m", MANIFEST.digest)])
    (shelf.views.directory(CHAT, MANIFEST.digest).parent / "cache").mkdir()
    now = datetime(2030, 1, 1, tzinfo=UTC)
    await shelf.name_users([Sandbox(namespace="n", name="p", uid="pod-1", created=now, ready=True, endpoint=CHAT)])
    assert await shelf.why_in_use(MANIFEST.digest) == "1 pod(s) use it, among them pod-1"
    assert await shelf.why_in_use(other.digest) == ""
    assert [digest for _, digest, _ in shelf.views.existing()] == [MANIFEST.digest]


async def test_it_goes_with_the_last_view_of_its_endpoint(shelf: Shelf) -> None:
    view = shelf.views.directory(CHAT, MANIFEST.digest)
    await shelf.make_views([(CHAT, "m", MANIFEST.digest)])
    for name in ("cache", "sha256:beef"):
        (view.parent / name / "below").mkdir(parents=True)
    shelf.views.sweep_orphans([MANIFEST.digest])
    await shelf.sweep_views({(CHAT, MANIFEST.digest)})
    assert (view.parent / "cache" / "below").is_dir()
    shelf.views.drop_version(MANIFEST.digest)
    await shelf.sweep_views(set())
    assert list((shelf.store.root / "views").iterdir()) == []


async def test_a_view_that_cannot_be_made_holds_up_no_eviction(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "WAIT_SECONDS", 0.0)
    home = shelf.views.directory(CHAT, MANIFEST.digest).parent
    home.parent.mkdir(parents=True)
    home.write_text("in the way")
    old = Digest("sha256:" + "0" * 64)
    (shelf.store.root / "staging" / old).mkdir()
    Journal(shelf.store.root / "staging" / old / "journal", old, 1 << 20, fresh=True).close()
    plan = NodePlan(
        views=(ViewWant(endpoint=CHAT, name="m", digest=MANIFEST.digest),),
        evictions=(EvictStep(digest=old, reason="the test wants it"),),
    )
    models = Latest(ModelsView())
    service = ModelService(
        settings=replace(Settings(), root=shelf.store.root),
        plan=Latest(plan),
        models=models,
        clock=SystemClock(),
        heartbeat=Heartbeat(),
    )
    running = asyncio.create_task(service.run(), name="models")
    async with asyncio.timeout(20):
        async for view in models.follow():
            if old in view.states and view.states[old].level is ModelLevel.ABSENT:
                break
    running.cancel()
    await asyncio.wait({running})


async def test_every_broken_version_is_withdrawn_though_the_disk_will_not_move_the_first(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = replace(shelf.versions[MANIFEST.digest], digest=Digest("sha256:" + "0" * 64))
    shelf.versions[twin.digest] = twin  # nothing of it is on disk
    (shelf.store.directory(MANIFEST.digest) / "files" / "a").unlink()

    def refuse(_digest: Digest) -> bool:
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr(shelf.store, "remove_unpinned", refuse)
    withdrawn: list[Digest] = []

    def withdraw(digest: Digest, _why: str) -> bool:
        withdrawn.append(digest)
        return False

    with pytest.raises(Transient):
        await shelf.prove(withdraw)
    assert withdrawn == [MANIFEST.digest, twin.digest]
