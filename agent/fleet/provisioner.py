"""Makes placeholders for windows that lack nodes, and takes them away: when the window is over, pods are there, nobody asks any more.

What stands is what the API server says, so that whoever plans next goes on from there: a placeholder that nobody wants is removed,
whoever made it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from agent.core.clock import Clock
from agent.core.errors import Permanent, Transient
from agent.core.latest import Latest, Signal
from agent.core.names import LABEL_PLACEHOLDER
from agent.core.refs import EndpointKey
from agent.fleet.arrivals import Arrivals
from agent.fleet.provision import Answer, Ask, Provision, answer, asks, lead_of, waits
from agent.fleet.provision_notes import NOT_INSTALLED, answer_note, off_note, refused_note, standing_notes
from agent.fleet.sources import Sources
from agent.kube.api import KubeApi
from agent.kube.errors import AlreadyExists, Conflict, Forbidden, NotFound
from agent.kube.events import Announcement
from agent.kube.placeholders import (
    PLACEHOLDERS,
    PRIORITY_CLASS,
    PRIORITY_CLASSES,
    WAITED_SECONDS,
    PlaceholderView,
    PriorityView,
    placeholder_body,
    placeholder_names,
)

log = structlog.get_logger()

_ROOM_SECONDS = 300.0  # what there is room for now may be taken by then
_LOST_SECONDS = 30.0  # one that was put out: by the pod it was for, of which the workload's status tells a little later
_CLOCK_SECONDS = 600.0  # a wall clock that is set is noticed within this
_REFUSED_SECONDS, _RETRY_SECONDS = 60.0, 10.0
_BEYOND = timedelta(minutes=10)  # a placeholder outlives its window by this where no planner takes it away


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisionReport:
    """For metrics: placeholders that hold a place, those that wait for a node, and how long one is reckoned to take."""

    holding: int = 0
    waiting: int = 0
    lead_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisionLimits:
    """The operator's settings: at most `nodes` placeholders in `namespace`, `lead` until arrivals are measured."""

    nodes: int
    lead: timedelta
    image: str
    namespace: str


