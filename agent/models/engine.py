"""The download engine: threads that read ranges over HTTP into aligned buffers, check them hot and write them in place.

Measured recipe (per thread one connection and one buffer of huge pages, a slice a receive, CRC, O_DIRECT `pwrite`): a
fifth of the CPU of an asyncio client. Threads belong to the engine: cancelling `download` returns at once, the threads end within a slice or a
stall's patience, and the next `download` waits for them first, so that no stale thread writes beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agent.core.errors import PrewarmError, Transient
from agent.models.buffers import make_buffers
from agent.models.checksum import check_whole
from agent.models.concurrency import Concurrency
from agent.models.disk import RangeFiles
from agent.models.journal import Journal, Journaled, read_journal
from agent.models.manifest import Manifest
from agent.models.ordered import hash_of_nothing
from agent.models.paths import Tree
from agent.models.ranges import parts_of
from agent.models.source import S3Source
from agent.models.tail import Tail
from agent.models.tally import Tally
from agent.models.threads import in_thread
from agent.models.throttle import Throttle
from agent.models.transfer import FileProof, Transfer, Tuning
from agent.models.worker import Origin, Worker

BUFFERS_BYTES = 96 << 20  # all buffers together: with the interpreter and the S3 client below 200 MB
_LAST_SECONDS = 0.5  # threads end within this, unless the network hangs
FRESH_SECONDS = 5.0  # how often credentials are looked after while threads sign


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProgress:
    """One file that is begun and not whole: whole ranges of it count."""

    path: str
    done_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Bytes of a running download: `done_bytes` are here (also from an earlier run), `fetched_bytes` came over the wire.

    `files` are those under way.
    """

    done_bytes: int = 0
    total_bytes: int = 0
    fetched_bytes: int = 0
    files_done: int = 0
    files_total: int = 0
    files: tuple[FileProgress, ...] = ()


