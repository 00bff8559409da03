"""The store: committed versions, partial downloads, trash. A version becomes visible by one rename and is never half there.

    store/<digest>/files/…, manifest.json      committed, read-only
    staging/<digest>/files/…, journal, kept/…  partial, resumable (`kept` has the rest)
    trash/…                                    on its way out; removed at start and after each removal
    pins/<digest>.json                         kept whatever comes

All methods block on the disk: call them in a thread, one at a time. Killed at any instruction, `open` puts it right.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog

from agent.core.errors import Invalid, Permanent, cut
from agent.core.refs import Digest, is_digest, parse_digest
from agent.models.capacity import NoRoom, space_of
from agent.models.kept import (
    JOURNAL,
    REPAIR,
    SALVAGE,
    begin_repair,
    committed_once,
    donors_of,
    drop_inodes,
    keep,
    staged_bytes,
    take_kept,
)
from agent.models.manifest import Manifest
from agent.models.parts import journaled_sums
from agent.models.paths import fsync_directories, fsync_directory, remove_tree
from agent.models.pins import Pins
from agent.models.transfer import FileProof
from agent.models.usage import allocated_bytes
from agent.models.verify import verify_version
from agent.models.version import FileRecord, Version, broken_file, broken_files, load_version, record_version

log = structlog.get_logger(__name__)
_COMMITTED = ("files", "manifest.json")
_PARTS = ("store", "staging", "trash", "refs", "views", "pins")


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """A download that can be resumed: so many bytes need not be fetched again."""

    digest: Digest
    done_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is on disk: proved versions, broken ones with why, and partial downloads."""

    versions: tuple[Version, ...]
    broken: tuple[tuple[Digest, str], ...]
    partial: tuple[Partial, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """An admitted version: where it is brought to, and the files it need not fetch."""

    directory: Path
    have: tuple[FileRecord, ...]


class Store:
    """Everything below one root. `step` is called with the name of each step of a commit or removal, for crash tests."""

    def __init__(self, root: Path, *, step: Callable[[str], None] = lambda _name: None) -> None:
        self.root = root
        self._step = step
        self._lock_fd = -1
        self._pins = Pins(root / "pins")
        self._reserved: dict[Digest, int] = {}  # bytes that admitted downloads will have taken when they are through

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
        """Put the root in order and say what is there: sweep trash and staging, prove every committed version.

        A version of which some files are broken becomes a partial download of these.
        """
        for name in _PARTS:
            (self.root / name).mkdir(exist_ok=True)
        self.empty_trash()
        whole = {v.digest for v in self.look().versions}
        broken = []
        for directory in sorted((self.root / "store").iterdir()):
            if directory.name in whole and (directory / REPAIR).exists():
                self._to_staging(directory)
            elif directory.name in whole:
                _leave_only(directory, _COMMITTED)  # a crash right after the rename, or in the middle of a repair
                directory.chmod(0o555)
            else:
                broken.append((directory.name, self._adopt_broken(directory)))
        found = self.look()
        partial = {p.digest for p in found.partial}
        for directory in sorted((self.root / "staging").iterdir()):
            if directory.name not in partial:
                self._to_trash(directory)
        self.empty_trash()
        named = tuple((Digest(name), why) for name, why in broken if is_digest(name))
        return Found(versions=found.versions, broken=named, partial=found.partial)

    def _adopt_broken(self, directory: Path) -> str:
        """Make the best of a version that is not as it was committed; returns why it is not."""
        try:
            version = load_version(directory)
            why = self._not_at_home(version, directory)
        except Invalid as error:
            why = str(error)
        if why:
            self._to_trash(directory)
            return why
        broken = self.broken(version)
        self.forget(frozenset(r.inode for r in version.files if r.path in broken))
        self.demote(version, broken)
        return next(iter(broken.values()), "")

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

    def _partial(self) -> Iterator[Partial]:
        for directory in self._below("staging"):
            if is_digest(directory.name) and not self._is_there(digest := Digest(directory.name)):
                done = staged_bytes(directory, digest)
                if done is not None:
                    yield Partial(digest=digest, done_bytes=done)

    def _is_there(self, digest: Digest) -> bool:
        return self.directory(digest).exists()

    def directory(self, digest: Digest) -> Path:
        """Return where a committed version lies."""
        return self.root / "store" / parse_digest(digest)

    def admit(self, manifest: Manifest, high_watermark: float, versions: Iterable[Version] = ()) -> Staged:
        """Make or take up the staging directory of a version, link what `versions` have of it, and reserve room for the rest.

        Raises:
            NoRoom: it does not fit, with numbers.
        """
        fresh = not (self.root / "staging" / manifest.digest).exists()
        directory = self.stage(manifest.digest)
        have = keep(directory, manifest, donors_of((v, self.directory(v.digest) / "files") for v in versions))
        target = manifest.size_bytes - sum(r.size for r in have)
        reserved = sum(
            max(0, bytes_wanted - allocated_bytes(self.root / "staging" / digest / "files"))
            for digest, bytes_wanted in list(self._reserved.items())  # `release` is called from the loop
            if digest != manifest.digest
        )
        needed = max(0, target - allocated_bytes(directory / "files"))
        try:
            space_of(self.root).check(needed, high_watermark, reserved)
        except NoRoom:
            if fresh:
                remove_tree(directory)
            if not (directory / SALVAGE).exists():
                raise
            remove_tree(directory / SALVAGE)  # rather fetch a bad file as a whole than not at all
            space_of(self.root).check(needed, high_watermark, reserved)
        self._reserved[manifest.digest] = target
        return Staged(directory=directory, have=have)

    def release(self, digest: Digest) -> None:
        """Give up what was reserved for a version; what it took on the disk stays."""
        self._reserved.pop(digest, None)

    def stage(self, digest: Digest) -> Path:
        """Return the staging directory of a version, made if absent; what is in it may be resumed."""
        directory = self.root / "staging" / parse_digest(digest)
        directory.mkdir(exist_ok=True)
        return directory

    def former(self, digest: Digest) -> Manifest | None:
        """Return the manifest of a staged version that was committed before, which need not be resolved again."""
        version = committed_once(self.root / "staging" / parse_digest(digest))
        return version.manifest if version and version.digest == digest else None

    def forget(self, inodes: Collection[int]) -> None:
        """Drop files that have turned out to be bad from what downloads have kept of them.

        To be done before a version that has them is moved: killed in between, it is still there to be found bad again.
        """
        for staged in self._below("staging"):
            drop_inodes(staged, frozenset(inodes))

    def demote(self, version: Version, bad: Collection[str]) -> Partial:
        """Make a committed version a partial download again, in one step, that lacks the files in `bad`; `forget` these first.

        Of those, files whose size and times are as they were may be salvaged. Nothing is written through their inodes, which
        other versions may share.
        """
        directory = self.directory(version.digest)
        good = [r for r in version.files if r.path not in bad]
        lacking = [r for r in version.files if r.path in bad]
        directory.chmod(0o755)
        begin_repair(directory, version, good, lacking)
        self._step("repair-noted")
        self._to_staging(directory)
        done = staged_bytes(self.root / "staging" / version.digest, version.digest) or 0
        return Partial(digest=version.digest, done_bytes=done)

    def _to_staging(self, directory: Path) -> None:
        staged = self.root / "staging" / directory.name
        self._to_trash(staged)
        for at, below, _ in os.walk(directory):
            for name in below:
                (Path(at) / name).chmod(0o755)
        directory.chmod(0o755)
        directory.rename(staged)
        self._step("demoted")
        fsync_directory(directory.parent)
        fsync_directory(staged.parent)

    def discard(self, digest: Digest) -> None:
        """Throw a partial download away."""
        self.release(digest)
        self._to_trash(self.root / "staging" / parse_digest(digest))
        self.empty_trash()

    def commit(self, manifest: Manifest, proofs: Iterable[FileProof], now: datetime) -> Version:
        """Make a complete staged version visible. Its files are fsynced already; a broken one in its place goes to trash.

        Raises:
            Transient: a file that need not be fetched is not as it was.
        """
        digest = manifest.digest
        staged, target = self.root / "staging" / digest, self.directory(digest)
        sums = dict(journaled_sums(staged / JOURNAL, manifest))
        sums |= {path: record.sums for path, record in take_kept(staged).items()}
        self._step("kept-moved")
        for directory, _, names in os.walk(staged / "files"):
            for name in names:
                (Path(directory) / name).chmod(0o444)
        self._step("made-read-only")
        version = record_version(staged, manifest, proofs, now, sums=sums)
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
        _leave_only(target, _COMMITTED)
        target.chmod(0o555)
        self.release(digest)
        self._step("committed")
        self.empty_trash()
        return version

    def prove(self, version: Version) -> str:
        """Compare a committed version with its record; "" if it is intact, else why not."""
        return broken_file(version, self.directory(version.digest) / "files")

    def broken(self, version: Version) -> dict[str, str]:
        """Compare every file of a committed version with its record; the paths that differ, with a sentence each."""
        return dict(broken_files(version, self.directory(version.digest) / "files"))

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
        """Read every byte of a committed version back; see `verify_version`."""
        return verify_version(version, self.directory(version.digest), before_slice)

    def _to_trash(self, path: Path) -> None:
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            path.chmod(0o755)  # moving a directory writes its "..", which needs write permission for all but root
            path.rename(self.root / "trash" / f"{path.name[:100]}-{secrets.token_hex(8)}")
            fsync_directory(path.parent)

    def empty_trash(self) -> None:
        """Unlink everything in trash; what cannot be unlinked stays until the next time, and is in nobody's way."""
        for each in (self.root / "trash").iterdir():
            try:
                remove_tree(each)
            except OSError as error:
                log.warning("cannot empty the trash", path=str(each), error=cut(os.strerror(error.errno or 0), 60))


def _leave_only(directory: Path, names: Collection[str]) -> None:
    """Remove what does not belong to a committed version."""
    extra = [p for p in directory.iterdir() if p.name not in names]
    if extra:
        directory.chmod(0o755)
    for each in extra:
        remove_tree(each)
