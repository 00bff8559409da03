"""Fetches one model into any directory, without a store: `prewarm hydrate`, and pods that `prewarm wait --otherwise fetch`.

What is partial lies in `DIR/.prewarm/<digest>/`. Once the whole version is verified, its record is written there, the files move to
their places, and `DIR/.prewarm/manifest.json` says so. Killed at any instruction, the next call goes on from there.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent.core.errors import Invalid, Permanent, PrewarmError, Transient, cut
from agent.core.refs import Digest, ModelUri
from agent.models.checksum import UNPROVED, proof_of
from agent.models.disk import disk_error
from agent.models.engine import Engine, Progress
from agent.models.manifest import Manifest
from agent.models.paths import SideBySide, Tree, fsync_directories, fsync_directory, remove_tree
from agent.models.resolve import resolve
from agent.models.source import S3Source, open_source
from agent.models.threads import in_thread
from agent.models.transfer import FileProof
from agent.models.version import Version, broken_file, broken_files, load_version, record_version
from agent.models.wire import SourceChanged

HIDDEN, RECORD = ".prewarm", "manifest.json"
PROGRESS_SECONDS = 0.5
_FRESH_STARTS = 3  # how often a source that keeps changing is followed


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What is in the directory now. `fetched_bytes` came over the wire in this call."""

    digest: Digest
    size_bytes: int
    files: int
    proof: str
    fetched_bytes: int

    @property
    def is_unproved(self) -> bool:
        """True if the source states no checksum of some file."""
        return self.proof == UNPROVED


async def fetch(
    uri: ModelUri,
    directory: Path,
    *,
    engine: Engine | None = None,
    told: Callable[[Progress], None] | None = None,
) -> Fetched:
    """Bring every file of a model below `directory`, verified. Cancelled or killed, the next call resumes.

    `told` hears of progress twice a second.

    Raises:
        Permanent: denied, absent, corrupt, a full disk, or a file of the directory in the way.
        Transient: S3 is away, or another process fetches into the directory.
    """
    mover = engine or Engine()
    directory = await in_thread(directory.resolve)  # the person's own links are followed, none below it
    lock = _lock(directory)  # not in a thread: cancelled meanwhile, nobody would give it back
    try:
        async with open_source() as source:
            for attempt in range(_FRESH_STARTS):
                manifest = await resolve(uri, source)
                try:
                    return await _bring(manifest, source, directory, mover, told or (lambda _progress: None))
                except SourceChanged:  # listed again: what has changed is thrown away then, else it is resumed
                    if attempt == _FRESH_STARTS - 1:
                        raise
    finally:
        os.close(lock)
    raise AssertionError("unreachable")


async def _bring(
    manifest: Manifest, source: S3Source, directory: Path, engine: Engine, told: Callable[[Progress], None]
) -> Fetched:
    proof = await in_thread(_already, manifest, directory)
    if proof is not None:
        return _fetched(manifest, proof, 0)
    await in_thread(_refuse_what_is_in_the_way, manifest, directory)
    hidden = directory / HIDDEN
    staging = hidden / manifest.digest
    await in_thread(_tidy, hidden, staging)
    telling = asyncio.create_task(_tell(engine, told), name="progress")
    try:
        proofs = await engine.download(manifest, source, staging)
    finally:
        telling.cancel()
        await asyncio.wait({telling})
    told(engine.progress)
    await in_thread(_publish, manifest, proofs, directory)
    return _fetched(manifest, proof_of(p.proof for p in proofs), engine.progress.fetched_bytes)


async def _tell(engine: Engine, told: Callable[[Progress], None]) -> None:
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        told(engine.progress)


def _fetched(manifest: Manifest, proof: str, fetched_bytes: int) -> Fetched:
    return Fetched(
        digest=manifest.digest,
        size_bytes=manifest.size_bytes,
        files=len(manifest.objects),
        proof=proof,
        fetched_bytes=fetched_bytes,
    )


