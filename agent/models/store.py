"""The store: committed versions, partial downloads, trash. A version becomes visible by one rename and is never half there.

    store/<digest>/files/…, manifest.json      committed, read-only
    staging/<digest>/files/…, journal          partial, resumable
    trash/…                                    on its way out; removed at start and after each removal
    pins/<digest>.json                         kept whatever comes

All methods block on the disk: call them in a thread, one at a time. Killed at any instruction, `open` puts it right.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from agent.core.errors import Invalid, Permanent, cut
from agent.core.inventory import CacheUse
from agent.core.refs import Digest, is_digest, parse_digest
from agent.core.units import format_size
from agent.models.disk import RangeFiles
from agent.models.journal import Journaled, read_journal
from agent.models.manifest import Manifest
from agent.models.parts import journaled_sums, part_is_good, read_buffer
from agent.models.paths import Tree, fsync_directories, fsync_directory, remove_tree
from agent.models.pins import Pins
from agent.models.transfer import FileProof
from agent.models.version import Version, broken_file, load_version, record_version

_PARTS = ("store", "staging", "trash", "refs", "views", "pins")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was on disk at start: proved versions, broken ones (moved to trash) with why, and partial downloads."""

    versions: tuple[Version, ...]
    broken: tuple[tuple[Digest, str], ...]
    partial: tuple[Journaled, ...]


