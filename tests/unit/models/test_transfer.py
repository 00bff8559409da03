"""Which error of a download counts, and which range is taken ahead of its turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from agent.core.errors import Permanent
from agent.core.refs import parse_model_uri
from agent.models.bucket import Bucket
from agent.models.checksum import RangeSums
from agent.models.concurrency import Concurrency
from agent.models.disk import RangeFiles
from agent.models.flights import Copy
from agent.models.journal import Journal
from agent.models.manifest import Manifest, ObjectEntry
from agent.models.paths import Tree
from agent.models.ranges import parts_of
from agent.models.tail import ENOUGH_SAMPLES, Tail
from agent.models.tally import Tally
from agent.models.throttle import Throttle
from agent.models.transfer import AHEAD_BYTES, Transfer, Tuning
from agent.models.wire import Wire

SIZE, SMALL = 1 << 20, AHEAD_BYTES
WIRE = Wire(Bucket(scheme="http", host="127.0.0.1", port=9, base_path="/", region="r"), None, 1.0)


def made(directory: Path, sizes: Sequence[int], claimed: Mapping[tuple[int, int], RangeSums]) -> Transfer:
    """Ranges to fetch, each the whole of a file, and late as soon as it takes longer than a moment."""
    tail = Tail()
    for size in sizes:
        for _ in range(ENOUGH_SAMPLES):
            tail.took(size, 0.0)
    entries = tuple(ObjectEntry(key=f"m/{n}", path=f"{n}", size=size, etag='"a"') for n, size in enumerate(sizes))
    manifest = Manifest(uri=parse_model_uri("s3://bucket/m/"), objects=entries)
    tuning = Tuning(
        throttle=Throttle(0), concurrency=Concurrency(2), tail=tail, tally=Tally(), stall_seconds=1.0, attempts=1
    )
    journal = Journal(directory / "journal", manifest.digest, SIZE, fresh=True)
    journal.close()
    files = RangeFiles(Tree(directory))
    return Transfer(manifest, files, journal, parts=parts_of(manifest, SIZE), claimed=claimed, tuning=tuning)


def of_two(directory: Path, size: int, claimed: Mapping[tuple[int, int], RangeSums] | None = None) -> Transfer:
    return made(directory, (size, size), claimed or {})


@pytest.fixture
def transfer(tmp_path: Path) -> Transfer:
    """One range to fetch."""
    return made(tmp_path, (SIZE,), {})


def taken(transfer: Transfer) -> Copy:
    copy = transfer.take(WIRE)
    assert copy is not None
    return copy


def test_the_first_error_counts_also_once_all_are_told_to_stop(transfer: Transfer) -> None:
    first, second = Permanent("the first"), Permanent("the second")
    copy = taken(transfer)
    transfer.stop.set()
    transfer.fail(first, copy)
    transfer.fail(second, copy)
    assert transfer.error is first


def test_an_error_of_a_copy_that_came_too_late_stops_nothing(transfer: Transfer) -> None:
    late = taken(transfer)
    late.started -= 100
    quicker = taken(transfer)
    assert transfer.wins(quicker)
    transfer.fail(Permanent("denied"), late)
    assert transfer.error is None
    assert not transfer.stop.is_set()


def test_what_is_taken_ahead_waits_for_its_own_thread_though_it_is_here_already(tmp_path: Path) -> None:
    sums = RangeSums(offset=0, length=SMALL, crc64=0)
    transfer = of_two(tmp_path, SMALL, claimed={(0, 0): sums})
    copy = transfer.take_ahead(WIRE)
    assert copy is not None
    assert (copy.flight.claim, copy.waiting) == (sums, True)


def test_nothing_is_taken_ahead_that_is_large_or_while_another_range_is_late(tmp_path: Path) -> None:
    assert of_two(tmp_path, SMALL + 1).take_ahead(WIRE) is None
    transfer = of_two(tmp_path, SMALL)
    taken(transfer)
    assert transfer.take_ahead(WIRE) is not None
    transfer = of_two(tmp_path, SMALL)
    taken(transfer).started -= 100
    assert transfer.take_ahead(WIRE) is None


def test_nothing_is_taken_ahead_once_all_shall_stop(tmp_path: Path) -> None:
    transfer = of_two(tmp_path, SMALL)
    transfer.stop.set()
    assert transfer.take_ahead(WIRE) is None