def _lock(directory: Path) -> int:
    """Take the directory for this process; the descriptor's end gives it back."""
    try:
        (directory / HIDDEN).mkdir(parents=True, exist_ok=True)
        fd = os.open(directory / HIDDEN / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Permanent(f"cannot write to {cut(directory, 200)}: {cut(os.strerror(error.errno or 0), 60)}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise Transient(f"another process is fetching into {cut(directory, 200)}") from error
    return fd


def _already(manifest: Manifest, directory: Path) -> str | None:
    """Return the proof of this version if an earlier call verified it and nothing was changed since; then it is in place."""
    version = _recorded(directory / HIDDEN, manifest)
    if version is not None and not broken_file(version, directory):
        return version.proof
    version = _recorded(directory / HIDDEN / manifest.digest, manifest)
    if version is not None and _finish(version, directory):
        return version.proof
    return None


def _recorded(at: Path, manifest: Manifest) -> Version | None:
    try:
        version = load_version(at)
    except Invalid:
        return None
    return version if version.digest == manifest.digest else None


def _finish(version: Version, directory: Path) -> bool:
    """Move what an earlier call, which was killed, left to move. Where a file was changed since, take the others back: False."""
    staging = directory / HIDDEN / version.digest
    staged, tree = Tree(staging / "files"), Tree(directory)
    left = {path for path, _ in broken_files(version, tree.root)}
    if not left & {path for path, _ in broken_files(version, staged.root)}:
        _put_in_place(version, directory)
        return True
    try:
        staged.root.mkdir(exist_ok=True)
        for _ in tree.move_each((r.path for r in version.files if r.path not in left), staged):
            pass
        fsync_directories(staged.root)
        (staging / RECORD).unlink()
        fsync_directory(staging)
    except OSError as error:
        raise disk_error(error, f"cannot take files back from {cut(directory, 200)}") from error
    return False


def _refuse_what_is_in_the_way(manifest: Manifest, directory: Path) -> None:
    paths = [entry.path for entry in manifest.objects]
    for entry, found in zip(manifest.objects, Tree(directory).stat_each(paths), strict=True):
        if entry.path.split("/")[0] == HIDDEN:
            raise Permanent(f"key {cut(ascii(entry.key), 200)} would lie in {HIDDEN}, where partial files are")
        if isinstance(found, FileNotFoundError):
            continue
        if isinstance(found, OSError):
            raise _in_the_way(found, directory, entry.path) from found
        if stat.S_ISDIR(found.st_mode):
            raise _in_the_way(IsADirectoryError(), directory, entry.path)


def _tidy(hidden: Path, staging: Path) -> None:
    """Throw away what was begun of other versions."""
    for each in hidden.iterdir():
        if each.name.startswith("sha256:") and each != staging:
            remove_tree(each)
    staging.mkdir(exist_ok=True)


def _publish(manifest: Manifest, proofs: tuple[FileProof, ...], directory: Path) -> None:
    """Note durably what is verified, before the first file moves: a call that is killed from here on is finished by the next."""
    hidden = directory / HIDDEN
    staging = hidden / manifest.digest
    staged = Tree(staging / "files")
    try:
        with SideBySide(staged) as files:
            for entry in manifest.objects:
                at, name = files.find(entry.path)
                _let_all_read(name, at)
        fsync_directories(staging)
        fsync_directory(hidden)
        fsync_directory(directory)
        version = record_version(staging, manifest, proofs, datetime.now(UTC))
    except OSError as error:
        raise disk_error(error, f"cannot write to {cut(staging, 200)}") from error
    _put_in_place(version, directory)


def _let_all_read(name: str, at: int) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        os.fchmod(fd, 0o644)
    finally:
        os.close(fd)


def _put_in_place(version: Version, directory: Path) -> None:
    """Move those files of a verified version to their places that are not there yet."""
    hidden = directory / HIDDEN
    staging = hidden / version.digest
    staged, tree = Tree(staging / "files"), Tree(directory)
    path = ""
    try:
        for path in staged.move_each((left for left, _ in broken_files(version, directory)), tree):  # noqa: B007 (an error names it)
            pass
        tree.make_names_durable(record.path for record in version.files)
        (staging / RECORD).replace(hidden / RECORD)  # it holds for the files where they are now
        fsync_directory(hidden)
        remove_tree(staging)
    except OSError as error:
        raise _in_the_way(error, directory, path) from error


def _in_the_way(error: OSError, directory: Path, path: str) -> PrewarmError:
    if isinstance(error, NotADirectoryError | IsADirectoryError) or error.errno == errno.ELOOP:
        told = f"a file, directory or link in {cut(directory, 200)} is in the way of the model's files"
        return Permanent(f"{told}: {cut(ascii(path), 200)} cannot be put there")
    return disk_error(error, f"cannot put the files into {cut(directory, 200)}")
