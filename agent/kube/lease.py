"""Leader election on a coordination Lease: at most one replica leads, and who cannot renew stops before anybody else starts.

The client's own election is not used: it decides by the wall clock, ends on a connection error, has no deadline on a
renewal (five minutes) and never releases the Lease, so every rolling update would leave the fleet without a planner for
the Lease's duration. The protocol here is client-go's: a follower takes over when the Lease has not changed for its whole
duration, measured on the follower's own monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from datetime import datetime

import structlog

from agent.core.clock import Clock
from agent.core.errors import Permanent, Transient
from agent.kube.api import KubeApi
from agent.kube.errors import NotFound
from agent.kube.objects import LeaseView
from agent.kube.resources import LEASES

log = structlog.get_logger()

DURATION_SECONDS = 15.0  # as kube-controller-manager's defaults: 15, 10, 2; renewals are rarer to spare the API server
DEADLINE_SECONDS = 10.0
RENEW_SECONDS = 5.0
RETRY_SECONDS = 2.0
_RELEASE_SECONDS = 2.0


class _Lost(Exception):
    """The Lease could not be renewed in time, or is somebody else's."""


class LeaderElector:
    """One candidate. `identity` must be unique among the replicas (the pod's name)."""

    def __init__(self, api: KubeApi, *, namespace: str, name: str, identity: str, clock: Clock) -> None:
        self._api, self._clock = api, clock
        self._namespace, self._name, self._identity = namespace, name, identity
        self._seen: LeaseView | None = None
        self._seen_at = 0.0
        self._rng = random.Random()  # noqa: S311 (jitter)

    async def run(self, on_lead: Callable[[], Awaitable[None]]) -> None:
        """Lead whenever this candidate holds the Lease: `on_lead` runs and is cancelled when the Lease is lost.

        Runs until cancelled, then gives the Lease back, so that the other replica leads at once. What `on_lead` raises
        ends the process; that it returns is as wrong.
        """
        while True:
            since = await self._acquire()
            log.info("leading", lease=self._name, identity=self._identity)
            try:
                await self._lead(on_lead, since)
            except* _Lost as lost:
                log.warning("not leading any more", lease=self._name, error=str(lost.exceptions[0]))
            finally:
                await self._release()
            _raise_if_cancelled()

    async def _lead(self, on_lead: Callable[[], Awaitable[None]], since: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep(since), name="renew the lease")
            await on_lead()
            raise RuntimeError("the leader's work returned")

    async def _acquire(self) -> float:
        """Wait for the Lease. Returns when the request that got it was begun: it may have been written as early as that."""
        while True:
            began = self._clock.monotonic()
            with contextlib.suppress(TimeoutError):
                try:
                    async with asyncio.timeout(DEADLINE_SECONDS):
                        if await self._take():
                            return began
                except (Transient, Permanent) as error:
                    log.info("cannot ask for the lease", lease=self._name, error=str(error))
            await self._clock.sleep(self._until_next_try())

    def _until_next_try(self) -> float:
        """Return the seconds to the next look: soon, and no later than when the Lease that was seen runs out."""
        retry = RETRY_SECONDS * self._rng.uniform(1, 1.2)
        left = self._theirs_until() - self._clock.monotonic()
        return min(retry, left + self._rng.uniform(0, 0.2)) if left > 0 else retry

    async def _keep(self, renewed: float) -> None:
        again = renewed + RENEW_SECONDS  # counted from the request: a slow answer leaves less time, not a later renewal
        while True:
            await self._clock.sleep(max(0.0, min(again, renewed + DEADLINE_SECONDS) - self._clock.monotonic()))
            began = self._clock.monotonic()
            if began >= renewed + DEADLINE_SECONDS:
                raise _Lost(f"could not renew for {DEADLINE_SECONDS:.0f} s")
            try:
                async with asyncio.timeout(renewed + DEADLINE_SECONDS - began):
                    mine = await self._take()
            except (Transient, Permanent, TimeoutError) as error:
                log.info("cannot renew the lease", lease=self._name, error=str(error))
                again = self._clock.monotonic() + RETRY_SECONDS
                continue
            if not mine:
                raise _Lost(f"{self._seen.holder if self._seen else 'somebody'} holds it")
            renewed, again = began, began + RENEW_SECONDS

    async def _take(self) -> bool:
        """Create, renew or take over the Lease; False while another candidate's is still good, also if it was deleted."""
        lease = await self._look()
        if self._clock.monotonic() < self._theirs_until():
            return False
        if lease is None:
            self._seen = await self._api.create(LEASES, self._body(None), namespace=self._namespace)
        else:
            self._seen = await self._api.replace(LEASES, self._name, self._body(lease), namespace=self._namespace)
        self._seen_at = self._clock.monotonic()
        return True

    async def _look(self) -> LeaseView | None:
        try:
            lease = await self._api.get(LEASES, self._name, namespace=self._namespace)
        except NotFound:
            return None
        if self._seen is None or (lease.holder, lease.renewed) != (self._seen.holder, self._seen.renewed):
            self._seen_at = self._clock.monotonic()
        self._seen = lease
        return lease

    def _theirs_until(self) -> float:
        """Return when the Lease runs out that another candidate was last seen to hold (monotonic); long ago if none does."""
        seen = self._seen
        if seen is None or seen.holder in ("", self._identity):
            return float("-inf")
        return self._seen_at + max(seen.duration_seconds, DURATION_SECONDS)

    def _body(self, lease: LeaseView | None, *, release: bool = False) -> dict[str, object]:
        now = _micro_time(self._clock.now())
        mine = lease is not None and lease.holder == self._identity
        meta = {"name": self._name, "namespace": self._namespace}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": meta | ({"resourceVersion": lease.resource_version} if lease else {}),
            "spec": {
                "holderIdentity": "" if release else self._identity,
                "leaseDurationSeconds": 1 if release else round(DURATION_SECONDS),
                "acquireTime": lease.acquired if lease and mine and lease.acquired else now,
                "renewTime": now,
                "leaseTransitions": (lease.transitions if lease else 0) + (0 if mine else 1),
            },
        }

    async def _release(self) -> None:
        lease = self._seen
        if lease is None or lease.holder != self._identity:
            return
        with contextlib.suppress(Transient, Permanent, TimeoutError):
            async with asyncio.timeout(_RELEASE_SECONDS):
                self._seen = await self._api.replace(
                    LEASES, self._name, self._body(lease, release=True), namespace=self._namespace
                )


def _raise_if_cancelled() -> None:
    """Pass on a cancellation that came together with the loss: before Python 3.13 a TaskGroup tells of the error alone."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _micro_time(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
