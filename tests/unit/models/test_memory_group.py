"""Cgroups of version 2, as their documentation describes the files: no kernel takes part here."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.errors import Permanent
from agent.core.refs import Digest
from agent.models.memory_group import MemoryGroup, group_name

A = Digest("sha256:" + "a" * 64)


def v2(root: Path, *, passed_down: str = "cpu") -> MemoryGroup:
    """A directory that looks like a version 2 hierarchy with our group in it."""
    for at in (root, root / "tier"):
        at.mkdir(exist_ok=True)
        (at / "cgroup.controllers").write_text("cpu memory\n")
        (at / "cgroup.subtree_control").write_text(f"{passed_down}\n")
        (at / "memory.current").write_text("4096\n")
    return MemoryGroup(root, "tier")


def test_the_controller_is_passed_down_and_both_limits_are_set(tmp_path: Path) -> None:
    group = v2(tmp_path)
    group.make()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory"
    assert (tmp_path / "tier" / "cgroup.subtree_control").read_text() == "+memory"
    assert group.limit(1 << 30)
    assert (tmp_path / "tier" / "memory.high").read_text() == str(1 << 30)
    assert (tmp_path / "tier" / "memory.max").read_text() == str((1 << 30) + (64 << 20))
    assert group.used_bytes() == 4096


def test_a_controller_that_is_passed_down_already_is_left_alone(tmp_path: Path) -> None:
    v2(tmp_path, passed_down="cpu memory").make()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "cpu memory\n"


def test_held_versions_are_the_children_that_are_named_like_one(tmp_path: Path) -> None:
    group = v2(tmp_path)
    procs = group.procs(A)
    assert procs.name == "cgroup.procs"
    (procs.parent / "memory.current").write_text("8192\n")
    (tmp_path / "tier" / "other").mkdir()
    assert group.held() == {A: 8192}
    assert not group.remove(A)
    (procs.parent / "memory.current").unlink()
    assert group.remove(A)
    assert group.held() == {}
    assert group.remove(A)  # it is gone


def test_where_there_is_no_memory_controller_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match="no memory cgroup can be made in"):
        MemoryGroup(tmp_path, "tier").make()
    assert MemoryGroup(tmp_path, "tier").held() == {}


@pytest.mark.parametrize(("limit", "refused"), [("536870912", True), ("max", False)])
def test_a_container_s_own_cgroup_is_not_taken_for_the_node_s(tmp_path: Path, limit: str, refused: bool) -> None:
    group = v2(tmp_path)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    if refused:
        with pytest.raises(Permanent, match=r"bounded to 537 MB, so it is not the node's"):
            group.make()
        with pytest.raises(Permanent, match=r"bounded to 537 MB"):
            group.outside()
    else:
        group.make()
        with pytest.raises(Permanent, match="no memory cgroups"):
            group.outside()
        (tmp_path / "cgroup.procs").touch()
        assert group.outside() == tmp_path / "cgroup.procs"


def test_agents_beside_each_other_have_groups_of_their_own() -> None:
    assert group_name("node-1", Path("/a")) == "prewarm-memory-node-1"
    assert group_name("", Path("/a")) != group_name("", Path("/b"))
