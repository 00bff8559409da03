"""What one thread of a download does: takes ranges, brings and checks them, or brings one more copy of one that is late."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass

from agent.core.errors import Permanent, PrewarmError, Transient, cut
from agent.core.retry import Backoff
from agent.models.bucket import Bucket
from agent.models.channel import Tls
from agent.models.checksum import RangeSums, check_whole, sum_range, whole_crc64
from agent.models.flights import Copy, Superseded
from agent.models.manifest import ObjectEntry
from agent.models.ranges import Part
from agent.models.source import S3Source
from agent.models.tally import Outcome
from agent.models.transfer import Ended, FileProof, Transfer
from agent.models.wire import Busy, Denied, RangeFailed, SourceChanged, Wire

_FIRST_PAUSE = Backoff(base_seconds=0.2, cap_seconds=10, floor_seconds=0.02)
RENEW_SECONDS = 60.0  # credentials refused again so soon after they were renewed are refused for good


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the bytes come from; `loop` is the one that `source` belongs to."""

    source: S3Source
    bucket: Bucket
    tls: Tls | None
    loop: asyncio.AbstractEventLoop


class Worker:
    """One thread: takes ranges until none is left."""

    def __init__(self, transfer: Transfer, origin: Origin, buffer: memoryview) -> None:
        self._transfer, self._source, self._bucket, self._loop = transfer, origin.source, origin.bucket, origin.loop
        self._tuning, self._buffer = transfer.tuning, buffer
        self._rng = random.Random()  # noqa: S311 (jitter)
        self._ahead: Copy | None = None  # the next one to bring
        self._signed_at = 0.0
        self.wire = Wire(origin.bucket, origin.tls, self._tuning.stall_seconds)

    def run(self) -> bool:
        """Work until nothing is left, an error, or a stop; never raises. True if nothing is left."""
        try:
            while (copy := self._next()) is not None:
                self._work(copy)
            return not self._transfer.stop.is_set()
        except Exception as error:  # noqa: BLE001 (a thread's edge: a bug must reach the one who awaits)
            self._transfer.fail(error)
        finally:
            self.wire.close()
        return False

    def _next(self) -> Copy | None:
        copy, self._ahead = self._ahead, None
        return copy or self._transfer.take(self.wire)

    def _work(self, copy: Copy) -> None:
        """Bring one copy of a range, or tell why not: before it ends, or another thread would take all to be here."""
        try:
            self._one(copy, self._buffer)
        except Ended:
            pass  # as the next take says
        except Exception as error:  # noqa: BLE001 (as above)
            self._transfer.fail(error, copy)
        finally:
            self._transfer.end(copy)

    def _one(self, copy: Copy, view: memoryview) -> None:
        part = copy.flight.part
        entry = self._transfer.manifest.objects[part.file]
        sums = None if copy.is_extra else self._recheck(entry, part, copy.flight.claim, view)
        if sums is not None:
            if not self._transfer.wins(copy):
                return
            self._transfer.count(part.length, 0)
            if part.length == entry.size:
                self._transfer.files.finish(entry.path, entry.size, durably=False)
        else:
            try:
                self._fetch(copy, entry, view)
            except Superseded:
                return
            whole = part.length == entry.size
            if whole:
                self._ask_ahead()
            sums = sum_range(entry, part.offset, view[: part.length])
            if whole:
                self._transfer.files.write_whole(entry.path, view, part.length)
            else:
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
        if len(in_order) > 1:
            self._transfer.files.finish(entry.path, entry.size)
        self._transfer.proved(part.file, FileProof(path=entry.path, crc64=whole_crc64(in_order), proof=proof))

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
        backoff = _FIRST_PAUSE
        while True:
            try:
                self._in_turn(copy, entry, view[: copy.flight.part.length])
            except RangeFailed as error:
                backoff = backoff.failed()
                self._failed(copy, error)
                if backoff.failures >= self._tuning.attempts:
                    raise Transient(f"{_where(entry)}: {error}, {backoff.failures} times in a row") from error
                self._pause(copy, backoff.delay_seconds(self._rng))
            except SourceChanged as error:
                raise SourceChanged(f"{_where(entry)}: {error}") from error
            except Denied as error:
                self._denied(entry, error)
            else:
                self._arrived(copy)
                return

    def _in_turn(self, copy: Copy, entry: ObjectEntry, into: memoryview) -> None:
        """Read with a place among the ranges asked for at once; an extra copy needs none, for one that is as good as lost."""
        if copy.is_extra:
            return self._read(copy, entry, into)
        if not copy.asked:
            copy.waiting = True
            self._tuning.concurrency.take(self._stopped)
        try:
            self._read(copy, entry, into)
        finally:
            copy.asked = False
            self._tuning.concurrency.give_back()

    def _ask_ahead(self) -> None:
        """Ask for the next range before this one is summed and written: its answer is under way meanwhile.

        Only on an open connection: to make one may take long, and what is here is not safe yet. Only after a whole file: a range
        of a larger one may have to wait for its turn to be hashed, for one who waits for a slot.
        """
        concurrency = self._tuning.concurrency
        if self._tuning.throttle.is_capped or not self.wire.is_open or not concurrency.take_if_free():
            return
        copy = None
        try:
            copy = self._ahead = self._transfer.take_ahead(self.wire)
            if copy is not None and copy.flight.claim is None:
                with contextlib.suppress(PrewarmError):  # asked again in its turn
                    self._ask(copy)
                    copy.asked = True
        finally:
            if copy is None or not copy.asked:
                concurrency.give_back()

    def _failed(self, copy: Copy, error: RangeFailed) -> None:
        self._give_way(copy)
        self._tuning.tally.add(Outcome.RETRIED)
        if isinstance(error, Busy) or isinstance(error.__cause__, ConnectionResetError):
            self._tuning.concurrency.refused()

    def _arrived(self, copy: Copy) -> None:
        length, seconds = copy.flight.part.length, time.monotonic() - copy.started
        if not self._transfer.wins(copy):
            self._transfer.count(-copy.received, 0)
            raise Superseded
        patience = self._tuning.tail.patience_seconds(length)
        if patience is not None and seconds > patience:
            self.wire.close()  # a slow connection is replaced, by fresh DNS
        self._tuning.tail.took(length, seconds + copy.ahead_seconds)
        self._tuning.concurrency.served()
        self._tuning.tally.add(Outcome.HEDGED if copy.is_extra else Outcome.OK)

    def _ask(self, copy: Copy) -> None:
        part = copy.flight.part
        entry = self._transfer.manifest.objects[part.file]
        path = self._bucket.path(entry.key, entry.version_id if self._transfer.with_versions else "")
        headers = {"Range": f"bytes={part.offset}-{part.offset + part.length - 1}", "If-Match": entry.etag}
        self._signed_at = time.monotonic()
        self.wire.ask(path, self._source.sign(self._bucket, path, headers))

    def _read(self, copy: Copy, entry: ObjectEntry, into: memoryview) -> None:
        copy.received = 0
        copy.started, copy.waiting = time.monotonic(), False
        copy.ahead_seconds = copy.started - self._signed_at if copy.asked else 0.0
        try:
            if not copy.asked:
                self._ask(copy)
            self.wire.read(
                into,
                offset=copy.flight.part.offset,
                total=entry.size,
                etag=entry.etag,
                before_slice=lambda size: self._before_slice(copy, size),
            )
        except BaseException:
            self._transfer.count(-copy.received, 0)
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
        copy.received += size
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

    def _denied(self, entry: ObjectEntry, error: Denied) -> None:
        """Renew the credentials once for all threads; then do without version ids; then give up."""
        transfer = self._transfer
        with transfer.renew_lock:
            if transfer.renewed_at > self._signed_at:
                return  # another thread has renewed them since, or does without version ids
            if time.monotonic() - transfer.renewed_at > RENEW_SECONDS:
                self._renew()
            elif entry.version_id and transfer.with_versions:
                transfer.with_versions = False
            else:
                raise Permanent(f"{_where(entry)}: {error}") from error
            transfer.renewed_at = time.monotonic()

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
