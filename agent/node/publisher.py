"""The one writer of this node's labels, conditions and taint.

What it guarantees, and by what:

- a claim is withdrawn as soon as it is not proved: withdrawals pass every pause and cut short a slower write (`_send`);
- it never floods: other writes spend from a small budget (`_Pace`), the same write is repeated at growing intervals;
- what others strip comes back, and what others edit stays: it compares with the watched Node, never with its last write;
- to admit, the taint goes last; to withdraw, it comes first, and its failing holds up nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from agent.core.clock import Clock
from agent.core.errors import PrewarmError, cut
from agent.core.latest import Latest, Signal
from agent.core.names import LABEL_GPU, READY
from agent.core.retry import Backoff
from agent.kube.objects import NodeView
from agent.node.changes import Changes, changes, status_body, taint_ops
from agent.node.readiness import Readiness, TaintWish

GRACE_SECONDS = 10.0  # the design's: standing claims of this boot are proved or withdrawn within it
_COALESCE_SECONDS = 0.2  # admissions that come together share a PATCH
_WRITE_TIMEOUT_SECONDS = 5.0
_ECHO_SECONDS = 2.0  # how long the watch may take to show a write before it is made again; doubles each time
_ECHO_CAP_SECONDS = 64.0
_BURST, _REFILL_SECONDS = 4.0, 30.0  # writes other than withdrawals: 4 at once, then 2 a minute
_INSTANT_SECONDS = 0.001  # a pause shorter than this is rounding
_CUT_SHORT = "cut short by a withdrawal"

log = structlog.get_logger()


class NodeWriter(Protocol):
    """The two writes on the agent's own Node.

    Raises (both): Transient where a retry may help, also for a conflict or a failed `test`; Permanent where it is refused.
    """

    async def patch_status(self, node: str, body: Mapping[str, object]) -> None:
        """Apply a strategic-merge patch to `nodes/status`."""
        ...

    async def patch_taints(self, node: str, ops: Sequence[Mapping[str, object]]) -> None:
        """Apply a JSON patch to the Node."""
        ...


class _Pace:
    """A token bucket for what is not a withdrawal."""

    def __init__(self, now: float) -> None:
        self._tokens = _BURST
        self._at = now

    def wait_seconds(self, now: float) -> float:
        self._tokens = min(_BURST, self._tokens + (now - self._at) / _REFILL_SECONDS)
        self._at = now
        return max(0.0, (1.0 - self._tokens) * _REFILL_SECONDS)

    def spend(self) -> None:
        self._tokens = max(0.0, self._tokens - 1.0)


class Publisher:
    """Keeps the watched Node equal to the readiness, by writing only what differs."""

    name = "publisher"

    def __init__(
        self,
        *,
        node: Latest[NodeView | None],
        readiness: Latest[Readiness | None],
        writer: NodeWriter,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._node = node
        self._readiness = readiness
        self._writer = writer
        self._clock = clock
        self._rng = rng
        self._started = clock.monotonic()
        self._pace = _Pace(self._started)
        self._backoff = Backoff()
        self._retry_at = 0.0
        self._wanted_since: float | None = None  # admissions coalesce from here
        self._withdrawing_since: float | None = None
        self._tried: frozenset[str] = frozenset()  # withdrawals whose last write failed: they wait for their backoff
        self._written: Changes | None = None
        self._echo_at = 0.0
        self._echo_seconds = _ECHO_SECONDS
        self._in_flight: frozenset[str] = frozenset()
        self._told = ""

    async def run(self) -> None:
        """Publish until cancelled; whatever is cut off is found again by comparing with the watched Node."""
        signal = Signal()
        self._node.attach(signal)
        self._readiness.attach(signal)
        try:
            while True:
                await signal.wait(await self._step(signal))
        finally:
            self._node.detach(signal)
            self._readiness.detach(signal)

    async def flush(self) -> None:
        """Make one last attempt at withdrawals that wait; what is proved stays claimed, for the agent's successor."""
        node, change = self._node.get(), self._changes()
        if node is not None and change.withdraws and change != self._written:
            await self._patch(node, change)

    def withdrawal_waiting_seconds(self) -> float:
        """Return how long the oldest withdrawal that has not reached the API server waits; 0 if none does."""
        return self._clock.monotonic() - self._withdrawing_since if self._withdrawing_since is not None else 0.0

    async def _step(self, signal: Signal) -> float | None:
        """Write what is due; return the seconds after which to look again, None to wait for a change."""
        node, wanted = self._node.get(), self._readiness.get()
        change = self._changes()
        if node is None or wanted is None or not change.any:
            self._wanted_since, self._written = None, None
            return self._grace_left() or None
        now = self._clock.monotonic()
        pause = self._pause_seconds(change, now)
        if pause > _INSTANT_SECONDS:
            return min(pause, self._grace_left() or pause)
        await self._write(node, change, signal)
        return 0.0

    def _changes(self) -> Changes:
        """Compare, and keep account of claims that the watch has shown and of how long a withdrawal waits."""
        node, wanted = self._node.get(), self._readiness.get()
        if node is None or wanted is None:
            return Changes()
        self._in_flight -= {k for k in self._in_flight if node.labels.get(k) in (READY, "healthy")}
        change = changes(node, wanted, grace=self._grace_left() > 0, in_flight=self._in_flight)
        self._tried &= change.withdraws
        if not change.withdraws or change == self._written:
            self._withdrawing_since = None
        elif self._withdrawing_since is None:
            self._withdrawing_since = self._clock.monotonic()
        return change

    def _grace_left(self) -> float:
        return max(0.0, self._started + GRACE_SECONDS - self._clock.monotonic())

    def _pause_seconds(self, change: Changes, now: float) -> float:
        """Say how long this write has to wait: not at all for a withdrawal that has not been tried yet."""
        if change == self._written:
            return self._echo_at - now
        if change.withdraws - self._tried:
            return 0.0
        if change.withdraws:
            return self._retry_at - now
        if self._wanted_since is None:
            self._wanted_since = now
        return max(self._wanted_since + _COALESCE_SECONDS - now, self._retry_at - now, self._pace.wait_seconds(now))

    async def _write(self, node: NodeView, change: Changes, signal: Signal) -> None:
        claimed = {k for k, v in change.labels.items() if v == READY or (k == LABEL_GPU and v == "healthy")}
        self._in_flight |= claimed
        if not change.withdraws:
            self._pace.spend()
        error = await self._send(node, change, signal)
        now = self._clock.monotonic()
        self._wanted_since = None
        if error is None:
            self._settle(change, now)
        elif error is not _CUT_SHORT:
            self._fail(error, change, now)

    def _fail(self, error: str, change: Changes, now: float) -> None:
        self._backoff = replace(self._backoff.failed(), cap_seconds=5.0 if change.withdraws else 30.0)
        self._retry_at = now + self._backoff.delay_seconds(self._rng)
        self._tried = change.withdraws
        if error != self._told:  # the same failure again says nothing new
            log.warning("cannot write what this node says of itself", error=error)
            self._told = error

    def _settle(self, change: Changes, now: float) -> None:
        gone = {k for k, v in change.labels.items() if v is None} | (change.withdraws & {LABEL_GPU})
        self._in_flight -= gone
        self._backoff, self._retry_at, self._tried, self._told = Backoff(), 0.0, frozenset(), ""
        self._withdrawing_since = None
        again = change == self._written
        self._echo_seconds = min(_ECHO_CAP_SECONDS, self._echo_seconds * 2) if again else _ECHO_SECONDS
        self._written, self._echo_at = change, now + self._echo_seconds
        log.info(
            "node readiness written",
            labels={k: v or "" for k, v in change.labels.items()},
            conditions={c.type: f"{c.status} {c.reason}" for c in change.conditions},
            taint=str(change.taint),
        )

    async def _send(self, node: NodeView, change: Changes, signal: Signal) -> str | None:
        """Make the writes; return None when done, else what failed."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._patch(node, change), name="publish")
            task.add_done_callback(lambda _: signal.fire())
            while not task.done():
                await signal.wait()
                if not task.done() and self._changes().withdraws - change.withdraws:
                    task.cancel()
                    return _CUT_SHORT
        return task.result()

    async def _patch(self, node: NodeView, change: Changes) -> str | None:
        ops = taint_ops(node, change.taint)
        failed = await self._try(self._writer.patch_taints(node.name, ops)) if change.taint is TaintWish.ADD else None
        if change.status:
            body = status_body(change, node, self._clock.now())
            failed = await self._try(self._writer.patch_status(node.name, body)) or failed
        if change.taint is TaintWish.LIFT and failed is None:
            failed = await self._try(self._writer.patch_taints(node.name, ops))
        return failed

    async def _try(self, write: Awaitable[None]) -> str | None:
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_SECONDS):
                await write
        except TimeoutError:
            return f"the API server did not answer within {_WRITE_TIMEOUT_SECONDS:.0f} s"
        except PrewarmError as error:
            return cut(error)
        return None
