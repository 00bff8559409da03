"""The power fails the moment a model is there: what the disk was given by then is a whole model, also of many small files."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.models.engine import Engine
from agent.models.fetch import fetch
from agent.models.resolve import resolve
from agent.models.source import open_source
from agent.models.store import Store
from tests.bed.disk import small_disk
from tests.integration.models.conftest import SourceBucket, noise
from tests.integration.models.test_fetch import visible

MIB = 1 << 20
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loop devices and mounts"),
]


@contextmanager
def after_a_power_cut(image: Path, at: Path) -> Iterator[Path]:
    """Mount a copy of what the disk below a loop mount has been given so far; what waits in the kernel is lost."""
    copy = image.with_name("after.img")
    shutil.copyfile(image, copy)
    at.mkdir()
    subprocess.run(["mount", "-o", "loop", str(copy), str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)
        copy.unlink()


def put_model(bucket: SourceBucket, small: int) -> dict[str, bytes]:
    """Small files of one range, which are made durable together, one of two ranges, and an empty one."""
    files = {f"{n % 3}/{n:03}": noise(5000 + n, seed=n) for n in range(small)} | {"big": noise(9 * MIB), "none": b""}
    for name, content in files.items():
        bucket.put(f"m/{name}", content)
    return files


@pytest.mark.parametrize("small", [5, 100])
async def test_what_fetch_has_returned_survives_a_power_cut(bucket: SourceBucket, tmp_path: Path, small: int) -> None:
    model = put_model(bucket, small)
    with small_disk(tmp_path, 64 * MIB) as disk:
        await fetch(bucket.uri(), disk / "to")
        with after_a_power_cut(tmp_path / "disk.img", tmp_path / "after") as after:
            assert visible(after / "to") == model


@pytest.mark.parametrize("small", [5, 100])
async def test_what_the_store_has_committed_survives_a_power_cut(
    bucket: SourceBucket, tmp_path: Path, small: int
) -> None:
    put_model(bucket, small)
    with small_disk(tmp_path, 64 * MIB) as disk:
        (disk / "root").mkdir()
        store = Store(disk / "root")
        store.open()
        async with open_source() as source:
            manifest = await resolve(bucket.uri(), source)
            staged = store.admit(manifest, 1.0)
            proofs = await Engine().download(manifest, source, staged.directory)
        store.commit(manifest, proofs, datetime.now(UTC))
        with after_a_power_cut(tmp_path / "disk.img", tmp_path / "after") as after:
            found = Store(after / "root").look()
            assert [v.digest for v in found.versions] == [manifest.digest]
            assert store.verify(found.versions[0]) == ""
            assert Store(after / "root").verify(found.versions[0]) == ""


async def test_without_the_order_to_the_file_system_the_files_would_be_lost(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = put_model(bucket, 100)
    monkeypatch.setattr("agent.models.disk.sync_file_system", lambda _path: None)
    monkeypatch.setattr("agent.models.disk.os.fsync", lambda _fd: None)
    with small_disk(tmp_path, 64 * MIB) as disk:
        async with open_source() as source:
            manifest = await resolve(bucket.uri(), source)
            (disk / "to").mkdir()
            await Engine().download(manifest, source, disk / "to")
        with after_a_power_cut(tmp_path / "disk.img", tmp_path / "after") as after:
            assert visible(after / "to/files") != model  # so the tests above see what is not durable
