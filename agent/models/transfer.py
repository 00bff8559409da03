"""One download as its threads share it; what one thread does is in `agent.models.worker`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.core.errors import Permanent
from agent.models.checksum import RangeSums, hash_of
from agent.models.concurrency import Concurrency
from agent.models.disk import RangeFiles
from agent.models.flights import Copy, Flights
from agent.models.journal import Journal
from agent.models.manifest import Manifest
from agent.models.ordered import OrderedHash
from agent.models.ranges import Part
from agent.models.tail import Tail
from agent.models.tally import Tally
from agent.models.throttle import Throttle
from agent.models.wire import Wire

AHEAD_BYTES = 256 << 10  # a range that is asked for ahead of its turn waits in the socket's buffer
IDLE_SECONDS = 0.05  # how often a thread without work looks whether a range is late


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProof:
    """One complete file: its own CRC64NVME, and the algorithm by which the source proved it (or `UNPROVED`)."""

    path: str
    crc64: int
    proof: str


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
    """What the threads of one download share. Everything below `_lock` is guarded by it."""

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
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
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
        with self._lock:
            return self._done, self._fetched

    def by_file(self) -> tuple[int, list[tuple[str, int, int]]]:
        """Return how many files are whole, and path, bytes here and size of those that are begun and not whole."""
        objects = self.manifest.objects
        with self._lock:
            begun = [(objects[f], sum(s.length for s in sums.values())) for f, sums in self._sums.items()]
            return len(self.proofs), [(o.path, done, o.size) for o, done in begun]

    def count(self, done: int, fetched: int) -> None:
        """Add to both counts; a range that failed is taken off again."""
        with self._lock:
            self._done += done
            self._fetched += fetched

    def take(self, wire: Wire) -> Copy | None:
        """Return the range to fetch next, or one more copy of one that is late; None when all is done or shall stop."""
        with self._lock:
            while not self.stop.is_set():
                if copy := self._flights.another(wire.abort):
                    return copy
                if self.queue:
                    return self._next(wire)
                if not self._flights:
                    return None
                self._changed.wait(IDLE_SECONDS)
            return None

    def take_ahead(self, wire: Wire) -> Copy | None:
        """Return the range to fetch after the one that was just received; None if it is large, or another one is late.

        It waits for its own thread, until that says otherwise.
        """
        with self._lock:
            small = self.queue and self.queue[0].length <= AHEAD_BYTES
            if not small or self.stop.is_set() or self._flights.late():
                return None
            copy = self._next(wire)
            copy.waiting = True
            return copy

    def _next(self, wire: Wire) -> Copy:
        part = self.queue.popleft()
        claim = self._claimed.pop((part.file, part.offset), None)
        trusted = claim if claim is not None and claim.length == part.length else None
        return self._flights.start(part, trusted, wire.abort)

    def wins(self, copy: Copy) -> bool:
        """Say whether this copy of a range is the one to write."""
        with self._lock:
            return self._flights.wins(copy)

    def end(self, copy: Copy) -> None:
        """Note that a thread is done with its copy of a range, whatever came of it."""
        with self._lock:
            self._flights.end(copy)
            self._changed.notify_all()

    def hash_of(self, file: int) -> OrderedHash | None:
        """Return the hash that proves a file; None where CRCs do."""
        entry = self.manifest.objects[file]
        algorithm, part_ends = hash_of(entry)
        if not algorithm:
            return None
        with self._lock:
            if file not in self._hashes:
                self._hashes[file] = OrderedHash(algorithm, part_ends)
            return self._hashes[file]

    def finished(self, part: Part, sums: RangeSums) -> list[RangeSums] | None:
        """Note a range that is on disk; returns all ranges of its file, in order, to the thread that brought the last."""
        with self._lock:
            have = self._sums.setdefault(part.file, {})
            have[part.offset] = sums
            if len(have) < len(self._parts[part.file]):
                return None
            return [have[o] for o in sorted(have)]

    def proved(self, file: int, proof: FileProof) -> None:
        """Note a file that is whole."""
        with self._lock:
            self.proofs[proof.path] = proof
            self._sums.pop(file, None)

    def fetch_again(self, file: int, why: Permanent) -> None:
        """Fetch a file anew, once, after its checksum differed: the wire or the disk may have been at fault.

        Raises:
            Permanent: `why`, the second time.
        """
        with self._lock:
            if file in self._again:
                raise why
            self._again.add(file)
            self._done -= sum(p.length for p in self._parts[file])
            del self._sums[file]
            self._hashes.pop(file, None)
            self.queue.extendleft(reversed(self._parts[file]))

    def fail(self, error: BaseException, copy: Copy | None = None) -> None:
        """Stop everything; the first error is the one that counts. One of a copy that has lost does not: its range is here.

        Call it before the copy ends, or another thread finds nothing left first.
        """
        with self._lock:
            if copy is not None and copy.lost:
                return
            if self.error is None:
                self.error = error
            self.stop.set()
            self._flights.abort()
            self._changed.notify_all()
