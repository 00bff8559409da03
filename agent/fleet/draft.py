"""One plan for the whole fleet: workloads, nodes and resolved versions in; an assignment for each node and what to tell people out.

`Drafter` decides nothing that its inputs do not say; it only remembers how it read an unchanged workload, because cron expressions
cost milliseconds each.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

from agent.core.assignment import Assignment, EndpointWant, ImageWant, ModelWant, Window, WindowSource, Workload
from agent.core.assignment_json import format_assignment, parse_assignment
from agent.core.errors import Invalid, cut
from agent.core.refs import EndpointKey, ImageRef, ModelUri
from agent.demand.annotations import read_endpoint, refuse_duplicates
from agent.demand.calendar import Almanac
from agent.demand.endpoint import DemandDefaults, Endpoint, EndpointReading, Predict, Problem, ProblemKind, WorkloadRef
from agent.demand.foretold import Windows
from agent.demand.windows import softened, softened_days, windows, with_predicted
from agent.fleet.calendars import Calendars
from agent.fleet.eligibility import closed
from agent.fleet.feasible import Outlook, miss_note, outlook
from agent.fleet.holidays import keepers, soften_notes, without_softened
from agent.fleet.loads import Loads
from agent.fleet.placement import place
from agent.fleet.provision import Provision, preferring, provisions
from agent.fleet.resolutions import Resolutions
from agent.fleet.scale import Scaling, scalings
from agent.fleet.yields import node_yields, slow_notes
from agent.kube.events import Announcement, EventType
from agent.kube.objects import ConfigMapView, NodeView, NodeWarmupView, ObjectRef, WorkloadView
from agent.kube.pull_secrets import PullFor

T = TypeVar("T", ModelUri, ImageRef)

MAX_ENDPOINTS = 200  # of one NodeWarmup (deploy/crd.yaml)
MAX_SPEC_BYTES = 1_000_000  # of one NodeWarmup: etcd takes 1.5 MiB, and status and bookkeeping go there too
_READ_AGAIN = timedelta(hours=6)  # `windows` moves its edges in these steps, counted from midnight UTC
_CROWDED = (
    f"a node it was placed on has too many endpoints: one takes {MAX_ENDPOINTS}, or {MAX_SPEC_BYTES // 1000} kB of "
    "models, images and windows, those of greater priority first"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetState:
    """Everything a plan rests on. `handlers` maps RuntimeClass names to what the container runtime calls them.

    `heard` are the nodes whose agents are Ready, `held` those that placeholders hold for an endpoint.
    """

    workloads: tuple[WorkloadView, ...] = ()
    nodes: tuple[NodeView, ...] = ()
    warmups: Mapping[str, NodeWarmupView] = field(default_factory=dict)
    handlers: Mapping[str, str] = field(default_factory=dict)
    resolutions: Resolutions = field(default_factory=Resolutions)
    calendars: tuple[ConfigMapView, ...] = ()
    heard: frozenset[str] = frozenset()
    held: Mapping[EndpointKey, frozenset[str]] = field(default_factory=dict)
    predicted: Windows = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The plan. `assignments` has every node that exists; `models` and `images` are to be resolved for those windows."""

    assignments: Mapping[str, Assignment] = field(default_factory=dict)
    announcements: frozenset[Announcement] = frozenset()
    models: Mapping[ModelUri, tuple[Window, ...]] = field(default_factory=dict)
    images: Mapping[ImageRef, tuple[Window, ...]] = field(default_factory=dict)
    pulls: Mapping[ImageRef, tuple[PullFor, ...]] = field(default_factory=dict)  # whose pull secrets count for an image
    endpoints: int = 0
    declared: tuple[Endpoint, ...] = ()
    windows: Mapping[EndpointKey, tuple[Window, ...]] = field(default_factory=dict)  # of all endpoints, placed or not
    used: frozenset[EndpointKey] = frozenset()  # those that have pods now
    misses: Mapping[EndpointKey, timedelta] = field(default_factory=dict)  # by how much next windows will be late
    slow_nodes: frozenset[str] = frozenset()
    scalings: tuple[Scaling, ...] = ()
    provisions: tuple[Provision, ...] = ()
    wake_at: datetime | None = None  # when the same state would give another plan


@dataclass(frozen=True, slots=True)
class _Dated:
    """An endpoint's windows, good from when they were made until a moment."""

    endpoint: Endpoint
    almanac: Almanac
    predicted: tuple[Window, ...]
    windows: tuple[Window, ...]
    softened: Mapping[date, str]
    since: datetime
    until: datetime


