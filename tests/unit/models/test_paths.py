"""Files of a tree are looked at one directory at a time, with the same answers as one by one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

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
