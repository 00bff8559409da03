"""One download as its threads share it (`Transfer`), and what one thread does (`Worker`)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass

from agent.core.errors import Permanent, PrewarmError, Transient, cut
from agent.core.retry import Backoff
from agent.models.channel import Tls
from agent.models.checksum import RangeSums, check_whole, hash_of, sum_range, whole_crc64
from agent.models.concurrency import Concurrency
from agent.models.disk import RangeFiles
from agent.models.flights import Copy, Flights, Superseded
from agent.models.journal import Journal
from agent.models.manifest import Manifest, ObjectEntry
from agent.models.ordered import OrderedHash
from agent.models.ranges import Part
from agent.models.source import Bucket, S3Source
from agent.models.tail import Tail
from agent.models.tally import Outcome, Tally
from agent.models.throttle import Throttle
from agent.models.wire import Busy, Denied, RangeFailed, SourceChanged, Wire

IDLE_SECONDS = 0.05  # how often a thread without work looks whether a range is late
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
    """How each thread works: its patience with a silent connection, its attempts at one range.

    What is shared by all downloads of the node: `throttle`, `concurrency`, `tail` and `tally`.
    """

    throttle: Throttle
    concurrency: Concurrency
    tail: Tail
    tally: Tally
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
        tuning: Tuning,
        have: Iterable[FileProof] = (),
    ) -> None:
        self.manifest, self.files, self.journal, self.tuning = manifest, files, journal, tuning
        self.stop = threading.Event()
        self.lock = threading.Condition()
        self._flights = Flights(tuning.tail)
        self._hashes: dict[int, OrderedHash] = {}
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

    def take(self, wire: Wire) -> Copy | None:
        """Return the range to fetch next, or a second copy of one that is late; None when all is done or shall stop."""
        with self.lock:
            while not self.stop.is_set():
                if second := self._flights.second(wire.abort):
                    return second
                if self.queue:
                    part = self.queue.popleft()
                    claim = self._claimed.pop((part.file, part.offset), None)
                    trusted = claim if claim is not None and claim.length == part.length else None
                    return self._flights.start(part, trusted, wire.abort)
                if not self._flights:
                    return None
                self.lock.wait(IDLE_SECONDS)
            return None

    def wins(self, copy: Copy) -> bool:
        """Say whether this copy of a range is the one to write."""
        with self.lock:
            return self._flights.wins(copy)

    def end(self, copy: Copy, fetched_bytes: int) -> None:
        """Note that a thread is done with its copy of a range, whatever came of it."""
        with self.lock:
            self._flights.end(copy, fetched_bytes)
            self.lock.notify_all()

    def hash_of(self, file: int) -> OrderedHash | None:
        """Return the hash that proves a file; None where CRCs do."""
        entry = self.manifest.objects[file]
        algorithm, part_sizes = hash_of(entry)
        if not algorithm:
            return None
        with self.lock:
            if file not in self._hashes:
                self._hashes[file] = OrderedHash(algorithm, part_sizes)
            return self._hashes[file]

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
            self._hashes.pop(file, None)
            self.queue.extendleft(reversed(self._parts[file]))

    def fail(self, error: BaseException) -> None:
        """Stop everything; the first error is the one that counts."""
        with self.lock:
            if self.error is None and not self.stop.is_set():
                self.error = error
            self.stop.set()
            self._flights.abort()
            self.lock.notify_all()


class Worker:
    """One thread: takes ranges until none is left."""

    def __init__(self, transfer: Transfer, origin: Origin, buffer: memoryview) -> None:
        self._transfer, self._source, self._bucket, self._loop = transfer, origin.source, origin.bucket, origin.loop
        self._tuning, self._buffer = transfer.tuning, buffer
        self._rng = random.Random()  # noqa: S311 (jitter)
        self._received = 0  # of the range that is being read
        self.wire = Wire(origin.bucket, origin.tls, self._tuning.stall_seconds)

    def run(self) -> bool:
        """Work until nothing is left, an error, or a stop; never raises. True if nothing is left."""
        try:
            while (copy := self._transfer.take(self.wire)) is not None:
                try:
                    self._one(copy, self._buffer)
                finally:
                    self._transfer.end(copy, self._received)
            return not self._transfer.stop.is_set()
        except Ended:
            pass
        except PrewarmError as error:
            self._transfer.fail(error)
        except Exception as error:  # noqa: BLE001 (a thread's edge: a bug must reach the one who awaits)
            self._transfer.fail(error)
        finally:
            self.wire.close()
        return False

    def _one(self, copy: Copy, view: memoryview) -> None:
        part = copy.flight.part
        entry = self._transfer.manifest.objects[part.file]
        self._received = 0
        sums = None if copy.is_second else self._recheck(entry, part, copy.flight.claim, view)
        if sums is not None:
            if not self._transfer.wins(copy):
                return
            self._transfer.count(part.length, 0)
        else:
            try:
                self._fetch(copy, entry, view)
            except Superseded:
                return
            sums = sum_range(entry, part.offset, view[: part.length])
            self._transfer.files.write(entry.path, view, part.offset, part.length)
            self._transfer.journal.append(part, sums)
        self._landed(entry, part, sums, view)

    def _recheck(self, entry: ObjectEntry, part: Part, claim: RangeSums | None, view: memoryview) -> RangeSums | None:
        """Read back a range the journal claims; None if it is not what was claimed."""
        if claim is None or not self._transfer.files.read(entry.path, view, part.offset, part.length):
            return None
        found = sum_range(entry, part.offset, view[: part.length])
        return found if found == claim else None

    def _landed(self, entry: ObjectEntry, part: Part, sums: RangeSums, view: memoryview) -> None:
        """Hash a range that is on disk, where the file is proved by a hash; finish the file with its last range."""
        hashing = self._transfer.hash_of(part.file)
        if hashing is not None:
            hashing.feed(part.offset, view[: part.length], lambda at, length: self._read_back(entry, at, length, view))
        in_order = self._transfer.finished(part, sums)
        if in_order is None:
            return
        try:
            proof = check_whole(entry, in_order, hashing.digest() if hashing else b"")
        except Permanent as differs:
            self._transfer.fetch_again(part.file, differs)
            self._tuning.tally.add(Outcome.CORRUPT, len(in_order))
            return
        self._transfer.files.finish(entry.path, entry.size)
        with self._transfer.lock:
            self._transfer.proofs[entry.path] = FileProof(path=entry.path, crc64=whole_crc64(in_order), proof=proof)

    def _read_back(self, entry: ObjectEntry, offset: int, length: int, view: memoryview) -> Iterator[memoryview]:
        """Yield a range of a file from disk; this thread's own range in `view` is hashed already."""
        self._stopped()
        if not self._transfer.files.read(entry.path, view, offset, length):
            raise Transient("cannot read back what was written to the store")
        yield view[:length]

    def _fetch(self, copy: Copy, entry: ObjectEntry, view: memoryview) -> None:
        """Fetch a range, as often as it takes, until this copy or the other one has it.

        Raises:
            Superseded: the other copy came first.
        """
        backoff = Backoff(base_seconds=0.2, cap_seconds=10, floor_seconds=0.02)
        while True:
            signed_at = time.monotonic()
            try:
                with self._slot(copy):
                    self._read(copy, entry, view[: copy.flight.part.length])
            except RangeFailed as error:
                backoff = backoff.failed()
                self._failed(copy, error)
                if backoff.failures >= self._tuning.attempts:
                    raise Transient(f"{_where(entry)}: {error}, {backoff.failures} times in a row") from error
                self._pause(copy, backoff.delay_seconds(self._rng))
            except SourceChanged as error:
                raise SourceChanged(f"{_where(entry)}: {error}") from error
            except Denied as error:
                self._denied(entry, error, signed_at)
            else:
                self._arrived(copy)
                return

    def _slot(self, copy: Copy) -> contextlib.AbstractContextManager[None]:
        """Return a place among the ranges asked for at once; a second copy replaces one that is as good as lost."""
        return contextlib.nullcontext() if copy.is_second else self._tuning.concurrency.slot(self._stopped)

    def _failed(self, copy: Copy, error: RangeFailed) -> None:
        self._give_way(copy)
        self._tuning.tally.add(Outcome.RETRIED)
        if isinstance(error, Busy) or isinstance(error.__cause__, ConnectionResetError):
            self._tuning.concurrency.refused()

    def _arrived(self, copy: Copy) -> None:
        length, seconds = copy.flight.part.length, time.monotonic() - copy.started
        if not self._transfer.wins(copy):
            self._transfer.count(-self._received, 0)
            raise Superseded
        patience = self._tuning.tail.patience_seconds(length)
        if patience is not None and seconds > patience:
            self.wire.close()  # a slow connection is replaced, by fresh DNS
        self._tuning.tail.took(length, seconds)
        self._tuning.concurrency.served()
        self._tuning.tally.add(Outcome.HEDGED if copy.is_second else Outcome.OK)

    def _read(self, copy: Copy, entry: ObjectEntry, into: memoryview) -> None:
        part = copy.flight.part
        path = self._bucket.path(entry.key, entry.version_id if self._transfer.with_versions else "")
        headers = {"Range": f"bytes={part.offset}-{part.offset + part.length - 1}", "If-Match": entry.etag}
        signed = self._source.sign(self._bucket, path, headers)
        self._received = 0
        copy.started = time.monotonic()
        try:
            self.wire.read(
                path,
                signed,
                into,
                offset=part.offset,
                total=entry.size,
                etag=entry.etag,
                before_slice=lambda size: self._before_slice(copy, size),
            )
        except BaseException:
            self._transfer.count(-self._received, 0)
            self._stopped()
            self._give_way(copy)
            raise

    def _before_slice(self, copy: Copy, size: int) -> None:
        throttle = self._tuning.throttle
        if throttle.is_capped:
            began, copy.waiting = time.monotonic(), True
            throttle.wait(size, self._transfer.stop)
            copy.started += time.monotonic() - began
            copy.waiting = False
        self._stopped()
        self._give_way(copy)
        self._received += size
        self._transfer.count(size, size)
        self._tuning.tally.fetched(size)

    def _stopped(self) -> None:
        if self._transfer.stop.is_set():
            raise Ended

    @staticmethod
    def _give_way(copy: Copy) -> None:
        if copy.lost:
            raise Superseded

    def _pause(self, copy: Copy, seconds: float) -> None:
        self._transfer.stop.wait(seconds)
        self._stopped()
        self._give_way(copy)

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


def _where(entry: ObjectEntry) -> str:
    return f"key {cut(ascii(entry.key), 200)}"
