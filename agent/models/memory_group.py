"""The cgroup that the memory tier is charged to: one parent with the limit, one child below it for each version.

Which versions are held, and how much each is charged, is the kernel's state: an agent that restarts finds it there. Version 1
of cgroups has been run against a real kernel; version 2 is written from the kernel's documentation (cgroup-v2.rst) and has
not been run. Nothing here reclaims by force: that would take pages from pods that have them mapped. All methods block briefly.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

from agent.core.errors import Invalid, Permanent
from agent.core.refs import Digest, parse_digest
from agent.core.units import format_size

_UNBOUNDED_BYTES = 1 << 60  # version 1 writes "no limit" as a number of nearly 2^63
_ABOVE_HIGH = 64 << 20  # version 2: reclaim at memory.high, and memory.max as a wall behind it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """What the two versions call the same things; `high` is "" where there is no soft limit that reclaims."""

    limit: str
    high: str
    usage: str


_V1 = _Files(limit="memory.limit_in_bytes", high="", usage="memory.usage_in_bytes")
_V2 = _Files(limit="memory.max", high="memory.high", usage="memory.current")


class MemoryGroup:
    """The parent called `name` and its children, in the node's cgroup file system at `root`."""

    def __init__(self, root: Path, name: str) -> None:
        self._v1 = (root / "memory" / "cgroup.procs").exists()
        self._files = _V1 if self._v1 else _V2
        self._top = root / "memory" if self._v1 else root
        self.path = self._top / name

    def make(self) -> None:
        """Make the parent, if it is not there.

        Raises:
            Permanent: this process may not, the kernel has no memory cgroups, or what is mounted is not the node's.
        """
        try:
            self._refuse_bounded()
            if not self._v1:
                _pass_memory_down(self._top)
            self.path.mkdir(exist_ok=True)
            if not self._v1:
                _pass_memory_down(self.path)
            self.used_bytes()
        except OSError as error:
            told = f"no memory cgroup can be made in {self._top}: {error.strerror}"
            raise Permanent(f"{told} (it takes root and the node's cgroup file system, see docs/memory.md)") from error

    def _refuse_bounded(self) -> None:
        """The node's root has no limit. One that has is this container's own cgroup: its limit would bound the weights."""
        limit = self._top / self._files.limit
        text = limit.read_text().strip() if limit.exists() else "max"
        if text.isdigit() and int(text) < _UNBOUNDED_BYTES:
            told = f"the memory cgroup at {self._top} is bounded to {format_size(int(text))}, so it is not the node's"
            raise Permanent(f"{told}: mount the node's /sys/fs/cgroup, as deploy/daemonset.yaml does")

    def outside(self) -> Path:
        """Return the file by which a process joins the node's root: no one is charged for what it brings in.

        Raises:
            Permanent: what is mounted is not the node's, or cannot be read.
        """
        try:
            self._refuse_bounded()
        except OSError as error:
            raise Permanent(f"no memory cgroup can be read in {self._top}: {error.strerror}") from error
        procs = self._top / "cgroup.procs"
        if not procs.exists():
            raise Permanent(f"there are no memory cgroups in {self._top}")
        return procs

    def limit(self, size_bytes: int) -> bool:
        """Set what all versions together may be charged; False where the kernel cannot get down to it (pinned pages)."""
        try:
            if self._files.high:
                (self.path / self._files.high).write_text(str(size_bytes))
            above = _ABOVE_HIGH if self._files.high else 0
            (self.path / self._files.limit).write_text(str(size_bytes + above))
        except OSError:
            return False
        return True

    def used_bytes(self) -> int:
        """Return what the parent is charged, all below it included."""
        return self._usage(self.path)

    def held(self) -> dict[Digest, int]:
        """Return the versions that have a cgroup, and what each is charged; empty where there is no parent."""
        found = {}
        for directory in self.path.iterdir() if self.path.is_dir() else ():
            with contextlib.suppress(OSError, ValueError, Invalid):
                if directory.is_dir():
                    found[parse_digest(directory.name.replace("-", ":"))] = self._usage(directory)
        return found

    def procs(self, digest: Digest) -> Path:
        """Return the file by which a process joins a version's cgroup, made if absent."""
        self._child(digest).mkdir(exist_ok=True)
        return self._child(digest) / "cgroup.procs"

    def remove(self, digest: Digest) -> bool:
        """Remove a version's cgroup; what it is still charged counts for the parent until it is reclaimed.

        False where it is still there: a reader that was killed a moment ago may be in it.
        """
        try:
            self._child(digest).rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True

    def _child(self, digest: Digest) -> Path:
        return self.path / digest.replace(":", "-")

    def _usage(self, directory: Path) -> int:
        return int((directory / self._files.usage).read_text())


def group_name(node: str, root: Path) -> str:
    """Return the parent's name for an agent: its node's, else one of its root, for agents that run beside each other."""
    return f"prewarm-memory-{node or hashlib.sha256(bytes(root)).hexdigest()[:8]}"


def _pass_memory_down(group: Path) -> None:
    control = group / "cgroup.subtree_control"
    if "memory" not in control.read_text().split():
        control.write_text("+memory")
