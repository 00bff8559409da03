"""The composition root: every service of both processes, wired once. Nothing here decides anything.

`/livez` is up before anything heavy is imported; that is why imports stand inside the functions that need them.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from agent.config import Settings
from agent.core.errors import Invalid
from agent.core.service import Relay
from agent.process import Process, run

if TYPE_CHECKING:
    from agent.core.assignment import Assignment
    from agent.core.latest import Latest
    from agent.core.refs import Digest, ImageRef, ModelUri
    from agent.core.starts import Starts
    from agent.images.client import ContainerdClient
    from agent.kube.api import KubeApi
    from agent.kube.pull_secrets import PullFor
    from agent.models.service import ModelService
    from agent.node.assignment_source import KeptAssignment
    from agent.node.loop import Decisions, Facts
    from agent.observe.metrics import Metrics
    from agent.plan.memory_budget import Requests

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What Kubernetes tells of this node and its pods; None before it has."""

    requests: Latest[Requests | None]
    tainted: Latest[bool | None]
    starts: Latest[Starts]


def run_agent(settings: Settings) -> int:
    """Run `prewarm agent` until it is told to stop; returns the exit code."""
    return run(settings, compose_agent, "agent")


def run_planner(settings: Settings) -> int:
    """Run `prewarm planner` until it is told to stop; returns the exit code."""
    return run(settings, compose_planner, "planner")


# -- the agent ---------------------------------------------------------------------------------------------------------


async def compose_agent(process: Process) -> None:
    """Wire the agent: rooms around cells, then either a plan file or the API server.

    Raises:
        Invalid: settings that do not go together.
    """
    from agent.core.inventory import GpuReport, Inventory, MemoryView, ModelsView
    from agent.core.latest import Latest
    from agent.core.starts import Starts
    from agent.gpu.service import GpuRoom, GpuService
    from agent.models.service import ModelService
    from agent.node.grants import LocalCells
    from agent.node.local_api import LocalApi
    from agent.node.loop import DecideLoop, Decisions, Facts
    from agent.node.pace import PaceKeeper
    from agent.node.waiting import WaitingLine
    from agent.observe.hydrations import HydrationWatch
    from agent.observe.metrics import Metrics
    from agent.observe.state import NodeState, StateCollector
    from agent.observe.windows import WindowWatch
    from agent.plan.decision import NodePlan
    from agent.plan.planning import Limits, plan

    settings, clock, heartbeat = process.settings, process.clock, process.heartbeat
    node = settings.node_name or os.environ.get("NODE_NAME", "")
    if not settings.plan and not node:
        raise Invalid("which node is this? set node_name (NODE_NAME in the DaemonSet), or run alone with --plan FILE")
    _make_root(settings.root)
    metrics = Metrics(process.registry)
    facts = Facts(
        assignment=Latest(None),
        images=Latest({}),
        models=Latest(ModelsView()),
        memory=Latest(MemoryView()),
        gpu=Latest(GpuReport()),
        waiting=Latest(frozenset()),
    )
    decided = Decisions(inventory=Latest(Inventory()), plan=Latest(NodePlan()), readiness=Latest(None))
    api = None if settings.plan else await _connect(process)
    containerd = _images(process, facts, decided, metrics, api)
    models = ModelService(
        settings=settings,
        plan=decided.plan,
        models=facts.models,
        clock=clock,
        heartbeat=heartbeat,
        rules=None if settings.plan else settings.sources,
        sandboxes=containerd,
    )
    told = Told(requests=Latest(None), tainted=Latest(False if settings.plan else None), starts=Latest(Starts()))
    boot_id = _boot_id(settings.boot_id_file)
    room = GpuRoom(settings=settings, boot_id=boot_id, tainted=told.tainted, gpu=facts.gpu)
    gpu = GpuService(room, clock=clock, heartbeat=heartbeat, observer=metrics)
    limits = Limits(warm_ahead=settings.warm_ahead, early=settings.early)
    decide = DecideLoop(
        facts=facts,
        decisions=decided,
        plan=lambda assignment, inventory, now: plan(assignment, inventory, now, limits),
        heartbeat=heartbeat,
        clock=clock,
        boot_id=boot_id,
        lift_taint=settings.lift_taint,
    )
    local = LocalApi(
        node=node,
        run_dir=settings.run_dir,
        cells=LocalCells(
            assignment=facts.assignment, inventory=decided.inventory, plan=decided.plan, readiness=decided.readiness
        ),
        line=WaitingLine(facts.waiting),
        refs=models,
        remover=models,
        sandboxes=containerd,
        view_path=models.view_path,
        clock=clock,
    )
    StateCollector(
        NodeState(
            assignment=facts.assignment.get,
            inventory=decided.inventory.get,
            labels=lambda: ready.labels if (ready := decided.readiness.get()) else {},
            ages=lambda: heartbeat.ages_seconds(clock.monotonic()),
            version=importlib.metadata.version("prewarm"),
            parts=models.parts,
            care=models.care,
            sources=containerd.received if containerd else dict,
        ),
        process.registry,
    )
    hydrations = HydrationWatch(models=facts.models, clock=clock, observer=metrics)
    windows = WindowWatch(assignment=facts.assignment, readiness=decided.readiness, clock=clock, observer=metrics)
    pace = PaceKeeper(
        models=facts.models, plan=decided.plan, pace=facts.pace, path=settings.root / "pace.json", clock=clock
    )
    process.services += [models, gpu, decide, local, hydrations, windows, pace]
    _memory(process, node, facts, decided, told, models, metrics)
    if settings.plan:
        from agent.node.assignment_source import PlanFileService

        process.services.append(PlanFileService(path=Path(settings.plan), assignment=facts.assignment, clock=clock))
    if api:
        await _in_cluster(process, api, node, facts, decided, metrics, told)


