"""What is known about every image of the plan now; each change is published as states, and level changes are logged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from types import MappingProxyType

import structlog

from agent.core.assignment import ImageWant
from agent.core.inventory import ImageState
from agent.core.latest import Latest
from agent.core.refs import ImageRef
from agent.images.progress import Bytes
from agent.images.prove import Proof, record_name
from agent.images.states import Failure, PinNote, image_state, with_pin, with_source

log = structlog.get_logger(__name__)

_GONE = Proof(reason="its record was deleted")


class Board:
    """Proofs, running pulls and failures by image. All methods belong to the event loop's thread."""

    def __init__(self, images: Latest[Mapping[ImageRef, ImageState]]) -> None:
        self._images = images
        self._wants: dict[ImageRef, ImageWant] = {}
        self._proofs: dict[ImageRef, Proof] = {}
        self._pulling: dict[ImageRef, Bytes] = {}
        self._failures: dict[ImageRef, Failure] = {}
        self._pins: Mapping[ImageRef, PinNote] = {}
        self._sources: dict[ImageRef, str] = {}

    def proof(self, ref: ImageRef) -> Proof | None:
        """Return what the last cycle found, None if it has not looked at this image yet."""
        return self._proofs.get(ref)

    def unpacked(self, ref: ImageRef) -> bool:
        """Say whether the image is proved warm."""
        proof = self._proofs.get(ref)
        return proof is not None and proof.level.warm

    def failure(self, want: ImageWant) -> Failure | None:
        """Return the last failure to pull this very want."""
        failure = self._failures.get(want.ref)
        return failure if failure and failure.digest == want.digest else None

    def waits(self, want: ImageWant, now: datetime) -> bool:
        """Say whether the want is backed off after a failure."""
        failure = self.failure(want)
        return failure is not None and failure.retry_at > now

    def proved(self, wants: Iterable[ImageWant], proofs: Mapping[ImageRef, Proof], deleted: Iterable[str]) -> None:
        """Take over a cycle's result, except for records deleted since it began; forget images no longer wanted."""
        gone = frozenset(deleted)
        self._wants = {want.ref: want for want in wants}
        self._proofs = {ref: _GONE if record_name(ref) in gone else proofs[ref] for ref in self._wants}
        self._pulling = {r: b for r, b in self._pulling.items() if not b.interrupted or r in self._wants}
        self._failures = {r: f for r, f in self._failures.items() if r in self._wants and not self.unpacked(r)}
        self._sources = {r: text for r, text in self._sources.items() if r in self._wants}
        self._publish()

    def deleted(self, name: str) -> list[ImageRef]:
        """Withdraw the claims that rest on a record; return the images that were proved warm."""
        refs = [ref for ref in self._wants if record_name(ref) == name]
        lost = [ref for ref in refs if self.unpacked(ref)]
        self._withdraw(refs, _GONE)
        return lost

    def distrust(self, wants: Iterable[ImageWant], reason: str) -> None:
        """Withdraw all claims."""
        self._wants = {want.ref: want for want in wants}
        self._withdraw(list(self._wants), Proof(reason=reason, error=reason))

    def pulling(self, ref: ImageRef, progress: Bytes | None) -> None:
        """Note a pull and how far it is; None when it has ended and kept nothing."""
        if progress is None:
            self._pulling.pop(ref, None)
        else:
            self._pulling[ref] = progress
        self._publish()

    def kept(self, ref: ImageRef) -> Bytes | None:
        """Return how far the pull was when last looked at."""
        return self._pulling.get(ref)

    def came(self, ref: ImageRef, text: str) -> None:
        """Note where an image came from, in a few words."""
        self._sources[ref] = text
        self._publish()

    def pins_are(self, notes: Mapping[ImageRef, PinNote]) -> None:
        """Note which images are pinned."""
        if notes != self._pins:
            self._pins = notes
            self._publish()

    def failed(self, ref: ImageRef, failure: Failure) -> None:
        """Note a failed pull."""
        self._failures[ref] = failure
        self._publish()

    def _withdraw(self, refs: list[ImageRef], proof: Proof) -> None:
        self._proofs.update(dict.fromkeys(refs, proof))
        self._publish()

    def _publish(self) -> None:
        before = self._images.get()
        states = {
            ref: with_pin(
                with_source(
                    image_state(ref, proof, self._pulling.get(ref), self.failure(self._wants[ref])),
                    self._sources.get(ref, ""),
                ),
                self._pins.get(ref),
            )
            for ref, proof in self._proofs.items()
            if ref in self._wants
        }
        for ref, state in states.items():
            level = before[ref].level if ref in before else None
            if state.level is not level:
                log.info(
                    "image level", image=str(ref), level=state.level.value, digest=state.digest, reason=state.reason
                )
        self._images.set(MappingProxyType(states))