class Store:
    """Everything below one root. `step` is called with the name of each step of a commit or removal, for crash tests."""

    def __init__(self, root: Path, *, step: Callable[[str], None] = lambda _name: None) -> None:
        self.root = root
        self._step = step
        self._lock_fd = -1
        self._pins = Pins(root / "pins")

    def try_lock(self) -> bool:
        """Take the root for this process; False while another process has it. Released when the process ends.

        Raises:
            OSError: the root cannot be made.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        if self._lock_fd < 0:
            self._lock_fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self) -> None:
        """Give the root back."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def open(self) -> Found:
        """Put the root in order and say what is there: sweep trash and staging, prove every committed version."""
        for name in _PARTS:
            (self.root / name).mkdir(exist_ok=True)
        self.empty_trash()
        found = self.look()
        whole = {v.digest for v in found.versions}
        for directory in sorted((self.root / "store").iterdir()):
            if directory.name not in whole:
                self._to_trash(directory)
                continue
            (directory / "journal").unlink(missing_ok=True)  # left by a crash right after the rename
            directory.chmod(0o555)
        partial = {j.digest for j in found.partial}
        for directory in sorted((self.root / "staging").iterdir()):
            if directory.name not in partial:
                self._to_trash(directory)
        self.empty_trash()
        return found

    def look(self) -> Found:
        """Say what is there, each version proved by its record, and change nothing: also beside a running agent."""
        versions, broken = [], []
        for directory in self._below("store"):
            try:
                version = load_version(directory)
                why = self._not_at_home(version, directory) or broken_file(version, directory / "files")
            except Invalid as error:
                version, why = None, str(error)
            if version is not None and not why:
                versions.append(version)
            elif is_digest(directory.name):
                broken.append((Digest(directory.name), why))
        return Found(versions=tuple(versions), broken=tuple(broken), partial=tuple(self._partial()))

    def _below(self, name: str) -> list[Path]:
        directory = self.root / name
        return sorted(directory.iterdir()) if directory.is_dir() else []

    @staticmethod
    def _not_at_home(version: Version, directory: Path) -> str:
        return "" if version.digest == directory.name else "it lies under another version's name"

    def _partial(self) -> Iterator[Journaled]:
        for directory in self._below("staging"):
            journaled = read_journal(directory / "journal")
            if journaled is not None and journaled.digest == directory.name and not self._is_there(journaled.digest):
                yield journaled

    def _is_there(self, digest: Digest) -> bool:
        return self.directory(digest).exists()

    def directory(self, digest: Digest) -> Path:
        """Return where a committed version lies."""
        return self.root / "store" / parse_digest(digest)

    def admit(self, manifest: Manifest, high_watermark: float) -> None:
        """Check that a version fits, what it already has in staging counted.

        Raises:
            Permanent: it does not, with numbers.
        """
        space = os.statvfs(self.root)
        capacity, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
        allowed = min(free, free - int((1 - high_watermark) * capacity))
        needed = manifest.size_bytes - _allocated(self.root / "staging" / manifest.digest)
        if needed > allowed:
            raise Permanent(
                f"needs {format_size(needed)} but only {format_size(max(0, allowed))} may be used: the store's file system "
                f"has {format_size(free)} free of {format_size(capacity)} and is filled to {high_watermark:.0%} at most"
            )

    def stage(self, digest: Digest) -> Path:
        """Return the staging directory of a version, made if absent; what is in it may be resumed."""
        directory = self.root / "staging" / parse_digest(digest)
        directory.mkdir(exist_ok=True)
        return directory

    def discard(self, digest: Digest) -> None:
        """Throw a partial download away."""
        self._to_trash(self.root / "staging" / parse_digest(digest))
        self.empty_trash()

    def commit(self, manifest: Manifest, proofs: Iterable[FileProof], now: datetime) -> Version:
        """Make a complete staged version visible. Its files are fsynced already; a broken one in its place goes to trash."""
        digest = manifest.digest
        staged, target = self.root / "staging" / digest, self.directory(digest)
        for directory, _, names in os.walk(staged / "files"):
            for name in names:
                (Path(directory) / name).chmod(0o444)
        self._step("made-read-only")
        version = record_version(staged, manifest, proofs, now, sums=journaled_sums(staged / "journal", manifest))
        self._step("manifest-written")
        fsync_directories(staged)
        for directory, below, _ in os.walk(staged):
            for name in below:
                (Path(directory) / name).chmod(0o555)
        self._step("directories-synced")
        if target.exists():
            self._to_trash(target)
        staged.rename(target)
        self._step("renamed")
        fsync_directory(target.parent)
        fsync_directory(staged.parent)
        self._step("store-synced")
        (target / "journal").unlink(missing_ok=True)
        target.chmod(0o555)
        self._step("committed")
        self.empty_trash()
        return version

    def prove(self, version: Version) -> str:
        """Compare a committed version with its record; "" if it is intact, else why not."""
        return broken_file(version, self.directory(version.digest) / "files")

    def remove(self, digest: Digest) -> None:
        """Take a version away: into trash by one rename, then unlinked. The caller has withdrawn every claim to it."""
        self._to_trash(self.directory(digest))
        self._step("moved-to-trash")
        self.empty_trash()

    def remove_unpinned(self, digest: Digest, before: Callable[[], None] = lambda: None) -> bool:
        """As `remove`, but False, and nothing done, where the version is pinned. `before` is called once it is known not to."""
        with self._pins.locked():
            if digest in self._pins.all():
                return False
            before()
            self._to_trash(self.directory(digest))
        self._step("moved-to-trash")
        self.empty_trash()
        return True

    def pin(self, digest: Digest, now: datetime) -> None:
        """Keep a version, whatever comes, until it is unpinned. Also beside a running agent.

        Raises:
            Permanent: it is not committed here.
        """
        there = self._is_there(digest)  # first without the lock, which would make the directory of a mistyped root
        if there:
            with self._pins.locked():
                there = self._is_there(digest)
                if there:
                    self._pins.add(digest, now)
        if not there:
            raise Permanent(f"version {digest[:19]} is not committed here: only what is here can be pinned")

    def unpin(self, digest: Digest) -> bool:
        """Lift a pin; False if there was none. Also beside a running agent."""
        if digest not in self._pins.all():
            return False
        with self._pins.locked():
            return self._pins.remove(digest)

    def pinned(self) -> frozenset[Digest]:
        """Return the versions that are pinned."""
        return self._pins.all()

    def verify(self, version: Version, before_slice: Callable[[int], None] = lambda _size: None) -> str:
        """Read every byte of a committed version back; "" if it is as it was committed, else one sentence.

        Past the page cache where the file system can. Also beside a running agent. `before_slice` hears how many bytes are
        read next, and may raise to end it.
        """
        if why := self.prove(version):
            return why
        files = RangeFiles(Tree(self.directory(version.digest) / "files"))
        with read_buffer() as buffer:
            for record in version.files:
                for part in record.sums.ranges(record.size, record.crc64):
                    if not part_is_good(files, record.path, part, buffer, before_slice):
                        name, end = cut(ascii(record.path), 200), part.offset + part.length
                        return f"{name} is damaged between byte {part.offset} and byte {end}"
        return ""

    def _to_trash(self, path: Path) -> None:
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            path.chmod(0o755)  # moving a directory writes its "..", which needs write permission for all but root
            path.rename(self.root / "trash" / f"{path.name[:100]}-{secrets.token_hex(8)}")
            fsync_directory(path.parent)

    def empty_trash(self) -> None:
        """Unlink everything in trash."""
        for each in (self.root / "trash").iterdir():
            remove_tree(each)

    def use(self, versions: Iterable[Version]) -> CacheUse:
        """Return how full store and file system are."""
        space = shutil.disk_usage(self.root)
        staged = sum(_allocated(d) for d in (self.root / "staging").iterdir())
        used = sum(v.manifest.size_bytes for v in versions) + staged
        return CacheUse(used_bytes=used, free_bytes=space.free, capacity_bytes=space.total)


def _allocated(directory: Path) -> int:
    total = 0
    for at, _, names in os.walk(directory):
        total += sum(os.lstat(os.path.join(at, name)).st_blocks * 512 for name in names)
    return total
