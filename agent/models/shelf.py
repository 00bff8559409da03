"""The store from the event loop: one disk operation at a time, each in a thread, each seen through to its end.

A cancelled caller waits for the thread's operation to finish (they are short), so that no two ever run side by side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from agent.core.errors import Transient
from agent.core.inventory import CacheUse
from agent.core.refs import Digest, EndpointKey
from agent.models.manifest import Manifest
from agent.models.open_files import open_inodes
from agent.models.references import References
from agent.models.store import Found, Store
from agent.models.threads import in_thread
from agent.models.transfer import FileProof
from agent.models.version import Version
from agent.models.views import Views

T = TypeVar("T")
ViewSpec = tuple[EndpointKey, str, Digest]


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

    async def prove(self, withdraw: Callable[[Digest, str], None]) -> None:
        """Prove every version; a broken one is withdrawn by a call at once, then moved out of the way with its views."""
        async with self._lock:
            found = await in_thread(lambda: [(v, self.store.prove(v)) for v in list(self.versions.values())])
            broken = [(version, why) for version, why in found if why]
            for version, why in broken:  # all of them before the first that the disk may refuse to move
                del self.versions[version.digest]
                withdraw(version.digest, why)
            for version, _ in broken:
                await in_thread(self._take_broken, version)

    def _take_broken(self, version: Version) -> None:
        self.store.remove(version.digest)
        self.views.drop_version(version.digest)

    async def admit(self, manifest: Manifest, high_watermark: float) -> Path:
        """Return the staging directory of a version that fits.

        Raises:
            Permanent: it does not fit.
        """

        def admit() -> Path:
            self.store.admit(manifest, high_watermark)
            return self.store.stage(manifest.digest)

        return await self._disk(admit)

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

    async def use(self) -> CacheUse:
        """Return how full the store is."""
        return await self._disk(lambda: self.store.use(list(self.versions.values())))

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

        def sweep() -> None:
            if any((endpoint, digest) not in wanted for endpoint, digest, _ in self.views.existing()):
                self.views.sweep(wanted, in_use)

        await self._disk(sweep)

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

    async def seen(self, pods: Collection[str]) -> None:
        """Note which pods have sandboxes now."""
        await self._disk(self.references.seen, pods)

    async def any_pods(self) -> bool:
        """Say whether any pod is noted as a user."""
        return bool(await self._disk(self.references.pods))

    async def why_in_use(self, digest: Digest) -> str:
        """Say who uses a version; "" for nobody."""

        def why() -> str:
            if digest in self.store.pinned():
                return "it is pinned"
            if users := self.references.users(digest):
                return f"{len(users)} pod(s) use it, among them {users[0]}"
            holders = self._open_in(digest)
            return f"process {min(holders)} has a file of it open" if holders else ""

        return await self._disk(why)

    def _open_in(self, digest: Digest) -> frozenset[int]:
        version = self.versions.get(digest)
        return open_inodes(self._proc, {f.inode for f in version.files}, self.store.root) if version else frozenset()

    async def remove(self, digest: Digest, still: Callable[[], bool]) -> bool:
        """Remove a version, unless `still()` is false or a pod has come to use it; True if removed.

        `still` withdraws what is left of the claim and is called right before the rename, on the loop.
        """
        async with self._lock:
            if await in_thread(self._is_held, digest) or not still():
                return False
            version = self.versions.pop(digest, None)
            removed = await in_thread(self.store.remove_unpinned, digest, lambda: self.views.drop_version(digest))
            if not removed and version is not None:
                self.versions[digest] = version  # pinned in this moment
            return removed

    def _is_held(self, digest: Digest) -> bool:
        return bool(self.references.users(digest)) or digest in self.store.pinned()

    async def _disk(self, work: Callable[..., T], *args: object) -> T:
        async with self._lock:
            return await in_thread(work, *args)
