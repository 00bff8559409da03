"""Which pod uses which version: one small file a pod in `refs/`, written before the pod is told where its version is.

A reference lasts until the container runtime has twice shown no sandbox of that pod.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from agent.core.errors import Invalid, cut
from agent.core.refs import Digest, parse_digest
from agent.models.paths import fsync_directory, write_durably

_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9\-]{0,63}")


class References:
    """The files below `refs/`. Not shared between threads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._missed: dict[str, int] = {}

    def add(self, pod_uid: str, digests: Iterable[Digest]) -> None:
        """Note durably that a pod uses these versions, besides those it used before.

        Raises:
            Invalid: the uid, or a digest, is none.
        """
        file = self._file(pod_uid)
        known = self._read(file)
        wanted = known | frozenset(parse_digest(d) for d in digests)  # one that is none would make it unreadable
        if wanted != known and (
            known or not file.exists()
        ):  # one that cannot be read counts for every version as it is
            write_durably(file, json.dumps({"digests": sorted(wanted)}).encode())
        self._missed.pop(pod_uid, None)

    def drop(self, pod_uid: str) -> None:
        """Forget a pod."""
        self._file(pod_uid).unlink(missing_ok=True)
        fsync_directory(self._directory)
        self._missed.pop(pod_uid, None)

    def seen(self, live_pods: Collection[str]) -> None:
        """Take note of all pods that have a sandbox now; pods missing for the second time in a row are forgotten."""
        for uid in self.pods():
            if uid in live_pods:
                self._missed.pop(uid, None)
                continue
            self._missed[uid] = self._missed.get(uid, 0) + 1
            if self._missed[uid] >= 2:
                self.drop(uid)

    def pods(self) -> list[str]:
        """Return the uids of all pods that are noted."""
        return sorted(p.stem for p in self._directory.glob("*.json") if _UID.fullmatch(p.stem))

    def users(self, digest: Digest) -> list[str]:
        """Return the pods that use a version. A reference that cannot be read counts as using every version."""
        return [uid for uid in self.pods() if digest in (found := self._read(self._file(uid))) or not found]

    def _file(self, pod_uid: str) -> Path:
        if not _UID.fullmatch(pod_uid):
            raise Invalid(f"{cut(pod_uid, 80)!r} is not the uid of a pod")
        return self._directory / f"{pod_uid}.json"

    @staticmethod
    def _read(file: Path) -> frozenset[Digest]:
        try:
            return frozenset(parse_digest(str(d)) for d in json.loads(file.read_bytes())["digests"])
        except (OSError, ValueError, KeyError, TypeError, Invalid):
            return frozenset()
