"""The models room: proves every committed version each interval, brings in what the plan wants, and removes what it gives up.

What comes in, and in which order, is in `agent.models.queue`. A claim rests on a completed proof cycle: the heartbeat beats
only after one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from agent.config import Settings
from agent.core.clock import Clock
from agent.core.errors import Permanent, PrewarmError
from agent.core.heartbeat import Heartbeat
from agent.core.inventory import ModelLevel, ModelsView, StoreCare
from agent.core.latest import Latest, Signal
from agent.core.refs import Digest, EndpointKey
from agent.core.sources import SourceRule, source_allowed
from agent.models.board import Board
from agent.models.capacity import watermark_of
from agent.models.engine import Engine
from agent.models.eviction import Eviction, Sandboxes
from agent.models.failures import Failures
from agent.models.hydration import Hydration, OpenSource
from agent.models.queue import Queue
from agent.models.scrub import Scrub
from agent.models.shelf import Shelf
from agent.models.source import open_source
from agent.models.store import Partial, Store
from agent.models.threads import in_thread
from agent.plan.decision import NodePlan

LOCK_SECONDS = 0.5  # how often a root held by another agent is tried again: a rolling update waits here
_DISK_SECONDS = 5.0  # how often a root that cannot be opened is tried again

log = structlog.get_logger(__name__)


class ModelService:
    """Publishes `models` from `plan`. Also what the local API calls to note a pod's versions (`add`)."""

    name = "models"

    def __init__(  # noqa: PLR0913 (wired once, in app.py)
        self,
        *,
        settings: Settings,
        plan: Latest[NodePlan],
        models: Latest[ModelsView],
        clock: Clock,
        heartbeat: Heartbeat,
        rules: Sequence[SourceRule] | None = None,
        sandboxes: Sandboxes | None = None,
        store: Store | None = None,
        engine: Engine | None = None,
        source: OpenSource = open_source,
        rng: random.Random | None = None,
    ) -> None:
        """Wire the room.

        `rules` None allows every source (a plan file); `sandboxes` None means that no container runtime is here.
        """
        self._plan, self._clock, self._heartbeat, self._rules = plan, clock, heartbeat, rules
        self._interval_seconds, self._scrub_rate = settings.proof_interval_seconds, settings.scrub
        rng = rng or random.Random()  # noqa: S311 (spreads retries)
        self._store = store or Store(settings.root)
        self._shelf = Shelf(self._store)
        self._board = Board(models)
        self._engine = engine or Engine(connections=settings.connections, bandwidth=settings.bandwidth)
        self._watermark = watermark_of(settings.high_watermark, settings.root)
        self._queue = Queue(
            plan=plan,
            shelf=self._shelf,
            board=self._board,
            engine=self._engine,
            hydration=Hydration(
                shelf=self._shelf,
                board=self._board,
                engine=self._engine,
                clock=clock,
                high_watermark=self._watermark,
                rules=rules,
                open_source=source,
            ),
            failures=Failures(clock, rng),
            ended=self._attempted,
        )
        self._eviction = Eviction(
            shelf=self._shelf,
            board=self._board,
            clock=clock,
            sandboxes=sandboxes,
            steps=lambda: self._plan.get().evictions,
            removed=self._look_for_room,
        )
        self._scrub = Scrub(
            shelf=self._shelf, clock=clock, rate=settings.scrub, busy=self._is_busy, condemn=self._condemn, rng=rng
        )
        self._tidy = Signal()
        self._broken = 0
        heartbeat.expect(self.name)

    def view_path(self, endpoint: EndpointKey, digest: Digest) -> Path:
        """Return where an endpoint's pods see a version."""
        return self._shelf.views.directory(endpoint, digest)

    def directory(self, digest: Digest) -> Path:
        """Return where a committed version lies in the store."""
        return self._store.directory(digest)

    def parts(self) -> Mapping[str, int]:
        """Return how many ranges came so far, by outcome: ok, retried, hedged, corrupt."""
        return self._engine.tally.parts

    def care(self) -> StoreCare:
        """Return what was done so far so that committed versions stay whole."""
        at = self._scrub.turned_at
        return StoreCare(
            read_bytes=self._scrub.read_bytes,
            bad_parts=self._scrub.bad_parts,
            broken=self._broken,
            mended=self._queue.mended,
            turn_age_seconds=None if at is None else self._clock.monotonic() - at,
        )

    async def add(self, pod_uid: str, digests: Sequence[Digest]) -> None:
        """Note durably that a pod uses these versions.

        Raises:
            Transient: one of them is not committed (any more), or the disk failed.
        """
        await self._shelf.refer(pod_uid, digests)
        await self._tell_use()

    async def remove(self, digest: Digest) -> None:
        """Remove a version as an eviction does: claim first, then a look at who uses it. Returns when it is gone.

        Raises:
            Permanent: it is needed now, pinned or in use, or is not here.
        """
        if why := self._plan.get().needed.get(digest):
            raise Permanent(f"version {digest[:19]} is needed now: {why}")
        asked = self._eviction.ask(digest)
        self._tidy.fire()
        await asked

    async def run(self) -> None:
        """Run until cancelled; a running download is left resumable."""
        try:
            await self._take_root()
            await self._adopt()
            for signal in (self._queue.changed, self._tidy):
                self._plan.attach(signal)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_proving(), name="models prove")
                tasks.create_task(self._queue.run(tasks), name="models hydrate")
                tasks.create_task(self._keep_tidy(), name="models tidy")
                if self._scrub_rate:
                    tasks.create_task(self._scrub.run(), name="models scrub")
        finally:
            self._store.unlock()

    async def _take_root(self) -> None:
        waiting = False
        while True:
            try:
                taken = await in_thread(self._store.try_lock)
            except PrewarmError as error:
                log.warning("cannot open the store", root=str(self._store.root), error=str(error))
                self._heartbeat.miss(self.name, f"cannot open the store: {error}")
                await self._clock.sleep(_DISK_SECONDS)
                continue
            if taken:
                return
            if not waiting:
                log.info("another agent has the store; waiting for it to end", root=str(self._store.root))
                self._heartbeat.miss(self.name, f"another agent has {self._store.root}; waiting for it to end")
                waiting = True
            await self._clock.sleep(LOCK_SECONDS)

    async def _adopt(self) -> None:
        while True:
            try:
                found = await self._shelf.open()
                await self._tell_use()
                break
            except PrewarmError as error:
                log.warning("cannot read the store", root=str(self._store.root), error=str(error))
                self._heartbeat.miss(self.name, f"cannot read the store: {error}")
                await self._clock.sleep(_DISK_SECONDS)
        for version in found.versions:
            self._board.committed(version, "found in the store and proved again")
        for digest, why in found.broken:
            self._withdraw(digest, why)
        broken = dict(found.broken)
        for partial in found.partial:
            tell = self._demoted if partial.digest in broken else self._board.partial
            tell(partial)
        self._heartbeat.beat(self.name, self._clock.monotonic())

    async def _keep_proving(self) -> None:
        """Prove everything each interval; every fourth time, also ask who still runs here and sweep views."""
        cycles = 0
        while True:
            await self._clock.sleep(self._interval_seconds)
            try:
                await self._shelf.prove(self._withdraw, self._demoted)
                self._heartbeat.beat(self.name, self._clock.monotonic())
                await self._tell_use()
                await self._look_for_room()
                cycles += 1
                if cycles % 4 == 0:
                    await self._forget_pods()
                await self._make_views(self._wanted_views())
            except PrewarmError as error:
                log.warning("the store could not be proved", error=str(error))
                self._heartbeat.miss(self.name, f"the store could not be proved: {error}")

    def _withdraw(self, digest: Digest, why: str) -> bool:
        """Withdraw the claim to a broken version; says whether to mend it: whether anybody here wants it."""
        log.warning("a committed version is broken", digest=digest, reason=why)
        self._broken += 1
        self._board.gone(digest, f"broken: {why}")
        return self._queue.mend(digest)

    def _demoted(self, partial: Partial) -> None:
        """Say that what is good of a broken version takes room yet: else nothing could ever remove it."""
        self._board.update(partial.digest, level=ModelLevel.PARTIAL, done_bytes=partial.done_bytes)

    async def _condemn(self, inode: int, why: str) -> None:
        await self._shelf.condemn(inode, why, self._withdraw, self._demoted)

    def _is_busy(self) -> bool:
        """Say whether a download, or a pod that waits, needs the disk more than the scrub does."""
        plan = self._plan.get()
        waited_for = any(h.urgent for h in plan.hydrations) or any(p.urgent for p in plan.pulls)
        return self._queue.is_running or waited_for

    async def _tell_use(self) -> None:
        use, own, kept = await self._shelf.facts()
        self._board.use(use)
        self._board.facts(own, kept | self._eviction.held())

    async def _attempted(self) -> None:
        with contextlib.suppress(PrewarmError):  # the next proof tells it
            await self._tell_use()

    async def _look_for_room(self) -> None:
        await self._queue.look_for_room(self._watermark)

    async def _forget_pods(self) -> None:
        """Forget pods that are gone, then sweep what nobody uses: never before it is known who runs here."""
        if not self._eviction.has_looked or await self._shelf.any_pods():
            try:
                await self._eviction.look()
            except PrewarmError as error:
                log.warning("who runs on this node is not known", error=str(error))
                return
            await self._tell_use()
        if self._plan.get().endpoints:  # before the first plan nothing is known to be unwanted
            await self._shelf.sweep_views({(endpoint, digest) for endpoint, _, digest in self._wanted_views()})

    async def _keep_tidy(self) -> None:
        made: object = None
        while True:
            wait: float | None = _DISK_SECONDS
            wanted = self._wanted_views()
            if wanted != made:
                await self._make_views(wanted)  # one that failed is made with the next proof
                made = wanted
            try:
                wait = await self._eviction.run()
            except PrewarmError as error:
                log.warning("the store could not be tidied", error=str(error))
            await self._tidy.wait(wait)

    async def _make_views(self, wanted: Sequence[tuple[EndpointKey, str, Digest]]) -> None:
        try:
            await self._shelf.make_views(wanted)
        except PrewarmError as error:
            log.warning("a view could not be made", error=str(error))

    def _wanted_views(self) -> list[tuple[EndpointKey, str, Digest]]:
        """Return the views to show: of committed versions, for endpoints whose namespace may use the source."""
        wanted = []
        for view in self._plan.get().views:
            version = self._shelf.versions.get(view.digest)
            if version is not None and (
                self._rules is None or source_allowed(self._rules, view.endpoint.namespace, version.manifest.uri)
            ):
                wanted.append((view.endpoint, view.name, view.digest))
        return wanted
