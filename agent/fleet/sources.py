"""What the planner sees of the cluster: one cell and one watch a kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agent.core.clock import Clock
from agent.core.latest import Latest, Signal
from agent.core.names import LABEL_CALENDAR, PREFIX
from agent.fleet.draft import FleetState
from agent.fleet.families import whole
from agent.fleet.provision import held
from agent.fleet.resolutions import Resolutions
from agent.kube.api import KubeApi
from agent.kube.objects import ConfigMapView, NodeView, NodeWarmupView, PodView, RuntimeClassView, WorkloadView
from agent.kube.placeholders import PlaceholderView
from agent.kube.resources import (
    CONFIGMAPS,
    DEPLOYMENTS,
    INFERENCE_SERVICES,
    KNATIVE_SERVICES,
    LEADER_WORKER_SETS,
    NODES,
    NODEWARMUP_SPECS,
    PODS,
    RUNTIMECLASSES,
    STATEFULSETS,
)
from agent.kube.watch import Listing, Selection, Watch

BUILT_IN_KINDS = (DEPLOYMENTS, STATEFULSETS)
ADDED_KINDS = (KNATIVE_SERVICES, INFERENCE_SERVICES, LEADER_WORKER_SETS)  # kinds that a cluster may lack, now or ever
AGENT_LABELS = "app.kubernetes.io/name=prewarm,app.kubernetes.io/component=agent"  # as in deploy/daemonset.yaml


class Sources:
    """The cells. `agents` are the pods of the agent's DaemonSet; no plan waits for `placeholders`, which may be nobody's to make."""

    def __init__(self) -> None:
        self.workloads: Mapping[str, Latest[Listing[WorkloadView]]] = {
            kind.plural: Latest(Listing()) for kind in (*BUILT_IN_KINDS, *ADDED_KINDS)
        }
        self.nodes: Latest[Listing[NodeView]] = Latest(Listing())
        self.warmups: Latest[Listing[NodeWarmupView]] = Latest(Listing())
        self.runtime_classes: Latest[Listing[RuntimeClassView]] = Latest(Listing())
        self.calendars: Latest[Listing[ConfigMapView]] = Latest(Listing())
        self.agents: Latest[Listing[PodView]] = Latest(Listing())
        self.placeholders: Latest[Listing[PlaceholderView]] = Latest(Listing())

    @property
    def synced(self) -> bool:
        """True once everything a plan rests on has been listed completely."""
        return all(cell.get().synced for cell in self._planned())

    @property
    def current(self) -> bool:
        """True while all of that is what the API server says now."""
        return all(cell.get().current for cell in self._planned())

    def attach(self, signal: Signal) -> None:
        """Have `signal` fired by every change that a plan rests on."""
        for cell in (*self._planned(), self.placeholders):
            cell.attach(signal)

    def detach(self, signal: Signal) -> None:
        """Undo `attach`."""
        for cell in (*self._planned(), self.placeholders):
            cell.detach(signal)

    def state(self, resolutions: Resolutions) -> FleetState:
        """Return what a plan rests on, as it is now."""
        return FleetState(
            workloads=whole(w for cell in self.workloads.values() for w in cell.get().items.values()),
            nodes=tuple(self.nodes.get().items.values()),
            warmups=self.warmups.get().items,
            handlers={c.name: c.handler for c in self.runtime_classes.get().items.values()},
            resolutions=resolutions,
            calendars=tuple(self.calendars.get().items.values()),
            heard=frozenset(p.node for p in self.agents.get().items.values() if _is_ready(p)),
            held=held(self.placeholders.get().items.values()),
        )

    def _planned(self) -> tuple[Latest[Any], ...]:
        return (*self.workloads.values(), self.nodes, self.warmups, self.runtime_classes, self.calendars)


def _is_ready(pod: PodView) -> bool:
    found = pod.condition("Ready")
    return found is not None and found.status == "True"


def annotated(workload: WorkloadView) -> bool:
    """Say whether a workload carries any annotation of ours, or may tell of one that does; others are not kept in memory."""
    return workload.parent is not None or any(
        key.startswith(PREFIX) for key in (*workload.annotations, *workload.template_annotations)
    )


def watches(sources: Sources, api: KubeApi, namespace: str, clock: Clock) -> Iterator[Watch[Any]]:
    """Return the services that fill the cells; `namespace` is prewarm's own."""
    for kind in (*BUILT_IN_KINDS, *ADDED_KINDS):
        cell = sources.workloads[kind.plural]
        yield Watch(api, kind, cell, clock=clock, keep=annotated, optional=kind in ADDED_KINDS)
    yield Watch(api, NODES, sources.nodes, clock=clock)
    yield Watch(api, NODEWARMUP_SPECS, sources.warmups, clock=clock)
    yield Watch(api, RUNTIMECLASSES, sources.runtime_classes, clock=clock)
    calendars = Selection(namespace=namespace, labels=f"{LABEL_CALENDAR}=true")
    yield Watch(api, CONFIGMAPS, sources.calendars, clock=clock, select=calendars)
    agents = Selection(namespace=namespace, labels=AGENT_LABELS)
    yield Watch(api, PODS, sources.agents, clock=clock, select=agents)
