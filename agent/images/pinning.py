"""Keeps the images of open windows from the kubelet's garbage collection, by containerd's pin label.

The label stands on the record by image id: a pull of the same image again wipes it from the tag's. A second label says
until when, so that an agent that starts anew knows its pins from others'. Nobody's pins but ours are ever removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from agent.core.assignment import ImageWant
from agent.core.clock import Clock
from agent.core.errors import Permanent
from agent.core.refs import ImageRef
from agent.core.units import format_size
from agent.images.board import Board
from agent.images.disk import DISK_FACTOR
from agent.images.runtime import Pin, Pinner
from agent.images.states import PinNote
from agent.plan.decision import PinStep

log = structlog.get_logger(__name__)

PINNED, PINNED_VALUE = "io.cri-containerd.pinned", "pinned"
UNTIL = "prewarm.dev/pinned-until"
_SHARE = 0.5  # of the file system: the kubelet collects at 85 % used and stops at 80 %, so it keeps room to free
_ROUNDING = timedelta(minutes=1)
_MOST_ASKED = 4  # cycles after a change: a runtime that heeds pins does so within one; an old one never will


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """Whether an image's pin was seen to have effect: how often that was asked since the last doubt, and how many there had been."""

    doubts: int
    asked: int = 0
    shielded: bool = False


def pinned_until(label: str) -> datetime:
    """Return until when a pin of ours is meant, by its label; what cannot be read, or has no zone, is over."""
    over = datetime.min.replace(tzinfo=UTC)
    try:
        until = datetime.fromisoformat(label)
    except ValueError:
        return over
    return until if until.tzinfo else over


class Pins:
    """Brings the pins of this node in line with the plan."""

    def __init__(self, pinner: Pinner, board: Board, clock: Clock, budget_bytes: int | None) -> None:
        self._pinner = pinner
        self._board = board
        self._clock = clock
        self._budget_bytes = budget_bytes
        self._standing: Mapping[str, Pin] | None = None  # None: not looked at yet
        self._doubts = 0
        self._answers: dict[ImageRef, _Answer] = {}

    async def reconcile(self, steps: Sequence[PinStep] | None, images: Iterable[ImageWant]) -> None:
        """Pin and unpin; `steps` is None while nobody has said what this node is for: then all pins stay.

        Raises:
            Transient: containerd is away.
            Permanent: it refuses, and not one image alone.
        """
        if steps is None or not (steps or self._standing or self._standing is None):
            return
        now, notes = self._clock.now(), dict[ImageRef, PinNote]()
        wanted = await self._within_budget(steps, notes)
        standing = dict(await self._pinner.pins())
        known = {proof.image_id for want in images if (proof := self._board.proof(want.ref)) and proof.image_id}
        for image_id, pin in list(standing.items()):
            if image_id not in wanted and (image_id not in known or pin.until <= now):
                await self._pinner.unpin(image_id)
                del standing[image_id]
                log.info("image unpinned", image=image_id, until=pin.until)
        for image_id, step in wanted.items():
            pin_now = standing.get(image_id)
            try:
                await self._stand(image_id, step, pin_now)
                notes[step.want.ref] = await self._read_back(step)
            except Permanent as error:  # of this image alone
                notes[step.want.ref] = PinNote(pinned=False, text=f"not pinned: {error}")
                continue
            standing[image_id] = Pin(until=step.until, whole=True)
        self._standing = standing
        self._answers = {ref: answer for ref, answer in self._answers.items() if ref in notes}
        self._board.pins_are(notes)

    async def _stand(self, image_id: str, step: PinStep, pin_now: Pin | None) -> None:
        """Have an image pinned as planned."""
        if pin_now is not None and pin_now.whole and abs(pin_now.until - step.until) <= _ROUNDING:
            return
        self._answers.pop(step.want.ref, None)
        if await self._pinner.pin(image_id, step.until):
            log.info("image pinned", image=str(step.want.ref), until=step.until, again=pin_now is not None)

    def concerns(self, name: str) -> bool:
        """Say whether a record that changed is one of those we pinned: somebody may have taken the pin away."""
        return name in (self._standing or {})

    def doubt(self) -> None:
        """Ask the runtime again about every pin: an image's record changed, or it is another runtime."""
        self._doubts += 1

    async def _within_budget(self, steps: Sequence[PinStep], notes: dict[ImageRef, PinNote]) -> dict[str, PinStep]:
        """Return by image id what is pinned: in the order of the plan, as long as the budget lasts."""
        budget = await self._budget() if steps else None
        wanted: dict[str, PinStep] = {}
        used = 0
        for step in steps:
            proof = self._board.proof(step.want.ref)
            if proof is None or not proof.image_id or not self._board.unpacked(step.want.ref):
                continue
            size = proof.size_bytes * DISK_FACTOR
            if budget is not None and used + size > budget and proof.image_id not in wanted:
                text = f"not pinned: with its {format_size(size)} the pins would take over {format_size(budget)}"
                notes[step.want.ref] = PinNote(pinned=False, text=text)
                continue
            used += size if proof.image_id not in wanted else 0
            wanted[proof.image_id] = step
        return wanted

    async def _budget(self) -> int | None:
        if self._budget_bytes is not None:
            return self._budget_bytes
        disk = await self._pinner.disk()
        return int(disk.capacity_bytes * _SHARE) if disk else None

    async def _read_back(self, step: PinStep) -> PinNote:
        doubts = self._doubts  # one that comes while it is asked holds
        last = self._answers.get(step.want.ref)
        if last is None or last.doubts != doubts:
            last = _Answer(doubts=doubts)
        if not last.shielded and last.asked < _MOST_ASKED:
            shielded = await self._pinner.shielded(str(step.want.ref))
            last = _Answer(doubts=doubts, asked=last.asked + 1, shielded=shielded)
            self._answers[step.want.ref] = last
        if last.shielded:
            return PinNote(pinned=True, text=f"pinned until {step.until.astimezone(UTC):%Y-%m-%d %H:%M}Z")
        return PinNote(
            pinned=False,
            text="its pin has no effect yet (none at all before containerd 1.6.22 and 1.7.3): garbage collection may take it",
        )
