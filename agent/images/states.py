"""What the room knows about one image, put together into the state it publishes; and how long it waits after failures. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from agent.core.errors import Permanent, PrewarmError
from agent.core.inventory import ImageLevel, ImageState
from agent.core.refs import ImageRef
from agent.core.retry import Backoff
from agent.images.faults import Fault, PermanentFault, TransientFault
from agent.images.progress import Bytes
from agent.images.prove import Proof


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The last failed pull of an image, for the digest then wanted; gone after a success or when another is wanted."""

    error: str
    fault: Fault
    digest: str
    backoff: Backoff
    retry_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PinNote:
    """Whether the kubelet leaves an image alone, and a few words on it."""

    pinned: bool
    text: str


# Base and cap in seconds. What only a person can mend is still tried again, seldom: credentials appear, tags get pushed.
_PACES = {
    Fault.AUTH: (60.0, 600.0),
    Fault.NOT_FOUND: (60.0, 600.0),
    Fault.REFUSED: (60.0, 600.0),
    Fault.RATE_LIMIT: (120.0, 900.0),
    Fault.PLATFORM: (300.0, 3600.0),
    Fault.REGISTRY: (2.0, 60.0),
    Fault.NO_SPACE: (60.0, 600.0),
    Fault.MOVED: (30.0, 300.0),  # the planner resolves tags every 5 min outside windows
    Fault.AWAY: (1.0, 15.0),
    Fault.OTHER: (2.0, 60.0),
}
_LONGEST_ASKED_SECONDS = 3600.0


def fault_of(error: PrewarmError) -> Fault:
    """Return the class of a failure."""
    if isinstance(error, TransientFault | PermanentFault):
        return error.fault
    return Fault.REFUSED if isinstance(error, Permanent) else Fault.OTHER


def next_backoff(fault: Fault, digest: str, before: Failure | None) -> Backoff:
    """Return the backoff after one more failure; another class or another wanted digest starts anew."""
    if before and before.fault is fault and before.digest == digest:
        return before.backoff.failed()
    base, cap = _PACES[fault]
    return Backoff(base_seconds=base, cap_seconds=cap, floor_seconds=base / 2).failed()


def kept_waiting(backoff: Backoff, error: PrewarmError) -> Backoff:
    """Return the backoff that also heeds how long the registry asked to wait, up to an hour."""
    asked = error.retry_after_seconds if isinstance(error, TransientFault) else 0.0
    return replace(backoff, floor_seconds=max(backoff.floor_seconds, min(asked, _LONGEST_ASKED_SECONDS)))


def image_state(ref: ImageRef, proof: Proof, pulling: Bytes | None, failure: Failure | None) -> ImageState:
    """Put the state of one image together. `pulling` is how far a running or interrupted pull is."""
    level, reason = proof.level, proof.reason
    done, total = (proof.size_bytes, proof.size_bytes) if level.warm else (0, proof.size_bytes)
    if pulling and not level.warm:
        done, total = pulling.done, pulling.total or total
        reason = f"{reason}; {pulling.way}" if pulling.way else reason
        if level is ImageLevel.ABSENT and done:
            level, reason = ImageLevel.PARTIAL, pulling.way or "a pull is running"
    failed = None if level.warm else failure
    return ImageState(
        ref=ref,
        level=level,
        digest=proof.digest,
        done_bytes=done,
        total_bytes=total,
        rate_bytes_per_second=pulling.rate_bytes_per_second if pulling else 0.0,
        busy=pulling is not None and not pulling.interrupted,
        reason=reason,
        error=failed.error if failed else proof.error,
        retry_at=failed.retry_at if failed and (pulling is None or pulling.interrupted) else None,
    )


def with_source(state: ImageState, text: str) -> ImageState:
    """Say of an image that is here where it came from, if that is known."""
    return replace(state, reason=f"{state.reason}; {text}") if text and state.level.warm else state


def with_pin(state: ImageState, note: PinNote | None) -> ImageState:
    """Say of an image that is here whether it is pinned."""
    if note is None or not state.level.warm:
        return state
    return replace(state, pinned=note.pinned, reason=f"{state.reason}; {note.text}")
