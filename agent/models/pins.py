"""Pins: the versions a person wants kept whatever comes, one small file each in `pins/`.

Any process may set or lift one, also beside a running agent: whoever removes a version holds `locked` from its last look at
the pins to the rename that takes the version away.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from agent.core.assignment_json import format_time
from agent.core.refs import Digest, is_digest, parse_digest
from agent.models.paths import fsync_directory, write_durably


class Pins:
    """The files below one directory, which is made when first needed. All methods block on the disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from changing pins, and from removing what is not pinned, as long as the context lasts."""
        self._directory.mkdir(exist_ok=True)
        at = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(at, fcntl.LOCK_EX)
            yield
        finally:
            os.close(at)

    def add(self, digest: Digest, now: datetime) -> None:
        """Pin durably. The caller holds `locked` and has seen that the version is there."""
        write_durably(self._file(digest), json.dumps({"pinned": format_time(now)}).encode())

    def remove(self, digest: Digest) -> bool:
        """Lift a pin; False if there was none."""
        file = self._file(digest)
        if not file.exists():
            return False
        file.unlink(missing_ok=True)
        fsync_directory(self._directory)
        return True

    def all(self) -> frozenset[Digest]:
        """Return what is pinned. The name of a pin says it all: one whose content was lost still holds."""
        names = {p.stem for p in self._directory.glob("*.json")} if self._directory.is_dir() else set()
        return frozenset(Digest(name) for name in names if is_digest(name))

    def _file(self, digest: Digest) -> Path:
        return self._directory / f"{parse_digest(digest)}.json"
