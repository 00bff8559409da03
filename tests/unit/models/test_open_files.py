"""Who has a file of the store open or mapped, told from who has a file of the same inode number elsewhere."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from agent.models.open_files import open_inodes

PROC = Path("/proc")


def test_who_has_a_file_open_is_found_until_it_is_closed(tmp_path: Path) -> None:
    with (tmp_path / "weights").open("wb") as file:
        inode = os.fstat(file.fileno()).st_ino
        assert os.getpid() in open_inodes(PROC, {inode}, tmp_path)
    assert os.getpid() not in open_inodes(PROC, {inode}, tmp_path)


def test_who_has_a_file_mapped_and_its_descriptor_closed_is_found(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(mmap.PAGESIZE))
    inode = path.stat().st_ino
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    with mapped:
        assert os.getpid() in open_inodes(PROC, {inode}, tmp_path)
        path.unlink()
        assert os.getpid() in open_inodes(PROC, {inode}, tmp_path)
    assert os.getpid() not in open_inodes(PROC, {inode}, tmp_path)


def _mapped_elsewhere() -> tuple[mmap.mmap, int]:
    """Return a mapping of a file on no disk, and its inode, which a file of the store could have too."""
    descriptor = os.memfd_create("elsewhere")
    try:
        os.ftruncate(descriptor, mmap.PAGESIZE)
        return mmap.mmap(descriptor, 0), os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: /proc/PID/map_files may not be looked at")
def test_the_same_inode_number_on_another_file_system_is_no_use_of_the_store(tmp_path: Path) -> None:
    mapped, inode = _mapped_elsewhere()
    with mapped:
        assert os.getpid() not in open_inodes(PROC, {inode}, tmp_path)


def test_what_may_not_be_looked_at_counts_as_used(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "maps").write_text("7f00-7f01 r--p 00000000 00:01 24                 /store/weights\n")
    (tmp_path / "7" / "map_files").write_text("not a directory: neither there nor gone")
    assert open_inodes(tmp_path, {24}, tmp_path) == {7}
    assert open_inodes(tmp_path, {25}, tmp_path) == frozenset()