class Drafter:
    """Makes drafts; safe to call from a thread, one call at a time."""

    def __init__(self, defaults: DemandDefaults) -> None:
        self._defaults = defaults
        self._calendars = Calendars()
        self._readings: dict[str, tuple[WorkloadView, EndpointReading]] = {}
        self._windows: dict[EndpointKey, _Dated] = {}
        self._wants: dict[EndpointKey, EndpointWant] = {}
        self._leaner: dict[EndpointKey, tuple[EndpointWant, EndpointWant]] = {}
        self._sizes: dict[EndpointKey, tuple[EndpointWant, int]] = {}

    def draft(self, state: FleetState, now: datetime) -> Draft:
        """Return the plan for this state at `now` (aware)."""
        told = set(self._calendars.read(state.calendars, now))
        readings = refuse_duplicates(self._read(state.workloads))
        endpoints = [r.endpoint for r in readings if r.endpoint]
        self._windows = {e.key: self._date(e, state.predicted, now) for e in endpoints}
        told |= {_announce(r.workload, p) for r in readings for p in r.problems}
        told |= {_tell(e.workload, "Unresolved", m) for e in endpoints for m in _unresolved(e, state.resolutions)}
        wants = self._wanted(endpoints, state, told)
        previous = {
            w.name: tuple(e.key for e in w.assignment.endpoints) for w in state.warmups.values() if w.assignment
        }
        yields = node_yields(state.nodes, state.warmups, state.heard)
        loads = Loads(wants, yields, now)
        placement = place(
            [e for e in endpoints if e.key in wants], state.nodes, preferring(previous, state.held), loads
        )
        where = {e.key: e.workload for e in endpoints}
        told |= {_tell(where[k], "Unplaceable", reason) for k, reason in placement.unplaced.items()}
        fitting = self._fit(placement.assigned)
        crowded = {k for node, keys in placement.assigned.items() for k in set(keys) - set(fitting[node])}
        told |= {_tell(where[k], "Crowded", _CROWDED) for k in crowded}
        gone = {
            node.name for node in state.nodes if closed(node)
        }  # they keep what they have, and are not reckoned with
        live = {node: keys for node, keys in fitting.items() if node not in gone}
        assigned = self._soften(fitting, live)
        told |= set(self._softened(endpoints, live))
        ahead = outlook({node: assigned[node] for node in live}, yields, now)
        told |= set(slow_notes(state.nodes, yields)) | set(self._misses(endpoints, live, ahead))
        used = frozenset(r.key for w, r in self._readings.values() if r.key and w.running)
        dated = {key: each.windows for key, each in self._windows.items()}
        promised = {key: tuple(w for w in some if not _foretold(w)) for key, some in dated.items()}
        return Draft(
            assignments={node: Assignment(node=node, endpoints=found) for node, found in assigned.items()},
            announcements=frozenset(told),
            models=self._needed((e.key, tuple(m.uri for m in e.models)) for e in endpoints),
            images=self._needed((e.key, tuple(i for i in e.images if not i.digest)) for e in endpoints),
            pulls=_pulls(endpoints),
            endpoints=len(endpoints),
            declared=tuple(endpoints),
            windows=dated,
            used=used,
            misses={key: some[0].late.by for key, some in ahead.misses.items()},
            slow_nodes=frozenset(name for name, found in yields.items() if found.slow),
            scalings=scalings(endpoints, promised),
            provisions=provisions(endpoints, wants, promised, used, yields),
            wake_at=min(
                [d.until for d in self._windows.values()]
                + [w.ready_by for d in self._windows.values() for w in d.windows[:2] if w.ready_by > now]
                + [at for at in (ahead.look_at, self._calendars.until(now)) if at],
                default=None,
            ),
        )

    def _read(self, workloads: Iterable[WorkloadView]) -> list[EndpointReading]:
        before, self._readings = self._readings, {}
        for workload in workloads:
            key = f"{workload.kind}/{workload.namespace}/{workload.name}"
            old = before.get(key)
            same = old is not None and (old[0] is workload or old[0] == workload)
            reading = old[1] if old and same else read_endpoint(workload, self._defaults)
            self._readings[key] = (workload, reading)
        return [reading for _, reading in self._readings.values()]

    def _date(self, endpoint: Endpoint, foretold: Windows, now: datetime) -> _Dated:
        old = self._windows.get(endpoint.key)
        almanac = self._calendars.almanac
        predicted = foretold.get(endpoint.key, ()) if endpoint.predict is Predict.ON else ()
        same = old and old.endpoint is endpoint and old.almanac is almanac and old.predicted == predicted
        if old and same and old.since <= now < old.until:
            return old
        declared = windows(endpoint, now, almanac=almanac)
        found = with_predicted(declared, predicted, now)
        days = softened_days(endpoint, declared, now, almanac)
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        step = midnight + (1 + (now - midnight) // _READ_AGAIN) * _READ_AGAIN
        return _Dated(endpoint, almanac, predicted, found, days, now, min([step, *(w.until for w in found[:1])]))

    def _wanted(
        self, endpoints: Iterable[Endpoint], state: FleetState, told: set[Announcement]
    ) -> Mapping[EndpointKey, EndpointWant]:
        """Return what endpoints need, but those that would spoil the NodeWarmup for all others in it: these are `told` so."""
        wants, sizes = dict[EndpointKey, EndpointWant](), dict[EndpointKey, tuple[EndpointWant, int]]()
        for endpoint in endpoints:
            if found := self._want(endpoint, state):
                want = self._same(found)
                try:
                    sizes[want.key] = self._size(want)
                except Invalid as error:
                    told.add(_tell(endpoint.workload, str(ProblemKind.INVALID), cut(error)))
                    continue
                wants[want.key] = want
        self._wants, self._sizes = wants, sizes
        return wants

    def _want(self, endpoint: Endpoint, state: FleetState) -> EndpointWant | None:
        """Return what the endpoint needs on each of its nodes; None while the version of one of its models is unknown.

        An image whose digest is unknown stays, by its tag: the node may hold credentials for it that the planner lacks.
        """
        models = []
        for source in endpoint.models:
            found = state.resolutions.models.get(source.uri)
            if found is None or found.value is None:
                return None
            v = found.value
            models.append(
                ModelWant(name=source.name, uri=source.uri, digest=v.digest, size_bytes=v.size_bytes, files=v.files)
            )
        if not models and not endpoint.images:
            return None  # nothing to keep warm
        runtime = endpoint.runtime_class
        return EndpointWant(
            key=endpoint.key,
            workload=Workload(kind=endpoint.workload.kind, name=endpoint.workload.name),
            priority=endpoint.priority,
            gpus=endpoint.gpus,
            runtime_handler=state.handlers.get(runtime, runtime),
            service_account=_account(endpoint),
            pull_secrets=endpoint.spec.pull_secrets,
            images=tuple(ImageWant(ref=i, digest=_digest(i, state.resolutions)) for i in endpoint.images),
            models=tuple(models),
            windows=self._windows[endpoint.key].windows,
            memory=endpoint.memory,
            container=endpoint.container,
            metrics=endpoint.metrics,
        )

    def _same(self, want: EndpointWant) -> EndpointWant:
        """Return the object of the last draft if it is equal: comparing two plans is then mostly comparing identities."""
        old = self._wants.get(want.key)
        return old if old == want and old is not None else want

    def _soften(
        self, assigned: Mapping[str, tuple[EndpointKey, ...]], live: Mapping[str, tuple[EndpointKey, ...]]
    ) -> dict[str, tuple[EndpointWant, ...]]:
        """Return what each node is asked for: the softened windows of an endpoint stay on a third of its `live` nodes."""
        before, self._leaner = self._leaner, {}
        for key, want in self._wants.items():
            if any(map(softened, want.windows)):
                old = before.get(key)
                self._leaner[key] = old if old and old[0] is want else (want, without_softened(want))
        where = _nodes_of(live, self._leaner)
        keep = {key: keepers(key, nodes) for key, nodes in where.items()}
        return {
            node: tuple(self._leaner[k][1] if k in keep and node not in keep[k] else self._wants[k] for k in keys)
            for node, keys in assigned.items()
        }

    def _softened(
        self, endpoints: Iterable[Endpoint], assigned: Mapping[str, tuple[EndpointKey, ...]]
    ) -> Iterator[Announcement]:
        where = _nodes_of(assigned, self._leaner)
        for endpoint in endpoints:
            if nodes := where.get(endpoint.key):
                notes = soften_notes(self._windows[endpoint.key].softened, len(nodes))
                yield from (_tell(endpoint.workload, "Softened", note, EventType.NORMAL) for note in notes)

    def _misses(
        self, endpoints: Iterable[Endpoint], assigned: Mapping[str, tuple[EndpointKey, ...]], ahead: Outlook
    ) -> Iterator[Announcement]:
        where = _nodes_of(assigned, ahead.misses.keys())
        for endpoint in endpoints:
            if some := ahead.misses.get(endpoint.key):
                yield _tell(endpoint.workload, "CannotBeReady", miss_note(some, len(where[endpoint.key])))

    def _fit(self, assigned: Mapping[str, tuple[EndpointKey, ...]]) -> dict[str, tuple[EndpointKey, ...]]:
        """Return what each node's NodeWarmup can hold, greater priority first: one too large would be refused as a whole."""
        largest = max((size for _, size in self._sizes.values()), default=0)
        return {
            node: keys if len(keys) <= min(MAX_ENDPOINTS, MAX_SPEC_BYTES // max(largest, 1)) else self._first(keys)
            for node, keys in assigned.items()
        }

    def _size(self, want: EndpointWant) -> tuple[EndpointWant, int]:
        """Return how many bytes a NodeWarmup needs for it.

        Raises:
            Invalid: nobody could read it there.
        """
        old = self._sizes.get(want.key)
        if old is not None and old[0] is want:
            return old
        spec = format_assignment(Assignment(endpoints=(want,)))
        parse_assignment(spec)
        return want, len(json.dumps(spec))

    def _first(self, keys: Iterable[EndpointKey]) -> tuple[EndpointKey, ...]:
        kept, room = [], MAX_SPEC_BYTES
        for key in sorted(keys, key=lambda k: (-self._wants[k].priority, k))[:MAX_ENDPOINTS]:
            room -= self._sizes[key][1]
            if room < 0:
                break
            kept.append(key)
        return tuple(sorted(kept))

    def _needed(self, items: Iterable[tuple[EndpointKey, tuple[T, ...]]]) -> Mapping[T, tuple[Window, ...]]:
        needed: defaultdict[T, set[Window]] = defaultdict(set)
        for key, names in items:
            for name in names:
                needed[name].update(self._windows[key].windows)
        return {name: tuple(sorted(found)) for name, found in needed.items()}


def _foretold(window: Window) -> bool:
    """Say whether a window is a guess: it is worth disk, but neither pods nor nodes, and promises nothing."""
    return window.source is WindowSource.PREDICTED


def _nodes_of(
    assigned: Mapping[str, tuple[EndpointKey, ...]], keys: Collection[EndpointKey]
) -> Mapping[EndpointKey, list[str]]:
    """Return the nodes of these endpoints."""
    found: defaultdict[EndpointKey, list[str]] = defaultdict(list)
    for node, here in assigned.items() if keys else ():
        for key in here:
            if key in keys:
                found[key].append(node)
    return found


def _account(endpoint: Endpoint) -> str:
    account = endpoint.spec.service_account
    return "" if account == "default" else account


def _pulls(endpoints: Iterable[Endpoint]) -> Mapping[ImageRef, tuple[PullFor, ...]]:
    found: defaultdict[ImageRef, set[PullFor]] = defaultdict(set)
    for endpoint in endpoints:
        spec = endpoint.spec
        user = PullFor(
            namespace=endpoint.key.namespace, service_account=spec.service_account, secrets=spec.pull_secrets
        )
        for image in endpoint.images:
            found[image].add(user)
    return {image: tuple(sorted(users)) for image, users in found.items()}


def _digest(image: ImageRef, resolutions: Resolutions) -> str:
    if image.digest:
        return image.digest
    found = resolutions.images.get(image)
    return (found.value or "") if found else ""


def _unresolved(endpoint: Endpoint, resolutions: Resolutions) -> list[str]:
    models = [resolutions.models.get(m.uri) for m in endpoint.models]
    images = [resolutions.images.get(i) for i in endpoint.images]
    return [found.telling for found in (*models, *images) if found and found.telling]


def _announce(workload: WorkloadRef, problem: Problem) -> Announcement:
    kind = EventType.NORMAL if problem.kind is ProblemKind.NOTE else EventType.WARNING
    return _tell(workload, str(problem.kind), problem.message, kind)


def _tell(workload: WorkloadRef, reason: str, message: str, kind: EventType = EventType.WARNING) -> Announcement:
    about = ObjectRef(
        api_version=workload.api_version,
        kind=workload.kind,
        namespace=workload.namespace,
        name=workload.name,
        uid=workload.uid,
    )
    return Announcement(about=about, reason=reason, message=message, type=kind)
