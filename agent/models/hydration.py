"""Brings one version into the store: resolve, admit, download, commit; and says how far it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import structlog

from agent.core.clock import Clock
from agent.core.errors import Invalid, PrewarmError, Transient
from agent.core.inventory import ModelLevel
from agent.core.refs import Digest, ModelUri
from agent.core.sources import SourceRule, source_allowed, source_refusal
from agent.models.board import Board
from agent.models.checksum import UNPROVED
from agent.models.engine import Engine
from agent.models.manifest import Manifest
from agent.models.resolve import resolve
from agent.models.shelf import Shelf
from agent.models.source import S3Source
from agent.models.version import Version
from agent.models.wire import SourceChanged
from agent.plan.decision import HydrateStep

PROGRESS_SECONDS = 0.5
RESOLVE_SECONDS = 300.0  # 10,000 objects, one HEAD each, 16 at a time, far from S3
_MEASURED_BYTES = 64 << 20  # less than this says nothing about the rate of this node

log = structlog.get_logger(__name__)
OpenSource = Callable[[], AbstractAsyncContextManager[S3Source]]


class Hydration:
    """Executes hydrate steps, one at a time. Cancelled at any moment, what is on disk can be resumed."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        board: Board,
        engine: Engine,
        clock: Clock,
        high_watermark: float,
        rules: Sequence[SourceRule] | None,
        open_source: OpenSource,
    ) -> None:
        self._shelf, self._board, self._engine, self._clock = shelf, board, engine, clock
        self._high_watermark, self._rules, self._open_source = high_watermark, rules, open_source

    async def run(self, step: HydrateStep) -> None:
        """Bring the step's version into the store.

        Raises:
            PrewarmError: what went wrong, in one sentence.
        """
        self._refuse_forbidden(step)
        uri = step.want.uri
        async with self._open_source() as source:
            manifest = await self._resolve(step, source)
            digest = manifest.digest
            if digest in self._shelf.versions:
                return
            try:
                await self._bring(manifest, source, step)
            except SourceChanged:
                if not await self._is_as_it_was(manifest, source):
                    await self._shelf.discard(digest)
                    self._board.gone(digest, "the source changed while it was downloaded")
                    if step.want.digest is None:
                        self._board.resolve(uri, None)
                raise
            finally:
                self._ended(digest)

    def _ended(self, digest: Digest) -> None:
        """Give back the room kept for a download, and say what is here where it was interrupted: nobody has said that yet."""
        self._shelf.store.release(digest)
        state = self._board.state(digest)
        if not state.busy:
            return
        version = self._shelf.versions.get(digest)
        if version is not None:  # cancelled while it was committed, which is seen through
            self._tell_committed(version)
            return
        reason = "a download that was interrupted can be resumed" if state.level is ModelLevel.PARTIAL else ""
        self._board.update(digest, busy=False, rate_bytes_per_second=0.0, reason=reason)

    @staticmethod
    async def _is_as_it_was(manifest: Manifest, source: S3Source) -> bool:
        """Ask again, before hours of work are thrown away for one answer that may have been a gateway's; True if it is away."""
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                return (await resolve(manifest.uri, source)).digest == manifest.digest
        except (Transient, TimeoutError):
            return True
        except PrewarmError:
            return False

    def _refuse_forbidden(self, step: HydrateStep) -> None:
        uri = step.want.uri
        if self._rules is None or any(source_allowed(self._rules, e.namespace, uri) for e in step.endpoints):
            return
        raise Invalid(source_refusal(step.endpoints[0].namespace if step.endpoints else "", uri))

    async def _resolve(self, step: HydrateStep, source: S3Source) -> Manifest:
        want = step.want
        if want.digest is not None and (former := await self._shelf.former(want.digest)):
            return former
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                manifest = await resolve(want.uri, source)
        except TimeoutError as error:
            raise Transient(f"cannot list {want.uri}: not done after {RESOLVE_SECONDS:.0f} s") from error
        if want.digest is None:
            self._board.resolve(want.uri, manifest.digest)
        elif manifest.digest != want.digest:
            raise Transient(f"{want.uri}: the source changed since the planner resolved it")
        return manifest

    async def _bring(self, manifest: Manifest, source: S3Source, step: HydrateStep) -> None:
        digest, total = manifest.digest, manifest.size_bytes
        self._board.update(digest, total_bytes=total, busy=True, error="", retry_at=None, reason=step.reason)
        staged = await self._shelf.admit(manifest, self._high_watermark)
        self._board.update(digest, level=ModelLevel.PARTIAL)  # from here on it takes room
        started = self._clock.monotonic()
        telling = asyncio.create_task(self._tell(digest), name="hydration progress")
        try:
            have = [record.proved for record in staged.have]
            proofs = await self._engine.download(manifest, source, staged.directory, have)
        finally:
            telling.cancel()
            await asyncio.wait({telling})
        seconds, fetched = self._clock.monotonic() - started, self._engine.progress.fetched_bytes
        version = await self._shelf.commit(manifest, proofs, self._clock.now())
        rate = fetched / seconds if fetched >= _MEASURED_BYTES and seconds > 0 else 0.0
        self._tell_committed(version, rate, seconds=round(seconds, 1))

    def _tell_committed(self, version: Version, rate: float = 0.0, **measured: float) -> None:
        reason = "every byte is here" if version.proof == UNPROVED else f"every byte checked by {version.proof}"
        self._board.committed(version, reason, rate_bytes_per_second=rate)
        log.info(
            "committed",
            uri=str(version.manifest.uri),
            digest=version.digest,
            bytes=version.manifest.size_bytes,
            proof=version.proof,
            **measured,
        )

    async def _tell(self, digest: Digest) -> None:
        """Publish progress and a smoothed rate, at most every PROGRESS_SECONDS."""
        rate, before, at = 0.0, 0, self._clock.monotonic()
        while True:
            await self._clock.sleep(PROGRESS_SECONDS)
            now, progress = self._clock.monotonic(), self._engine.progress
            if now > at and progress.fetched_bytes >= before:
                fresh = (progress.fetched_bytes - before) / (now - at)
                rate = fresh if not rate else 0.8 * rate + 0.2 * fresh
            before, at = progress.fetched_bytes, now
            self._board.update(
                digest,
                level=ModelLevel.PARTIAL,
                done_bytes=progress.done_bytes,
                total_bytes=progress.total_bytes,
                rate_bytes_per_second=rate,
            )

    def newest_of(self, uri: ModelUri) -> Version | None:
        """Return the newest committed version of a URI, for when its source is away."""
        found = [v for v in self._shelf.versions.values() if v.manifest.uri == uri]
        return max(found, key=lambda v: v.committed, default=None)