class Provisioner:
    """A service; `said` gets what is to be told of workloads."""

    name = "bring up nodes for windows"

    def __init__(
        self,
        api: KubeApi,
        sources: Sources,
        wanted: Latest[tuple[Provision, ...] | None],
        said: Latest[Collection[Announcement]],
        report: Latest[ProvisionReport],
        *,
        clock: Clock,
        limits: ProvisionLimits,
    ) -> None:
        self._api, self._sources, self._wanted = api, sources, wanted
        self._said, self._report, self._clock, self._limits = said, report, clock, limits
        self._arrivals = Arrivals(api, limits.namespace)
        self._notes: dict[EndpointKey, Announcement] = {}  # how the last attempt for an endpoint ended
        self._pauses: dict[EndpointKey, float] = {}  # no placeholder is made before this (monotonic seconds)
        self._roomy: frozenset[EndpointKey] = frozenset()  # had room when they last asked
        self._seen: dict[str, EndpointKey] = {}  # by uid: alive at the last look
        self._removed: set[str] = set()  # uids, until the watch shows it
        self._swept = False

    async def run(self) -> None:
        """Run until cancelled. Placeholders stay then: they are the next leader's."""
        signal = Signal()
        cells = (self._wanted, self._sources.placeholders)
        for cell in cells:
            cell.attach(signal)
        try:
            while True:
                wait = await self.cycle()
                await signal.wait(wait)
        finally:
            for cell in cells:
                cell.detach(signal)

    async def cycle(self) -> float | None:
        """Make and remove what differs now; return the seconds until there may be more to do with nothing changed."""
        found, listing, limits = self._wanted.get(), self._sources.placeholders.get(), self._limits
        if not limits.nodes:
            self._said.set(frozenset(off_note(p) for p in found or ()))
            self._swept = self._swept or await self._sweep()
            return None if self._swept else _RETRY_SECONDS
        if found is None:
            return None  # no plan yet: what stands may well be wanted
        if listing.synced:
            await self._arrivals.look(listing.items, self._sources.nodes.get().items)
        now, monotonic, lead = self._clock.now(), self._clock.monotonic(), lead_of(self._arrivals.seconds, limits.lead)
        alive = self._alive(listing.items.values())
        resting = {k for k in self._roomy if self._pauses.get(k, 0.0) > monotonic} - {p.key for p in alive}
        over = {p.key: p.over for p in sorted(alive, key=lambda p: p.over or now) if p.over}
        asked = asks(found, now, lead, limits.nodes, over=over, roomy=self._roomy, resting=resting)
        if not listing.current:
            if not listing.synced and listing.error:
                blind = f"{NOT_INSTALLED}: {listing.error}"
                self._said.set(frozenset(refused_note(a, blind) for a in asked))
            return None
        soon = await self._settle(asked, list(listing.items.values()), now, monotonic)
        asking = [a for a in asked if a.provision.key not in resting]
        notes = {*self._notes.values(), *standing_notes(asking, listing.items.values(), now, limits.nodes)}
        self._said.set(frozenset(notes))
        self._report_all(listing.items.values(), lead)
        soon += [(at - now).total_seconds() for p in found if (at := p.next_change(now, lead))]
        return max(0.05, min([*soon, _CLOCK_SECONDS]))

    async def _settle(
        self, asked: Sequence[Ask], standing: list[PlaceholderView], now: datetime, monotonic: float
    ) -> list[float]:
        """Bring what stands to what is asked for; return after how many seconds to look again."""
        self._notice_losses(standing, monotonic)
        self._forget({a.provision.key for a in asked}, monotonic)
        names = {a.provision.key: self._names(a, standing) for a in asked}
        every = {name for some in names.values() for name in some}
        surplus = [p for p in standing if p.ended or p.name not in every]
        missing: list[tuple[Ask, str]] = []
        roomy = self._roomy
        for ask in asked:
            key = ask.provision.key
            mine = [p for p in standing if p.alive and p.name in names[key]]
            found = answer(ask, mine, now) if mine else Answer.OPEN
            if found is not Answer.OPEN:
                self._roomy -= {key}
                self._notes[key] = answer_note(ask, found)
            if found is Answer.ROOM:
                surplus += mine
                self._pauses[key] = monotonic + _ROOM_SECONDS
                self._roomy |= {key}
            elif self._pauses.get(key, 0.0) <= monotonic:
                have = {p.name for p in mine}
                missing += [(ask, name) for name in names[key] if name not in have]
        again = [_RETRY_SECONDS] if await self._remove(surplus) else []
        again += [0.0] if self._roomy != roomy else []  # others come first now
        if missing:
            await self._make(missing, now)
        young = any(p.alive and not p.node and not waits(p, now) for p in standing)
        pauses = [until - self._clock.monotonic() for until in self._pauses.values()]
        return again + pauses + ([WAITED_SECONDS] if young else [])

    def _names(self, ask: Ask, standing: Iterable[PlaceholderView]) -> tuple[str, ...]:
        wanted = ask.provision
        return placeholder_names(
            wanted.workload.name,
            wanted.key,
            self._limits.image,
            wanted.shape,
            ask.count,
            living=[p.name for p in standing if p.alive],
            leaving=[p.name for p in standing if p.deleting],
        )

    def _alive(self, standing: Iterable[PlaceholderView]) -> list[PlaceholderView]:
        return [p for p in standing if p.alive and p.uid not in self._removed]

    def _notice_losses(self, standing: Iterable[PlaceholderView], monotonic: float) -> None:
        """Wait a little before one that was put out is made again."""
        alive = {p.uid: p.key for p in standing if p.alive}
        for uid, key in self._seen.items():
            if uid not in alive and uid not in self._removed:
                log.info("placeholder made way", endpoint=str(key))
                self._pauses[key] = max(self._pauses.get(key, 0.0), monotonic + _LOST_SECONDS)
        self._seen = alive
        self._removed &= {p.uid for p in standing}

    def _forget(self, asking: Collection[EndpointKey], monotonic: float) -> None:
        self._roomy &= frozenset(asking)
        self._notes = {key: note for key, note in self._notes.items() if key in asking}
        self._pauses = {key: until for key, until in self._pauses.items() if key in asking and until > monotonic}

    async def _make(self, missing: Sequence[tuple[Ask, str]], now: datetime) -> None:
        try:
            owner = await self._class()
        except (Transient, Permanent) as error:
            for ask, _ in missing:
                self._refused(ask, error)
            return
        for ask, name in missing:
            if self._pauses.get(ask.provision.key, 0.0) > self._clock.monotonic():
                continue  # the one before was refused
            try:
                await self._create(ask, name, owner, now)
            except (Transient, Permanent) as error:
                self._refused(ask, error)

    async def _class(self) -> PriorityView:
        """Return the class of placeholders.

        Raises:
            Permanent: it is not there, or its pods would not make way.
        """
        try:
            found = await self._api.get(PRIORITY_CLASSES, PRIORITY_CLASS)
        except (NotFound, Forbidden) as error:
            raise Permanent(f"{NOT_INSTALLED}: {error}") from error
        if not found.yields:
            raise Permanent(
                f"PriorityClass {PRIORITY_CLASS} has value {found.value}: it must be below 0, with preemptionPolicy Never"
            )
        return found

    async def _create(self, ask: Ask, name: str, owner: PriorityView, now: datetime) -> None:
        provision, limits = ask.provision, self._limits
        body = placeholder_body(
            name,
            limits.namespace,
            key=provision.key,
            image=limits.image,
            shape=provision.shape,
            owner=owner,
            seconds=round((ask.window.until + _BEYOND - now).total_seconds()),
        )
        try:
            await self._api.create(PLACEHOLDERS, body, namespace=limits.namespace)
        except AlreadyExists:
            return  # made by another planner, or on its way out: the watch tells
        log.info("placeholder made", endpoint=str(provision.key), pod=name, until=ask.window.until.isoformat())

    def _refused(self, ask: Ask, error: Transient | Permanent) -> None:
        key = ask.provision.key
        log.warning("cannot make a placeholder", endpoint=str(key), error=str(error))
        passing = isinstance(error, Transient)
        self._pauses[key] = self._clock.monotonic() + (_RETRY_SECONDS if passing else _REFUSED_SECONDS)
        if not passing:
            self._notes[key] = refused_note(ask, str(error))

    async def _remove(self, surplus: Iterable[PlaceholderView]) -> bool:
        """Delete placeholders; say whether any could not be."""
        failed = False
        for each in surplus:
            if each.deleting or each.uid in self._removed:
                continue
            try:
                await self._api.delete(PLACEHOLDERS, each.name, namespace=each.namespace, uid=each.uid)
            except (NotFound, Conflict):
                pass  # gone, or another one by now
            except (Transient, Permanent) as error:
                log.warning("cannot remove a placeholder", pod=each.name, error=str(error))
                failed = True
                continue
            self._removed.add(each.uid)
            log.info("placeholder removed", endpoint=str(each.key), pod=each.name)
        return failed

    async def _sweep(self) -> bool:
        """Remove what a planner with another setting has left; return False if that has to be tried again."""
        try:
            left = await self._api.list(
                PLACEHOLDERS, namespace=self._limits.namespace, label_selector=LABEL_PLACEHOLDER
            )
        except Permanent as error:
            log.debug("no placeholders are looked for", reason=str(error))
            return True
        except Transient as error:
            log.warning("placeholders cannot be looked for", error=str(error))
            return False
        return not await self._remove(left.items)

    def _report_all(self, standing: Iterable[PlaceholderView], lead: timedelta) -> None:
        alive = self._alive(standing)
        holding = sum(bool(p.node) for p in alive)
        self._report.set(
            ProvisionReport(holding=holding, waiting=len(alive) - holding, lead_seconds=lead.total_seconds())
        )
