"""Which error of a download counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.errors import Permanent
from agent.core.refs import parse_model_uri
from agent.models.bucket import Bucket
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
from agent.models.transfer import Transfer, Tuning
from agent.models.wire import Wire

SIZE = 1 << 20


@pytest.fixture
def transfer(tmp_path: Path) -> Iterator[Transfer]:
    """One range to fetch, late as soon as it is taken."""
    tail = Tail()
    for _ in range(ENOUGH_SAMPLES):
        tail.took(SIZE, 0.0)
    entry = ObjectEntry(key="m/a", path="a", size=SIZE, etag='"a"')
    manifest = Manifest(uri=parse_model_uri("s3://bucket/m/"), objects=(entry,))
    tuning = Tuning(
        throttle=Throttle(0), concurrency=Concurrency(2), tail=tail, tally=Tally(), stall_seconds=1.0, attempts=1
    )
    journal = Journal(tmp_path / "journal", manifest.digest, SIZE, fresh=True)
    files = RangeFiles(Tree(tmp_path))
    yield Transfer(manifest, files, journal, parts=parts_of(manifest, SIZE), claimed={}, tuning=tuning)
    journal.close()


def taken(transfer: Transfer) -> Copy:
    bucket = Bucket(scheme="http", host="127.0.0.1", port=9, base_path="/", region="r")
    copy = transfer.take(Wire(bucket, None, 1.0))
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
