"""The store of this machine as `prewarm models` sees it: what lies there, which version a word means, removal without an agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.core.clock import SystemClock
from agent.core.errors import Invalid, Permanent, Transient, cut
from agent.core.refs import Digest
from agent.models.open_files import open_inodes
from agent.models.references import References
from agent.models.store import Store
from agent.models.version import Version
from agent.models.views import Views

_SHORTEST = 4  # hex digits that may stand for a digest
BROKEN, PARTIAL, COMMITTED = "broken", "partial", "committed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One version on disk. `version` is None unless it is committed; `level` is the agent's word where one runs."""

    digest: Digest
    level: str
    size_bytes: int = 0
    version: Version | None = None
    pinned: bool = False
    pods: int = 0
    assigned: bool = False
    resident_bytes: int = 0
    reason: str = ""

    @property
    def uri(self) -> str:
        """Where it is from, "" where that is not known."""
        return str(self.version.manifest.uri) if self.version else ""

    @property
    def kept(self) -> str:
        """Say in few words what keeps it here; "" for nothing that is known."""
        pods = f"{self.pods} pod{'s' if self.pods > 1 else ''}" if self.pods else ""
        return ", ".join(w for w in ("pinned" if self.pinned else "", pods, "assigned" if self.assigned else "") if w)


class Shelf:
    """The store below one root. Looking changes nothing, also beside a running agent."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, Store(root)
        self._references = References(root / "refs")

    def rows(self, told: Mapping[str, Any]) -> list[Row]:
        """Return all versions, newest first. `told` is what the agent says of those it is assigned, by digest.

        Raises:
            Transient: there is no store, or it cannot be read.
        """
        if not (self.root / "store").is_dir():
            raise Transient(f"no store at {self.root}: the agent makes it when it starts (setting root, here --root)")
        try:
            found, pinned = self.store.look(), self.store.pinned()
            whole = sorted(found.versions, key=lambda v: v.committed, reverse=True)
            return [
                *(self._row(v, told.get(v.digest), pinned=v.digest in pinned) for v in whole),
                *(Row(digest=j.digest, level=PARTIAL, size_bytes=j.done_bytes, reason="interrupted, or on its way") for j in found.partial),
                *(Row(digest=d, level=BROKEN, reason=why, pinned=d in pinned) for d, why in found.broken),
            ]  # fmt: skip
        except OSError as error:
            raise Transient(f"cannot read the store at {self.root}: {error.strerror} (are you root?)") from error

    def _row(self, version: Version, told: Any, *, pinned: bool) -> Row:
        return Row(
            digest=version.digest,
            level=told.level if told else COMMITTED,
            size_bytes=version.manifest.size_bytes,
            version=version,
            pinned=pinned,
            pods=len(self._references.users(version.digest)),
            assigned=told is not None,
            resident_bytes=told.resident_bytes if told else 0,
            reason=told.reason if told else "",
        )

    def verify(self, row: Row, before_slice: Callable[[int], None]) -> str:
        """Read every byte of a version back; "" if it is as it was committed, else what is wrong with it."""
        return self.store.verify(row.version, before_slice) if row.version else row.reason

    def remove(self, row: Row) -> None:
        """Remove a version where no agent runs, under the store's lock.

        Raises:
            Permanent: it is pinned, in use, or a window of the last assignment needs it.
            Transient: another process has the store.
        """
        with self._locked():
            if why := self._why_not(row):
                raise Permanent(f"version {short(row.digest)} is not removed: {why}")
            if row.level == PARTIAL:
                self.store.discard(row.digest)
            elif not self.store.remove_unpinned(row.digest, lambda: Views(self.root).drop_version(row.digest)):
                raise Permanent(f"version {short(row.digest)} is not removed: it is pinned")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.changing():
            if not self.store.try_lock():
                raise Transient("an agent has the store and does not answer: try again when it does")
            try:
                yield
            finally:
                self.store.unlock()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Say what keeps a person from changing the store.

        Raises:
            Transient: in place of an OSError.
        """
        try:
            yield
        except OSError as error:
            raise Transient(f"cannot change the store at {self.root}: {error.strerror} (are you root?)") from error

    def _why_not(self, row: Row) -> str:
        if row.pinned:
            return "it is pinned"
        if users := self._references.users(row.digest):
            return f"{len(users)} pod(s) use it, among them {users[0]}"
        inodes = {f.inode for f in row.version.files} if row.version else set()
        if holders := open_inodes(Path("/proc"), inodes, self.root) if inodes else frozenset():
            return f"process {min(holders)} has a file of it open"
        return self._needed(row)

    def _needed(self, row: Row) -> str:
        """Say which window of the last assignment still needs it: an agent that starts again acts on that."""
        from agent.node.assignment_source import KeptAssignment

        assignment, now = KeptAssignment(self.root / "nodewarmup.json", SystemClock()).load(), datetime.now(UTC)
        for endpoint in assignment.endpoints if assignment else ():
            window = endpoint.next_window(now)
            if window and any(m.digest == row.digest or str(m.uri) == row.uri for m in endpoint.models):
                return f"{endpoint.key} needs it until {window.until:%Y-%m-%d %H:%M} UTC"
        return ""


def choose(rows: Sequence[Row], word: str) -> Row:
    """Return the version a person means: a digest, its first digits (with or without `sha256:`), or a model's URI.

    Raises:
        Invalid: none, or several.
    """
    digits = word.removeprefix("sha256:").lower()
    by_digest = [r for r in rows if len(digits) >= _SHORTEST and r.digest.removeprefix("sha256:").startswith(digits)]
    found = by_digest or [r for r in rows if r.uri and r.uri == word]
    if not found:
        raise Invalid(
            f"no version here is called {cut(word, 80)!r}: give the start of a digest, or a URI, from prewarm models ls"
        )
    if len(found) > 1:
        raise Invalid(
            f"{cut(word, 80)!r} may be {' or '.join(short(r.digest) for r in found[:5])}: give more of the digest"
        )
    return found[0]


def short(digest: Digest) -> str:
    """Return as much of a digest as people need."""
    return digest.removeprefix("sha256:")[:12]