def _memory(
    process: Process, node: str, facts: Facts, decided: Decisions, told: Told, models: ModelService, metrics: Metrics
) -> None:
    """Add what brings weights into the page cache: for windows, and for pods that start."""
    from agent.models.head_start import HeadStart
    from agent.models.memory_group import MemoryGroup, group_name
    from agent.models.memory_tier import MemoryTier
    from agent.models.resident import files_of

    settings, clock = process.settings, process.clock
    group, files = MemoryGroup(Path("/sys/fs/cgroup"), group_name(node, settings.root)), files_of(models.directory)
    process.services.append(
        MemoryTier(
            plan=decided.plan,
            memory=facts.memory,
            requests=told.requests,
            group=group,
            files=files,
            clock=clock,
            setting=settings.memory_budget,
            observer=metrics,
        )
    )
    if settings.head_start:
        process.services.append(
            HeadStart(
                starts=told.starts,
                plan=decided.plan,
                memory=facts.memory,
                group=group,
                files=files,
                clock=clock,
                setting=settings.memory_budget,
                observer=metrics,
            )
        )


def _images(
    process: Process, facts: Facts, decided: Decisions, metrics: Metrics, api: KubeApi | None
) -> ContainerdClient | None:
    """Add the images room, unless there is no containerd here."""
    if process.settings.containerd == "none":
        return None
    from agent.images.client import ContainerdClient
    from agent.images.keyring import Keyring
    from agent.images.service import ImageService
    from agent.kube.pull_secrets import PullSecrets

    settings = process.settings
    secrets = PullSecrets(api, lambda ref: _users(facts.assignment.get(), ref)) if api else None
    keyring = Keyring.of(settings, process.clock, secrets)
    client = ContainerdClient(settings.containerd, settings.snapshotter, keyring)
    process.closing.push_async_callback(client.close)
    process.services.append(
        ImageService(
            client,
            plan=decided.plan,
            images=facts.images,
            settings=settings,
            clock=process.clock,
            heartbeat=process.heartbeat,
            observer=metrics,
            elsewhere=facts.elsewhere,
        )
    )
    return client