class Engine:
    """Downloads one version at a time into a directory: `DIR/files/…` and `DIR/journal`."""

    def __init__(
        self, *, connections: int = 8, bandwidth: int = 0, stall_seconds: float = 20.0, attempts: int = 6
    ) -> None:
        self._connections, self._stall_seconds, self._attempts = connections, stall_seconds, attempts
        self.part_bytes = max(1 << 20, min(8 << 20, BUFFERS_BYTES // connections >> 20 << 20))
        self.throttle, self.tally = Throttle(bandwidth), Tally()
        self.concurrency, self._tail = Concurrency(connections), Tail()
        self._transfer: Transfer | None = None
        self._threads: list[threading.Thread] = []

    @property
    def progress(self) -> Progress:
        """Return how far the running (or the last) download is."""
        if self._transfer is None:
            return Progress()
        done, fetched = self._transfer.counts()
        files_done, files = self._transfer.by_file()
        manifest = self._transfer.manifest
        return Progress(
            done_bytes=done,
            total_bytes=manifest.size_bytes,
            fetched_bytes=fetched,
            files_done=files_done,
            files_total=len(manifest.objects),
            files=tuple(FileProgress(path=p, done_bytes=d, size_bytes=s) for p, d, s in files),
        )

    async def download(
        self, manifest: Manifest, source: S3Source, directory: Path, have: Sequence[FileProof] = ()
    ) -> tuple[FileProof, ...]:
        """Bring every byte of a version below `directory`, checked and fsynced, and say how each file was proved.

        Resumes from a journal of the same version. Files in `have` are proved already and lie elsewhere: nothing of them is
        fetched or touched. Cancellable at once; what is on disk then can be resumed.

        Raises:
            SourceChanged: an object was replaced: discard `directory` and resolve again.
            Permanent: denied, corrupt at the source, or the disk is full.
            Transient: S3 or the disk failed for longer than the retries of a range.
        """
        await self._previous_threads()
        loop = asyncio.get_running_loop()
        bucket = await source.bucket(manifest.uri.bucket)
        tls = await source.tls() if bucket.scheme == "https" else None
        journaled, journal = self._open_journal(manifest, directory)
        try:
            part_bytes = journaled.part_bytes if journaled else self.part_bytes
            tuning = self._tuning()
            files = RangeFiles(Tree(directory / "files"))
            await in_thread(_prepare, manifest, files, directory, {p.path for p in have}, part_bytes)
            transfer = Transfer(
                manifest,
                files,
                journal,
                parts=parts_of(manifest, part_bytes),
                claimed=journaled.sums if journaled else {},
                tuning=tuning,
                have=have,
            )
        except BaseException:
            journal.close()
            raise
        self._transfer = transfer
        whole, ended = asyncio.Event(), asyncio.Event()
        count = min(self._connections, len(transfer.queue))
        left = _Countdown(count, partial(_tell, loop, whole), journal.close, files.close, partial(_tell, loop, ended))
        origin = Origin(source=source, bucket=bucket, tls=tls, loop=loop)
        workers = [Worker(transfer, origin, buffer) for buffer in make_buffers(count, part_bytes)]
        self._threads = [
            threading.Thread(target=_run, args=(w, left), name=f"download-{n}", daemon=True)
            for n, w in enumerate(workers)
        ]
        try:
            for thread in self._threads:
                thread.start()
            if count:
                await _until(whole, source, transfer)
        finally:
            transfer.stop.set()
            for worker in workers:
                worker.wire.abort()
        with contextlib.suppress(TimeoutError):  # one that still hangs is waited for by the next download
            async with asyncio.timeout(_LAST_SECONDS):
                await ended.wait()
        if transfer.error is not None:
            raise transfer.error
        return await in_thread(_settle, transfer)

    def _tuning(self) -> Tuning:
        return Tuning(
            throttle=self.throttle,
            concurrency=self.concurrency,
            tail=self._tail,
            tally=self.tally,
            stall_seconds=self._stall_seconds,
            attempts=self._attempts,
        )

    async def _previous_threads(self) -> None:
        """Wait until threads of a cancelled download are gone."""
        for thread in self._threads:
            await asyncio.to_thread(thread.join, self._stall_seconds + 10)
            if thread.is_alive():
                raise Transient("an earlier download still hangs in the disk or the network")
        self._threads = []

    def _open_journal(self, manifest: Manifest, directory: Path) -> tuple[Journaled | None, Journal]:
        digest, path = manifest.digest, directory / "journal"
        journaled = read_journal(path)
        if journaled is not None and (journaled.digest != digest or journaled.part_bytes > 2 * self.part_bytes):
            journaled = None
        part_bytes = journaled.part_bytes if journaled else self.part_bytes
        return journaled, Journal(path, digest, part_bytes, fresh=journaled is None)


class _Countdown:
    """Calls `whole` when all bytes are here or all `count` threads have ended, the others when all threads have ended."""

    def __init__(self, count: int, whole: Callable[[], None], *ended: Callable[[], None]) -> None:
        self._left, self._whole, self._ended, self._lock = count, whole, ended, threading.Lock()
        if not count:
            self._last()

    def one(self, *, nothing_left: bool) -> None:
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._last()
        elif nothing_left:
            self._whole()

    def _last(self) -> None:
        self._whole()
        for callback in self._ended:
            callback()


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(event.set)


def _run(worker: Worker, left: _Countdown) -> None:
    nothing_left = False
    try:
        nothing_left = worker.run()
    finally:
        left.one(nothing_left=nothing_left)


async def _until(ended: asyncio.Event, source: S3Source, transfer: Transfer) -> None:
    """Wait for the threads, keeping their credentials fresh."""
    while not ended.is_set():
        try:
            async with asyncio.timeout(FRESH_SECONDS):
                await ended.wait()
        except TimeoutError:
            try:
                async with asyncio.timeout(FRESH_SECONDS):
                    await source.keep_fresh()
            except (PrewarmError, TimeoutError):
                continue  # the old ones may still do; a range that is denied says so


def _prepare(manifest: Manifest, files: RangeFiles, directory: Path, have: Collection[str], part_bytes: int) -> None:
    (directory / "files").mkdir(exist_ok=True)
    wanted = {o.path: o.size for o in manifest.objects if o.path not in have}
    files.prepare(wanted, {path for path, size in wanted.items() if 0 < size <= part_bytes})


def _settle(transfer: Transfer) -> tuple[FileProof, ...]:
    """Finish the objects that have no bytes, make durable what is not yet, and put all proofs in order."""
    for entry in transfer.manifest.objects:
        if not entry.size and entry.path not in transfer.proofs:
            proof = check_whole(entry, [], hash_of_nothing(entry))
            transfer.files.finish(entry.path, 0, durably=False)
            transfer.proofs[entry.path] = FileProof(path=entry.path, crc64=0, proof=proof)
    transfer.files.make_durable()
    return tuple(transfer.proofs[o.path] for o in transfer.manifest.objects)
