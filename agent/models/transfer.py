"""One download as its threads share it (`Transfer`), and what one thread does (`Worker`)."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from typing import Any

from agent.core.errors import Permanent, PrewarmError, Transient, cut
from agent.core.retry import Backoff
from agent.models.channel import Tls
from agent.models.checksum import RangeSums, check_whole, sum_range, whole_crc64
from agent.models.disk import RangeFiles
from agent.models.journal import Journal
from agent.models.manifest import Manifest, ObjectEntry
from agent.models.ranges import Part
from agent.models.source import Bucket, S3Source
from agent.models.throttle import Throttle
from agent.models.wire import Denied, RangeFailed, SourceChanged, Wire

RENEW_SECONDS = 60.0  # credentials refused again so soon after they were renewed are refused for good


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProof:
    """One complete file: its own CRC64NVME, and the algorithm by which the source proved it (or `UNPROVED`)."""

    path: str
    crc64: int
    proof: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the bytes come from; `loop` is the one that `source` belongs to."""

    source: S3Source
    bucket: Bucket
    tls: Tls | None
    loop: asyncio.AbstractEventLoop


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How each thread works: its patience with a silent connection, its attempts at one range."""

    throttle: Throttle
    stall_seconds: float
    attempts: int


class Ended(Exception):
    """The download was stopped; the thread goes home."""


class Transfer:
    """What the threads of one download share. Everything below `lock` is guarded by it."""

    def __init__(
        self,
        manifest: Manifest,
        files: RangeFiles,
        journal: Journal,
        *,
        parts: Iterable[Part],
        claimed: Mapping[tuple[int, int], RangeSums],
        have: Iterable[FileProof] = (),
    ) -> None:
        self.manifest, self.files, self.journal = manifest, files, journal
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.proofs = {p.path: p for p in have}
        self.queue = deque(p for p in parts if manifest.objects[p.file].path not in self.proofs)
        self._parts: dict[int, list[Part]] = {}
        for part in self.queue:
            self._parts.setdefault(part.file, []).append(part)
        self._claimed = dict(claimed)
        self._sums: dict[int, dict[int, RangeSums]] = {}
        self._again: set[int] = set()
        self.error: BaseException | None = None
        self._done, self._fetched = sum(o.size for o in manifest.objects if o.path in self.proofs), 0
        self.renewed_at = float("-inf")
        self.renew_lock = threading.Lock()
        self.with_versions = True  # turns False where only the plain key may be read; If-Match guards it all the same

    def counts(self) -> tuple[int, int]:
        """Return bytes that are here, and bytes that came over the wire."""
        with self.lock:
            return self._done, self._fetched

    def by_file(self) -> tuple[int, list[tuple[str, int, int]]]:
        """Return how many files are whole, and path, bytes here and size of those that are begun and not whole."""
        objects = self.manifest.objects
        with self.lock:
            begun = [(objects[f], sum(s.length for s in sums.values())) for f, sums in self._sums.items()]
            open_ = [(o.path, done, o.size) for o, done in begun if o.path not in self.proofs]
            return len(self.proofs), open_

    def count(self, done: int, fetched: int) -> None:
        """Add to both counts; a range that failed is taken off again."""
        with self.lock:
            self._done += done
            self._fetched += fetched

    def take(self) -> tuple[Part, RangeSums | None] | None:
        """Return the next range and what the journal claims of it; None when none is left or all shall stop."""
        with self.lock:
            if self.stop.is_set() or not self.queue:
                return None
            part = self.queue.popleft()
            claim = self._claimed.pop((part.file, part.offset), None)
        return part, claim if claim is not None and claim.length == part.length else None

    def finished(self, part: Part, sums: RangeSums) -> list[RangeSums] | None:
        """Note a range that is on disk; returns all ranges of its file, in order, to the thread that brought the last."""
        with self.lock:
            have = self._sums.setdefault(part.file, {})
            have[part.offset] = sums
            if len(have) < len(self._parts[part.file]):
                return None
            return [have[o] for o in sorted(have)]

    def fetch_again(self, file: int, why: Permanent) -> None:
        """Fetch a file anew, once, after its checksum differed: the wire or the disk may have been at fault.

        Raises:
            Permanent: `why`, the second time.
        """
        with self.lock:
            if file in self._again:
                raise why
            self._again.add(file)
            self._done -= sum(p.length for p in self._parts[file])
            del self._sums[file]
            self.queue.extendleft(reversed(self._parts[file]))

    def fail(self, error: BaseException) -> None:
        """Stop everything; the first error is the one that counts."""
        with self.lock:
            if self.error is None and not self.stop.is_set():
                self.error = error
        self.stop.set()


class Worker:
    """One thread: takes ranges until none is left."""

    def __init__(self, transfer: Transfer, origin: Origin, tuning: Tuning, buffer: memoryview) -> None:
        self._transfer, self._source, self._bucket, self._loop = transfer, origin.source, origin.bucket, origin.loop
        self._throttle, self._attempts = tuning.throttle, tuning.attempts
        self._buffer = buffer
        self._rng = random.Random()  # noqa: S311 (jitter)
        self._part_fetched = 0
        self.wire = Wire(origin.bucket, origin.tls, tuning.stall_seconds)

    def run(self) -> None:
        """Work until nothing is left, an error, or a stop; never raises."""
        try:
            while (taken := self._transfer.take()) is not None:
                self._one(*taken, self._buffer)
        except Ended:
            pass
        except PrewarmError as error:
            self._transfer.fail(error)
        except Exception as error:  # noqa: BLE001 (a thread's edge: a bug must reach the one who awaits)
            self._transfer.fail(error)
        finally:
            self.wire.close()

    def _one(self, part: Part, claim: RangeSums | None, view: memoryview) -> None:
        entry, files = self._transfer.manifest.objects[part.file], self._transfer.files
        sums = self._recheck(entry, part, claim, view)
        if sums is None:
            self._fetch(entry, part, view)
            sums = sum_range(entry, part.offset, view[: part.length])
            files.write(entry.path, view, part.offset, part.length)
            self._transfer.journal.append(part, sums)
        else:
            self._transfer.count(part.length, 0)
        whole = self._transfer.finished(part, sums)
        if whole is not None:
            self._whole(entry, part.file, whole, view)

    def _recheck(self, entry: ObjectEntry, part: Part, claim: RangeSums | None, view: memoryview) -> RangeSums | None:
        """Read back a range the journal claims; None if it is not what was claimed."""
        if claim is None or not self._transfer.files.read(entry.path, view, part.offset, part.length):
            return None
        found = sum_range(entry, part.offset, view[: part.length])
        return found if found == claim else None

    def _whole(self, entry: ObjectEntry, file: int, sums: list[RangeSums], view: memoryview) -> None:
        files = self._transfer.files

        def reread(hasher: Any) -> None:
            files.hash(entry.path, view, entry.size, _Stoppable(hasher, self._transfer.stop))

        try:
            proof = check_whole(entry, sums, reread)
        except Permanent as differs:
            self._transfer.fetch_again(file, differs)
            return
        files.finish(entry.path, entry.size)
        with self._transfer.lock:
            self._transfer.proofs[entry.path] = FileProof(path=entry.path, crc64=whole_crc64(sums), proof=proof)

    def _fetch(self, entry: ObjectEntry, part: Part, view: memoryview) -> None:
        backoff = Backoff(base_seconds=0.2, cap_seconds=10, floor_seconds=0.02)
        while True:
            signed_at = time.monotonic()
            try:
                self._read(entry, part, view[: part.length])
            except RangeFailed as error:
                backoff = backoff.failed()
                if backoff.failures >= self._attempts:
                    raise Transient(f"{_where(entry)}: {error}, {backoff.failures} times in a row") from error
                self._pause(backoff.delay_seconds(self._rng))
            except SourceChanged as error:
                raise SourceChanged(f"{_where(entry)}: {error}") from error
            except Denied as error:
                self._denied(entry, error, signed_at)
            else:
                return

    def _read(self, entry: ObjectEntry, part: Part, into: memoryview) -> None:
        path = self._bucket.path(entry.key, entry.version_id if self._transfer.with_versions else "")
        headers = {"Range": f"bytes={part.offset}-{part.offset + part.length - 1}", "If-Match": entry.etag}
        signed = self._source.sign(self._bucket, path, headers)
        self._part_fetched = 0
        try:
            self.wire.read(
                path,
                signed,
                into,
                offset=part.offset,
                total=entry.size,
                etag=entry.etag,
                before_slice=self._before_slice,
            )
        except BaseException:
            self._transfer.count(-self._part_fetched, 0)
            self._stopped()
            raise

    def _before_slice(self, size: int) -> None:
        self._throttle.wait(size, self._transfer.stop)
        self._stopped()
        self._part_fetched += size
        self._transfer.count(size, size)

    def _stopped(self) -> None:
        if self._transfer.stop.is_set():
            raise Ended

    def _pause(self, seconds: float) -> None:
        self._transfer.stop.wait(seconds)
        self._stopped()

    def _denied(self, entry: ObjectEntry, error: Denied, signed_at: float) -> None:
        """Renew the credentials once for all threads; then do without version ids; then give up."""
        transfer = self._transfer
        with transfer.renew_lock:
            if transfer.renewed_at > signed_at:
                return  # another thread has renewed them since
            if time.monotonic() - transfer.renewed_at > RENEW_SECONDS:
                self._renew()
                transfer.renewed_at = time.monotonic()
            elif entry.version_id and transfer.with_versions:
                transfer.with_versions = False
            else:
                raise Permanent(f"{_where(entry)}: {error}") from error

    def _renew(self) -> None:
        asked = asyncio.run_coroutine_threadsafe(self._source.renew(), self._loop)
        deadline = time.monotonic() + 30
        while True:
            self._stopped()
            try:
                return asked.result(timeout=0.1)
            except NotYet:
                if asked.done() or time.monotonic() > deadline:
                    raise Transient("cannot renew the AWS credentials: no answer") from None


class _Stoppable:
    """A hash that stops with the download: hashing a large file takes minutes."""

    def __init__(self, hasher: Any, stop: threading.Event) -> None:
        self._hasher, self._stop = hasher, stop

    def update(self, view: memoryview) -> None:
        if self._stop.is_set():
            raise Ended
        self._hasher.update(view)


def _where(entry: ObjectEntry) -> str:
    return f"key {cut(ascii(entry.key), 200)}"
