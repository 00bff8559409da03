"""The store from the event loop: one disk operation at a time, each in a thread, each seen through to its end.

A cancelled caller waits for the thread's operation to finish (they are short), so that no two ever run side by side.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from agent.core.errors import Transient, cut
from agent.core.inventory import CacheUse
from agent.core.refs import Digest, EndpointKey
from agent.core.sandbox import Sandbox
from agent.models.capacity import space_of
from agent.models.kept import salvage
from agent.models.manifest import Manifest
from agent.models.open_files import open_inodes
from agent.models.references import References
from agent.models.store import Found, Partial, Staged, Store
from agent.models.threads import in_thread
from agent.models.transfer import FileProof
from agent.models.usage import cache_use, own_bytes
from agent.models.version import Version
from agent.models.views import Views

T = TypeVar("T")
ViewSpec = tuple[EndpointKey, str, Digest]
Withdraw = Callable[[Digest, str], bool]
Demoted = Callable[[Partial], None]


class Shelf:
    """Committed versions, views and references of one root. `versions` holds what is committed and proved."""

    def __init__(self, store: Store, *, proc: Path = Path("/proc")) -> None:
        self.store, self.views, self.references = store, Views(store.root), References(store.root / "refs")
        self.versions: dict[Digest, Version] = {}
        self._proc = proc
        self._lock = asyncio.Lock()

    async def open(self) -> Found:
        """Put the root in order and adopt what is there."""
        found = await self._disk(self.store.open)
        self.versions = {v.digest: v for v in found.versions}
        await self._disk(self.views.sweep_orphans, self.versions.keys())
        return found

    async def prove(self, withdraw: Withdraw, demoted: Demoted = lambda _partial: None) -> None:
        """Prove every version; of a broken one the claim is withdrawn by a call at once, then it is moved out of the way.

        Where `withdraw` says so, or it is pinned or used by a pod, what is good of it is kept in staging, to be mended, and
        `demoted` is told; else all of it is removed.
        """
        async with self._lock:
            found = await in_thread(lambda: [(v, self.store.broken(v)) for v in list(self.versions.values())])
            await self._take([(v, broken) for v, broken in found if broken], withdraw, demoted)

    async def condemn(self, inode: int, why: str, withdraw: Withdraw, demoted: Demoted = lambda _partial: None) -> None:
        """Take every version out of the way that has a file which reading back has shown to be bad; see `prove`."""
        async with self._lock:
            versions = list(self.versions.values())
            found = [
                (v, {r.path: f"{cut(ascii(r.path), 200)} {why}" for r in v.files if r.inode == inode}) for v in versions
            ]
            await self._take([(v, broken) for v, broken in found if broken], withdraw, demoted)

    async def _take(
        self, found: Sequence[tuple[Version, Mapping[str, str]]], withdraw: Withdraw, demoted: Demoted
    ) -> None:
        mend = {}
        for version, broken in found:  # all of them before the first that the disk may refuse to move
            del self.versions[version.digest]
            mend[version.digest] = withdraw(version.digest, next(iter(broken.values())))
        if found:
            await in_thread(self.store.forget, {r.inode for v, broken in found for r in v.files if r.path in broken})
        for version, broken in found:
            partial = await in_thread(self._take_broken, version, broken, mend[version.digest])
            if partial is not None:
                demoted(partial)

    def _take_broken(self, version: Version, broken: Collection[str], mend: bool) -> Partial | None:
        digest = version.digest
        self.views.drop_version(digest)
        if not self.store.directory(digest).is_dir():
            self.store.remove(digest)
        elif mend or self._held_by(digest) or not self.store.remove_unpinned(digest):  # pinned in this moment
            return self.store.demote(version, broken)
        return None

    async def admit(self, manifest: Manifest, high_watermark: float) -> Staged:
        """Return the staging of a version that fits, with what need not be fetched, good parts of bad files salvaged.

        Raises:
            NoRoom: it does not fit.
        """
        staged = await self._disk(lambda: self.store.admit(manifest, high_watermark, list(self.versions.values())))
        stop = threading.Event()
        copying = asyncio.ensure_future(in_thread(salvage, staged.directory, manifest, stop))
        try:
            await asyncio.shield(copying)
        finally:
            stop.set()
            await asyncio.wait({copying})
        return staged

    async def former(self, digest: Digest) -> Manifest | None:
        """Return the manifest of a version that is to be mended; None for any other."""
        return await self._disk(self.store.former, digest)

    async def commit(self, manifest: Manifest, proofs: Sequence[FileProof], now: datetime) -> Version:
        """Make a staged version visible."""

        def commit() -> Version:
            version = self.store.commit(manifest, proofs, now)
            self.versions[version.digest] = version
            return version

        return await self._disk(commit)

    async def discard(self, digest: Digest) -> None:
        """Throw a partial download away."""
        await self._disk(self.store.discard, digest)

    async def facts(self) -> tuple[CacheUse, dict[Digest, int], dict[Digest, str]]:
        """Return how full the store is, what removing each version frees, and why which may not be removed."""

        def ask() -> tuple[CacheUse, dict[Digest, int], dict[Digest, str]]:
            versions = list(self.versions.values())
            kept = {d: why for d in self.versions if (why := self._held_by(d))}
            return cache_use(self.store.root, versions), own_bytes(self.store.root, versions), kept

        return await self._disk(ask)

    async def short_bytes(self, needed_bytes: int, high_watermark: float) -> int:
        """Return how much room is lacking for so many bytes, 0 for none."""
        space = await self._disk(space_of, self.store.root)
        return max(0, needed_bytes - space.room_bytes(high_watermark))

    async def make_views(self, wanted: Iterable[ViewSpec]) -> None:
        """Make the views that are wanted of committed versions, and mend damaged ones.

        Raises:
            Transient: one of them cannot be made; the others are.
        """

        def make() -> None:
            failed: OSError | None = None
            for endpoint, name, digest in wanted:
                version = self.versions.get(digest)
                try:
                    if version is not None:
                        self.views.make(endpoint, name, version, self.store.directory(digest))
                except OSError as error:
                    failed = failed or error
            if failed is not None:
                raise failed

        await self._disk(make)

    async def sweep_views(self, wanted: Collection[tuple[EndpointKey, Digest]]) -> None:
        """Remove views that are neither wanted nor used by any pod."""

        def in_use(digest: Digest) -> bool:
            return bool(self.references.users(digest)) or bool(self._open_in(digest))

        await self._disk(self.views.sweep, wanted, in_use)

    async def refer(self, pod_uid: str, digests: Sequence[Digest]) -> None:
        """Note durably that a pod uses versions.

        Raises:
            Transient: one of them is not committed (any more).
        """

        def refer() -> None:
            for digest in digests:
                if digest not in self.versions:
                    raise Transient(f"version {digest[:19]} is not committed here any more")
            self.references.add(pod_uid, digests)

        await self._disk(refer)

    async def name_users(self, sandboxes: Iterable[Sandbox]) -> None:
        """Take every pod of an endpoint that has a view as a user of what the view shows: nobody may have noted it."""

        def note() -> None:
            shown: dict[EndpointKey, list[Digest]] = {}
            for endpoint, digest, _ in self.views.existing():
                shown.setdefault(endpoint, []).append(digest)
            for pod in sandboxes:
                if pod.endpoint in shown:
                    self.references.add(pod.uid, shown[pod.endpoint])

        await self._disk(note)

    async def seen(self, pods: Collection[str]) -> None:
        """Note which pods have sandboxes now."""
        await self._disk(self.references.seen, pods)

    async def any_pods(self) -> bool:
        """Say whether any pod is noted as a user."""
        return bool(await self._disk(self.references.pods))

    async def why_in_use(self, digest: Digest) -> str:
        """Say who uses a version; "" for nobody."""

        def why() -> str:
            if held := self._held_by(digest):
                return held
            holders = self._open_in(digest)
            return f"process {min(holders)} has a file of it open" if holders else ""

        return await self._disk(why)

    def _held_by(self, digest: Digest) -> str:
        if digest in self.store.pinned():
            return "it is pinned"
        users = self.references.users(digest)
        return f"{len(users)} pod(s) use it, among them {users[0]}" if users else ""

    def _open_in(self, digest: Digest) -> frozenset[int]:
        """Return the processes that have a file open which only this version has: one that others share tells nothing."""
        version = self.versions.get(digest)
        if version is None:
            return frozenset()
        others = {f.inode for v in self.versions.values() if v.digest != digest for f in v.files}
        mine = {f.inode for f in version.files}
        return open_inodes(self._proc, mine - others or mine, self.store.root)

    async def remove(self, digest: Digest, still: Callable[[], bool]) -> bool:
        """Remove a version, unless `still()` is false or a pod has come to use it; True if removed.

        `still` withdraws what is left of the claim and is called right before the rename, on the loop.
        """
        async with self._lock:
            if await in_thread(self._held_by, digest) or not still():
                return False
            version, removed = self.versions.pop(digest, None), False
            try:
                removed = await in_thread(self.store.remove_unpinned, digest, lambda: self.views.drop_version(digest))
            finally:
                if not removed and version is not None:
                    self.versions[digest] = version  # pinned in this moment, or the disk refused: the next proof tells
            return removed

    async def _disk(self, work: Callable[..., T], *args: object) -> T:
        async with self._lock:
            return await in_thread(work, *args)
