"""Files of a tree are looked at one directory at a time, with the same answers as one by one."""

from __future__ import annotations

import os
from pathlib import Path

from agent.models.paths import Tree

PATHS = ["a", "d/b", "d/c", "d/none", "none/x", "d/e/f", "link/b", "a/x", "d/to-a", "a"]


def test_each_file_is_told_as_it_is_alone_and_no_descriptor_is_kept(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    for name in ("a", "d/b", "d/c", "d/e/f"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "d/to-a").symlink_to("../a")
    tree, before = Tree(tmp_path), len(os.listdir("/proc/self/fd"))
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
    del begun  # as a caller that stops at the first difference
    assert len(os.listdir("/proc/self/fd")) == before
