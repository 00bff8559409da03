"""A cgroup for each node in every hierarchy of the machine, for kubelet to build its own below."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path


def make(bed: str, node: str) -> None:
    """/<bed>/<node> in every hierarchy; in a version 2 one with all its controllers passed down."""
    for hierarchy in _hierarchies():
        (hierarchy / bed / node).mkdir(parents=True, exist_ok=True)
        if (hierarchy / "cgroup.controllers").exists():
            for parent in (hierarchy, hierarchy / bed):
                _pass_down(parent)


def _pass_down(group: Path) -> None:
    for controller in (group / "cgroup.controllers").read_text().split():
        with suppress(OSError):  # one that cannot be passed down is one the kubelet does without
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


def remove(group: str) -> None:
    """This cgroup and those below it (`<bed>` or `<bed>/<node>`), whose processes are gone."""
    for hierarchy in _hierarchies():
        for directory, _, _ in os.walk(hierarchy / group, topdown=False):
            _remove(Path(directory))


def _remove(directory: Path) -> None:
    for _ in range(20):  # the kernel may need a moment after the last process has gone
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return


def remains(bed: str) -> list[Path]:
    """The cgroups that still exist."""
    return [hierarchy / bed for hierarchy in _hierarchies() if (hierarchy / bed).exists()]


def _hierarchies() -> list[Path]:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(fields[1]) for fields in mounts if fields[2] in ("cgroup", "cgroup2")]
