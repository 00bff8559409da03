"""How one image's state is put together, and how long failures hold it back."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from agent.core.errors import Permanent, Transient
from agent.core.inventory import ImageLevel
from agent.core.refs import parse_image_ref
from agent.core.retry import Backoff
from agent.images.faults import Fault
from agent.images.progress import Bytes
from agent.images.prove import Proof
from agent.images.states import Failure, fault_of, image_state, next_backoff

REF = parse_image_ref("r.io/a:1")
LATER = datetime(2026, 1, 1, tzinfo=UTC)
FAILED = Failure(error="no", fault=Fault.OTHER, digest="", backoff=Backoff(), retry_at=LATER)
UNPACKED = Proof(level=ImageLevel.UNPACKED, digest="d", size_bytes=9, reason="all")


def test_an_unpacked_image_is_whole_and_forgets_its_failure() -> None:
    state = image_state(REF, UNPACKED, None, FAILED)
    assert (state.level, state.done_bytes, state.total_bytes) == (ImageLevel.UNPACKED, 9, 9)
    assert (state.error, state.retry_at, state.busy) == ("", None, False)


def test_a_running_pull_shows_its_bytes_and_no_time_of_retry() -> None:
    state = image_state(REF, Proof(), Bytes(done=4, total=9), FAILED)
    assert (state.level, state.done_bytes, state.total_bytes) == (ImageLevel.PARTIAL, 4, 9)
    assert (state.busy, state.error, state.retry_at) == (True, "no", None)


def test_a_pull_that_has_fetched_nothing_is_still_absent() -> None:
    assert image_state(REF, Proof(), Bytes(), None).level is ImageLevel.ABSENT


def test_a_failure_is_told_with_its_time_of_retry() -> None:
    state = image_state(REF, Proof(reason="none"), None, FAILED)
    assert (state.level, state.reason, state.error, state.retry_at) == (ImageLevel.ABSENT, "none", "no", LATER)


def test_a_record_without_snapshots_has_no_byte_unpacked() -> None:
    state = image_state(REF, Proof(level=ImageLevel.PRESENT, digest="d", size_bytes=9), None, None)
    assert (state.done_bytes, state.total_bytes) == (0, 9)


@pytest.mark.parametrize(
    ("fault", "least", "most"),
    [(Fault.OTHER, 1, 60), (Fault.NOT_FOUND, 30, 600), (Fault.RATE_LIMIT, 60, 900), (Fault.AWAY, 0.5, 15)],
)
def test_each_class_waits_within_its_own_bounds(fault: Fault, least: float, most: float) -> None:
    rng = random.Random(1)
    failure: Failure | None = None
    for _ in range(12):
        backoff = next_backoff(fault, "d", failure)
        assert least <= backoff.delay_seconds(rng) <= most
        failure = Failure(error="x", fault=fault, digest="d", backoff=backoff, retry_at=LATER)
    assert failure is not None
    assert failure.backoff.failures == 12


def test_another_digest_or_class_starts_anew() -> None:
    failure = Failure(error="x", fault=Fault.OTHER, digest="d", backoff=Backoff(failures=7), retry_at=LATER)
    assert next_backoff(Fault.OTHER, "d", failure).failures == 8
    assert next_backoff(Fault.OTHER, "e", failure).failures == 1
    assert next_backoff(Fault.NO_SPACE, "d", failure).failures == 1


def test_errors_without_a_class_have_one() -> None:
    assert fault_of(Permanent("x")) is Fault.REFUSED
    assert fault_of(Transient("x")) is Fault.OTHER
