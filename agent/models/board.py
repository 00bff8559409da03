"""What the models room says: one state a version, changed in one place and published as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent.core.inventory import CacheUse, ModelLevel, ModelState, ModelsView
from agent.core.latest import Latest
from agent.core.refs import Digest, ModelUri
from agent.models.checksum import UNPROVED
from agent.models.store import Partial
from agent.models.version import Version

_UNPROVED = f"; {UNPROVED}: it states no checksum of some files, their sizes and ETags agree"
_GRAIN_BYTES = 64 << 20  # free space is told in steps of this, rounded down, so that other writers wake nobody


class Board:
    """Keeps the room's `ModelsView` and sets its cell at every change."""

    def __init__(self, cell: Latest[ModelsView]) -> None:
        self._cell = cell
        self._states: dict[Digest, ModelState] = {}
        self._resolved: dict[str, Digest] = {}
        self._unresolved: dict[str, str] = {}
        self._cache = CacheUse()

    def state(self, digest: Digest) -> ModelState:
        """Return what was last said of a version."""
        return self._states.get(digest) or ModelState(digest=digest)

    def update(self, digest: Digest, **changes: Any) -> None:
        """Change fields of one version's state. Of one that nothing proves, every reason says so."""
        state = replace(self.state(digest), **changes)
        if state.level.committed and state.proof == UNPROVED and not state.reason.endswith(_UNPROVED):
            state = replace(state, reason=state.reason + _UNPROVED)
        self._states[digest] = state
        self._publish()

    def committed(self, version: Version, reason: str, **changes: Any) -> None:
        """Say that a version is here, every byte checked."""
        size = version.manifest.size_bytes
        self.update(
            version.digest,
            **{
                "level": ModelLevel.COMMITTED,
                "done_bytes": size,
                "total_bytes": size,
                "busy": False,
                "proof": version.proof,
                "reason": reason,
                "error": "",
                "retry_at": None,
                "short_bytes": 0,
            }
            | changes,
        )

    def partial(self, found: Partial) -> None:
        """Say that a part of a version is here, from an earlier run."""
        self.update(
            found.digest,
            level=ModelLevel.PARTIAL,
            done_bytes=found.done_bytes,
            reason="a download that was interrupted can be resumed",
        )

    def gone(self, digest: Digest, reason: str) -> None:
        """Say that a version is not here (any more)."""
        self._states[digest] = replace(
            ModelState(digest=digest), total_bytes=self.state(digest).total_bytes, reason=reason
        )
        self._publish()

    def resolved(self, uri: ModelUri) -> Digest | None:
        """Return the version found for a URI that came without one."""
        return self._resolved.get(str(uri))

    def resolve(self, uri: ModelUri, digest: Digest | None, error: str = "") -> None:
        """Say which version a URI means; None: not known (any more), for the reason in `error`."""
        text = str(uri)
        self._resolved.pop(text, None)
        self._unresolved.pop(text, None)
        if digest is not None:
            self._resolved[text] = digest
        elif error:
            self._unresolved[text] = error
        self._publish()

    def facts(self, own_bytes: Mapping[Digest, int], kept: Mapping[Digest, str]) -> None:
        """Say of every version what its removal frees, and why it may not be removed."""
        for digest, state in self._states.items():
            self._states[digest] = replace(state, own_bytes=own_bytes.get(digest), kept=kept.get(digest, ""))
        self._publish()

    def use(self, cache: CacheUse) -> None:
        """Say how full the store is."""
        grain = _GRAIN_BYTES
        self._cache = replace(cache, free_bytes=cache.free_bytes // grain * grain)
        self._publish()

    def _publish(self) -> None:
        self._cell.set(
            ModelsView(
                states=dict(self._states),
                resolved=dict(self._resolved),
                cache=self._cache,
                unresolved=dict(self._unresolved),
            )
        )