async def _connect(process: Process) -> KubeApi:
    from agent.kube.api import KubeApi

    api = await KubeApi.connect(process.settings.kubeconfig)
    process.closing.push_async_callback(api.close)
    return api


def _users(assignment: Assignment | None, ref: ImageRef) -> Iterator[PullFor]:
    """Yield who pulls an image on this node."""
    from agent.kube.pull_secrets import PullFor

    for endpoint in assignment.endpoints if assignment else ():
        if any(image.ref == ref for image in endpoint.images):
            yield PullFor(
                namespace=endpoint.key.namespace,
                service_account=endpoint.service_account or "default",
                secrets=endpoint.pull_secrets,
            )


async def _in_cluster(
    process: Process, api: KubeApi, node: str, facts: Facts, decided: Decisions, metrics: Metrics, told: Told
) -> None:
    """Add what an agent under Kubernetes has: its assignment, its Node's publisher, its NodeWarmup's status, cold starts."""
    from agent.core.assignment import Assignment
    from agent.core.latest import Latest
    from agent.kube.memory import memory_requests
    from agent.kube.objects import NodeView, NodeWarmupView, PodView
    from agent.kube.resources import NODES, NODEWARMUPS, PODS
    from agent.kube.watch import Listing, Selection, Watch
    from agent.kube.writers import AgentWriter
    from agent.node.assignment_source import KeepingService, KeptAssignment
    from agent.node.publisher import Publisher
    from agent.node.status_writer import StatusPublisher
    from agent.observe.answers import AnswerReader
    from agent.observe.coldstart import ColdStarts
    from agent.observe.counted import CountedWriter
    from agent.observe.start import starting_models
    from agent.plan.memory_budget import Requests

    settings, clock = process.settings, process.clock
    writer = CountedWriter(AgentWriter(api), metrics)
    warmups: Latest[Listing[NodeWarmupView]] = Latest(Listing())
    nodes: Latest[Listing[NodeView]] = Latest(Listing())
    pods: Latest[Listing[PodView]] = Latest(Listing())
    own: Latest[NodeView | None] = Latest(None)
    current = Latest(False)
    kept = KeptAssignment(settings.root / "nodewarmup.json", clock)
    facts.assignment.set(await asyncio.to_thread(_load_kept, kept, node))

    def assigned(listing: Listing[NodeWarmupView]) -> None:
        current.set(listing.current)
        found = listing.only()
        if listing.synced and found is None:
            facts.assignment.set(Assignment(node=node))  # nothing is asked of this node (any more)
        elif found is not None and found.assignment is not None:
            facts.assignment.set(found.assignment)
        elif found is not None:
            log.warning("the NodeWarmup cannot be read, the last assignment stands", error=found.problem)

    def requested(_: object) -> None:
        if pods.get().synced and (found := memory_requests(own.get(), pods.get().items.values())):
            told.requests.set(Requests(allocatable_bytes=found[0], requested_bytes=found[1]))

    def start(_: object) -> None:
        told.starts.set(starting_models(pods.get().items.values(), facts.assignment.get(), decided.inventory.get()))

    publisher = Publisher(node=own, readiness=decided.readiness, writer=writer, clock=clock, rng=random.Random())  # noqa: S311 (jitter)
    status = StatusPublisher(
        assignment=facts.assignment,
        inventory=decided.inventory,
        plan=decided.plan,
        readiness=decided.readiness,
        writer=writer,
        clock=clock,
        rng=random.Random(),  # noqa: S311 (jitter)
    )
    starts = ColdStarts(
        pods=pods,
        assignment=facts.assignment.get,
        inventory=decided.inventory.get,
        node=own.get,
        clock=clock,
        observer=metrics,
        answers=AnswerReader(),
    )
    process.withdrawal_waiting = publisher.withdrawal_waiting_seconds
    process.goodbyes.append(publisher.flush)
    by_name = Selection(fields=f"metadata.name={node}")
    process.services += [
        Watch(api, NODEWARMUPS, warmups, clock=clock, select=by_name),
        Watch(api, NODES, nodes, clock=clock, select=by_name),
        Watch(api, PODS, pods, clock=clock, select=Selection(fields=f"spec.nodeName={node}")),
        Relay("assignment", warmups, assigned),
        Relay("own node", nodes, lambda listing: own.set(listing.only() or own.get())),
        Relay("memory requests of pods", pods, requested),
        Relay("allocatable memory", own, requested),
        Relay("pods that start", pods, start),
        Relay("models of pods that start", decided.inventory, start),
        Relay("endpoints of pods that start", facts.assignment, start),
        Relay("start-up taint", own, lambda view: told.tainted.set(None if view is None else view.starts_up)),
        KeepingService(assignment=facts.assignment, kept=kept, current=current),
        publisher,
        status,
        starts,
    ]


