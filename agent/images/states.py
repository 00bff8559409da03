"""What the room knows about one image, put together into the state it publishes; and how long it waits after failures. Pure."""

from __future__ import annotations

from dataclasses import dataclass
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


# Base and cap in seconds. What only a person can mend is still tried again, seldom: credentials appear, tags get pushed.
_PACES = {
    Fault.AUTH: (60.0, 600.0),
    Fault.NOT_FOUND: (60.0, 600.0),
    Fault.REFUSED: (60.0, 600.0),
    Fault.RATE_LIMIT: (120.0, 900.0),
    Fault.NO_SPACE: (60.0, 600.0),
    Fault.MOVED: (30.0, 300.0),  # the planner resolves tags every 5 min outside windows
    Fault.AWAY: (1.0, 15.0),
    Fault.OTHER: (2.0, 60.0),
}


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


def image_state(ref: ImageRef, proof: Proof, pulling: Bytes | None, failure: Failure | None) -> ImageState:
    """Put the state of one image together. `pulling` is the progress of a running pull, None without one."""
    level, reason = proof.level, proof.reason
    done, total = (proof.size_bytes, proof.size_bytes) if level is ImageLevel.UNPACKED else (0, proof.size_bytes)
    if pulling and level is not ImageLevel.UNPACKED:
        done, total = pulling.done, pulling.total or total
        if level is ImageLevel.ABSENT and done:
            level, reason = ImageLevel.PARTIAL, "a pull is running"
    failed = failure if level is not ImageLevel.UNPACKED else None
    return ImageState(
        ref=ref,
        level=level,
        digest=proof.digest,
        done_bytes=done,
        total_bytes=total,
        busy=pulling is not None,
        reason=reason,
        error=failed.error if failed else proof.error,
        retry_at=failed.retry_at if failed and pulling is None else None,
    )
