"""Files of a tree are looked at and moved one directory at a time, with the same outcome as one by one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from agent.models.paths import Tree

PATHS = ["a", "d/b", "d/c", "d/none", "none/x", "d/e/f", "link/b", "a/x", "d/to-a", "a"]


def held(below: Path) -> list[str]:
    """What this process has open there; other tests' threads open and close what is elsewhere."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return [path for path in found if Path(path).is_relative_to(below)]


def test_each_file_is_told_as_it_is_alone_and_no_descriptor_is_kept(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    for name in ("a", "d/b", "d/c", "d/e/f"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "d/to-a").symlink_to("../a")
    tree = Tree(tmp_path)
    alone: list[os.stat_result | int | None] = []
    for path in PATHS:
        try:
            alone.append(tree.stat(path))
        except OSError as error:
            alone.append(error.errno)
    found = list(tree.stat_each(PATHS))
    assert [each.errno if isinstance(each, OSError) else each for each in found] == alone
    assert sum(isinstance(each, OSError) for each in found) == 4
    begun = tree.stat_each(PATHS)
    assert not isinstance(next(begun), OSError)
    assert held(tmp_path)
    del begun  # as a caller that stops at the first difference
    assert held(tmp_path) == []


def test_files_move_to_the_same_paths_below_another_tree_which_need_not_have_the_directories(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "d/e").mkdir(parents=True)
    (there / "d").mkdir(parents=True)
    paths = ["a", "d/b", "d/e/f", "d/c", "d/e/g"]
    for path in [*paths, "d/stays"]:
        (here / path).write_text(path)
    (there / "d/c").write_text("was there")
    assert list(Tree(here).move_each(paths, Tree(there))) == paths
    assert {str(p.relative_to(there)): p.read_text() for p in there.rglob("*") if p.is_file()} == {p: p for p in paths}
    assert [p.name for p in here.rglob("*") if p.is_file()] == ["stays"]
    assert held(tmp_path) == []


def test_a_file_that_cannot_move_is_the_last_that_was_named_and_nothing_leaves_the_tree_by_a_link(
    tmp_path: Path,
) -> None:
    here, there, outside = tmp_path / "here", tmp_path / "there", tmp_path / "outside"
    (here / "d").mkdir(parents=True)
    for directory in (there, outside):
        directory.mkdir()
    for path in ("a", "d/b", "z"):
        (here / path).write_text(path)
    (there / "d").symlink_to(outside)
    named: list[str] = []
    with pytest.raises(NotADirectoryError):
        named.extend(Tree(here).move_each(["a", "d/b", "z"], Tree(there)))
    assert named == ["a", "d/b"]
    assert (there / "a").is_file()
    assert list(outside.iterdir()) == []
    assert (here / "z").is_file()
    assert held(tmp_path) == []