def _load_kept(kept: KeptAssignment, node: str) -> Assignment | None:
    """Return the copy on disk if it is this node's."""
    found = kept.load()
    return found if found and found.node == node else None


def _make_root(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Invalid(f"cannot make {root}: {error.strerror} (setting root)") from error


def _boot_id(path: Path) -> str:
    """Return the kernel's boot id; without one, one of this process: then no claim outlives it."""
    try:
        return path.read_text().strip()
    except OSError as error:
        log.warning("no boot id, claims will not outlive this process", path=str(path), error=error.strerror)
        return f"process-{os.getpid()}-{random.getrandbits(64):x}"


# -- the planner -------------------------------------------------------------------------------------------------------


async def compose_planner(process: Process) -> None:
    """Wire the planner."""
    from agent.fleet.fleet import Fleet
    from agent.images.registry import RegistryResolver
    from agent.kube.api import KubeApi
    from agent.observe.planner import PlannerCollector, PlannerState

    settings = process.settings
    api = await KubeApi.connect(settings.kubeconfig)
    process.closing.push_async_callback(api.close)
    images = RegistryResolver(settings.registries, settings.registry_config)
    process.closing.push_async_callback(images.close)
    identity = os.environ.get("POD_NAME") or f"{os.uname().nodename}-{os.getpid()}"
    fleet = Fleet(api, settings, identity=identity, models=_Models(), images=images, clock=process.clock)
    state = PlannerState(
        leading=fleet.leading.get,
        held=lambda: len(fleet.withdrawals.get().held or {}),
        braked=lambda: len(fleet.withdrawals.get().braked),
        withdrawn=lambda: fleet.withdrawals.get().withdrawn_total,
        written=lambda: fleet.publishing.get().writes_total,
        unwritten=lambda: len(fleet.publishing.get().failing),
        late=lambda: fleet.forecast.get().late,
        slow=lambda: fleet.forecast.get().slow_nodes,
        histories=lambda: len(fleet.history.get().tracks),
        history_known=lambda: fleet.history.get().known_share(process.clock.now()),
        history_written=lambda: at.timestamp() if (at := fleet.history.get().written_at) else None,
        history_failures=lambda: fleet.history.get().failures,
        kept=lambda: fleet.keeping.get().kept,
        unkept=lambda: fleet.keeping.get().unkept,
        placeholders=lambda: (fleet.provisioning.get().holding, fleet.provisioning.get().waiting),
        node_arrival=lambda: fleet.provisioning.get().lead_seconds,
        foretold=fleet.foretold.get,
        predicted=fleet.predicted.get,
        ended=lambda: {(key, str(outcome)): n for (key, outcome), n in fleet.ledger.get().totals.items()},
    )
    PlannerCollector(state, process.registry)
    process.services.append(fleet)


class _Models:
    """The planner's ModelResolver, by the models room."""

    async def resolve(self, uri: ModelUri) -> tuple[Digest, int, int]:
        """Return manifest digest, size in bytes and number of files; errors as `agent.models.resolve.resolve`."""
        from agent.models.resolve import resolve

        manifest = await resolve(uri)
        return manifest.digest, manifest.size_bytes, len(manifest.objects)
