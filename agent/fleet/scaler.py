"""Raises the minimum scale of endpoints for their windows and puts it back, and never argues with another owner of the field."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

import structlog

from agent.core.assignment import Window
from agent.core.clock import Clock
from agent.core.errors import Permanent, Transient
from agent.core.latest import Latest, Signal
from agent.core.names import LABEL_RAISED_FROM, SCALE_MANAGER
from agent.demand.endpoint import MinScale, WorkloadRef
from agent.fleet.scale import Scaling, Step, raised, restored, scaler_of, strays, told
from agent.kube.api import KubeApi
from agent.kube.errors import Conflict, Forbidden, NotFound
from agent.kube.events import Announcement, EventType
from agent.kube.objects import ObjectRef
from agent.kube.scalers import SCALERS, ScalerView, applied

log = structlog.get_logger()

_LOOK_SECONDS = 60.0  # while a window is open: autoscalers come, go and are changed
_RETRY_SECONDS = 10.0
_CLOCK_SECONDS = 600.0  # a wall clock that is set is noticed within this
_NAMESPACES = 8  # of more, one list of all is cheaper
_NONE = (
    "min-scale: no HorizontalPodAutoscaler, ScaledObject or Knative revision that the planner may see scales it, so nothing "
    "keeps its pods up in this window"
)

Open = Sequence[tuple[Scaling, Window]]


class Scaler:
    """A service. While no window is open and nothing is raised it asks the API server for nothing."""

    name = "raise minimum scales"

    def __init__(
        self,
        api: KubeApi,
        scalings: Latest[tuple[Scaling, ...] | None],
        standing: Latest[Collection[Announcement]],
        *,
        clock: Clock,
    ) -> None:
        self._api, self._scalings, self._standing, self._clock = api, scalings, standing, clock
        self._unread: frozenset[str] = frozenset()  # kinds that may not be read
        self._restless = True  # a planner before this one may have left something raised

    async def run(self) -> None:
        """Run until cancelled."""
        signal = Signal()
        self._scalings.attach(signal)
        try:
            while True:
                wait = await self.cycle()
                await signal.wait(wait)
        finally:
            self._scalings.detach(signal)

    async def cycle(self) -> float | None:
        """Write what differs now; return the seconds until there may be more to do with nothing changed."""
        now, asked = self._clock.now(), self._scalings.get()
        if asked is None:
            return None  # no plan yet: what is raised may well be wanted
        opened = [(s, w) for s in asked if (w := s.open_window(now))]
        try:
            failed = await self._settle(opened) if opened or self._restless else False
        except (Transient, Permanent) as error:
            log.warning("cannot read autoscalers", error=str(error))
            failed = True
        if failed:
            return _RETRY_SECONDS
        return _soonest(now, (s.next_change(now) for s in asked), _LOOK_SECONDS if self._restless else _CLOCK_SECONDS)

    async def _settle(self, opened: Open) -> bool:
        """Make the autoscalers fit the open windows; say whether a write failed that may pass."""
        scalers = await self._look({s.workload.namespace for s, _ in opened})
        notes, wanted, failed = list[Announcement](), list[ScalerView](), False
        for scaling, window in opened:
            scaler = scaler_of(scaling, scalers)
            if scaler is None:
                notes.append(_tell(scaling.workload, "NoAutoscaler", _NONE))
                continue
            if scaling.mode is MinScale.APPLY:
                wanted.append(scaler)
            try:
                notes += await self._raise(scaler, scaling, window)
            except Transient as error:
                log.warning("cannot raise a minimum scale", scaler=scaler.name, error=str(error))
                failed = True
        stuck = bool(self._unread)  # something may be raised there
        for scaler in strays(scalers, wanted):
            try:
                await self._restore(scaler)
            except (Permanent, Conflict) as error:
                log.warning("a minimum scale stays raised", scaler=scaler.name, error=str(error))
                stuck = True
            except Transient as error:
                log.warning("cannot restore a minimum scale", scaler=scaler.name, error=str(error))
                failed = True
        self._standing.set(frozenset(notes))
        self._restless = bool(opened) or failed or stuck
        return failed

    async def _look(self, namespaces: Collection[str]) -> list[ScalerView]:
        """Return the autoscalers of these namespaces, and all that are raised anywhere."""
        found: dict[tuple[str, str, str], ScalerView] = {}
        where = sorted(namespaces) if len(set(namespaces)) <= _NAMESPACES else [""]
        unread = set[str]()
        for knob, resource in SCALERS.items():
            try:
                listed = [await self._api.list(resource, label_selector=LABEL_RAISED_FROM)]
                listed += [await self._api.list(resource, namespace=n) for n in where]
            except NotFound:
                continue  # the kind is not installed
            except Forbidden as error:
                if knob.kind not in self._unread:
                    log.warning("may not read autoscalers", kind=knob.kind, error=str(error))
                unread.add(knob.kind)
                continue
            found |= {(knob.kind, s.namespace, s.name): s for each in listed for s in each.items}
        self._unread = frozenset(unread)
        return list(found.values())

    async def _raise(self, scaler: ScalerView, scaling: Scaling, window: Window) -> list[Announcement]:
        """Raise an autoscaler, or say what that would be.

        Raises:
            Transient: it is worth another try soon.
        """
        step = raised(scaler, scaling.pods_in(window))
        if step is None:
            return []
        if scaling.mode is MinScale.RECOMMEND:
            text = f"min-scale: recommend: would raise {told(scaler, step, scaling, window)}"
            return [_tell(scaling.workload, "WouldRaise", text, EventType.NORMAL)]
        try:
            await self._write(step)
        except Conflict as error:
            text = (
                f"min-scale: {scaler.knob.word} of {scaler.knob.kind} {scaler.name} is somebody else's and stays {scaler.least} "
                f"({error}): leave it out where it is set, or set it there"
            )
            return [_tell(scaling.workload, "LeftAlone", text)]
        except Permanent as error:
            return [_tell(scaling.workload, "CannotRaise", f"min-scale: {error}")]
        text = f"min-scale: raised {told(scaler, step, scaling, window)}"
        log.info("minimum scale raised", endpoint=str(scaling.key), what=text)
        return [_tell(scaling.workload, "Raised", text, EventType.NORMAL)]

    async def _restore(self, scaler: ScalerView) -> None:
        """Put back what was before.

        Raises:
            Transient: it is worth another try soon.
            Permanent, Conflict: somebody forbids it, or owns the field too: it is tried again at the next look.
        """
        step = restored(scaler)
        if step is None:
            return
        with contextlib.suppress(NotFound):
            await self._write(step)
        log.info("minimum scale restored", namespace=scaler.namespace, scaler=scaler.name, to=scaler.raised_from)

    async def _write(self, step: Step) -> None:
        scaler = step.scaler
        body = applied(scaler, step.least, step.raised_from)
        await self._api.apply(
            SCALERS[scaler.knob], scaler.name, body, manager=SCALE_MANAGER, namespace=scaler.namespace
        )


def _soonest(now: datetime, changes: Iterable[datetime | None], at_most: float) -> float:
    return min([at_most, *(max(0.05, (at - now).total_seconds()) for at in changes if at)])


def _tell(workload: WorkloadRef, reason: str, message: str, kind: EventType = EventType.WARNING) -> Announcement:
    about = ObjectRef(
        api_version=workload.api_version,
        kind=workload.kind,
        namespace=workload.namespace,
        name=workload.name,
        uid=workload.uid,
    )
    return Announcement(about=about, reason=reason, message=message, type=kind)
