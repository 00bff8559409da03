"""The planner process as one service: follow the cluster while leading, and only then.

A follower does nothing but ask for the Lease; the new leader lists everything, sweeps stale claims, then plans.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta

from agent.config import Settings
from agent.core.clock import Clock
from agent.core.latest import Latest, Signal
from agent.core.names import LABEL_PLACEHOLDER
from agent.core.refs import ImageRef, ModelUri
from agent.core.service import Relay, Service, forever
from agent.demand.endpoint import DemandDefaults, Predict
from agent.demand.foretold import Foretold, Windows
from agent.fleet.draft import Drafter
from agent.fleet.foretelling import Foretelling, standing_windows
from agent.fleet.history import HistoryKeeper, HistoryReport
from agent.fleet.keeper import Keeper, KeepReport
from agent.fleet.ledger import Ledger
from agent.fleet.ledger_keeper import LedgerKeeper
from agent.fleet.planner import Forecast, Planner, Plans
from agent.fleet.provisioner import Provisioner, ProvisionLimits, ProvisionReport
from agent.fleet.publish import Publisher, PublishReport
from agent.fleet.resolutions import ImageResolver, ModelResolver, ResolvedModel, from_warmups
from agent.fleet.resolve import Resolver
from agent.fleet.scaler import Scaler
from agent.fleet.sources import Sources, watches
from agent.fleet.withdraw import Withdrawer, WithdrawReport, brake_alarm
from agent.kube.api import KubeApi
from agent.kube.events import Announcement, EventWriter
from agent.kube.lease import LeaderElector
from agent.kube.placeholders import PLACEHOLDERS
from agent.kube.pull_secrets import PullSecrets
from agent.kube.watch import Selection, Watch

_LEASE = "prewarm-planner"


class Fleet:
    """A service. The totals in its reports outlive a change of leader, for metrics; what stands now is the leader's."""

    name = "fleet"

    def __init__(
        self,
        api: KubeApi,
        settings: Settings,
        *,
        identity: str,
        models: ModelResolver,
        images: ImageResolver,
        clock: Clock,
    ) -> None:
        """`identity` is unique among the replicas: the pod's name."""
        self.withdrawals: Latest[WithdrawReport] = Latest(WithdrawReport())
        self.publishing: Latest[PublishReport] = Latest(PublishReport())
        self.forecast: Latest[Forecast] = Latest(Forecast())
        self.ledger: Latest[Ledger] = Latest(Ledger())
        self.history: Latest[HistoryReport] = Latest(HistoryReport())
        self.keeping: Latest[KeepReport] = Latest(KeepReport())
        self.provisioning: Latest[ProvisionReport] = Latest(ProvisionReport())
        self.foretold: Latest[Foretold] = Latest(Foretold())
        self.predicted: Latest[Windows] = Latest({})
        self.leading: Latest[bool] = Latest(False)
        self._api, self._settings, self._identity, self._clock = api, settings, identity, clock
        self._models, self._images = models, images

    async def run(self) -> None:
        """Run until cancelled; gives the Lease back then."""
        if not self._settings.leader_elect:
            await self.lead()
        elector = LeaderElector(
            self._api,
            namespace=self._settings.namespace,
            name=_LEASE,
            identity=self._identity,
            clock=self._clock,
        )
        await elector.run(self.lead)

    async def lead(self) -> None:
        """Plan for the fleet until cancelled; starts from nothing but the cluster's state."""
        self.leading.set(True)
        try:
            sources, s = Sources(), self._settings
            withdrawer = Withdrawer(
                self._api,
                sources,
                self.withdrawals,
                clock=self._clock,
                grace=timedelta(seconds=s.grace_seconds),
                brake=s.brake,
            )
            async with asyncio.TaskGroup() as tasks:
                # Withdrawing needs nodes and agents alone: it does not wait for what planning needs besides.
                first: list[Service] = [*watches(sources, self._api, s.namespace, self._clock), withdrawer]
                for service in [*first, *self._brake_alarm()]:
                    tasks.create_task(forever(service), name=service.name)
                await _synced(sources)
                keeper = LedgerKeeper(self._api, self.ledger, namespace=s.namespace, clock=self._clock)
                await keeper.load()
                for service in [*self._services(sources, withdrawer.swept), keeper]:
                    tasks.create_task(forever(service), name=service.name)
        finally:
            self.leading.set(False)
            # What stands now is the next leader's to tell.
            self.withdrawals.set(replace(self.withdrawals.get(), held=None, braked=frozenset(), claiming=0))
            self.publishing.set(replace(self.publishing.get(), failing={}))
            self.forecast.set(Forecast())
            self.keeping.set(KeepReport())
            self.provisioning.set(ProvisionReport())
            self.foretold.set(Foretold(failures=self.foretold.get().failures))
            self.predicted.set({})
            self.history.set(HistoryReport(failures=self.history.get().failures))

    def _services(self, sources: Sources, swept: asyncio.Event) -> list[Service]:
        s, clock = self._settings, self._clock
        known = from_warmups(sources.warmups.get().items.values())
        self.predicted.set(standing_windows(sources.warmups.get().items.values()))
        plans = Plans(
            models=Latest(known.models),
            images=Latest(known.images),
            forecast=self.forecast,
            ledger=self.ledger,
            predicted=self.predicted,
        )
        drafter = Drafter(DemandDefaults(timezone=s.timezone, predict=Predict(s.predict), sources=s.sources))
        refresh = timedelta(seconds=s.resolve_seconds)

        async def model(uri: ModelUri) -> ResolvedModel:
            digest, size_bytes, files = await self._models.resolve(uri)
            return ResolvedModel(digest=digest, size_bytes=size_bytes, files=files)

        history = HistoryKeeper(self._api, s, sources, plans.endpoints, self.history, clock=clock)
        secrets = PullSecrets(self._api, lambda ref: plans.pulls.get().get(ref, ()))

        async def image(ref: ImageRef) -> str:
            return await self._images.resolve(ref, lambda: secrets.auths(ref))

        return [
            Planner(sources, plans, drafter, clock=clock, ready=swept.wait),
            Resolver(
                "resolve models",
                model,
                wants=plans.model_wants,
                results=plans.models,
                refresh=refresh,
                clock=clock,
            ),
            Resolver(
                "resolve images",
                image,
                wants=plans.image_wants,
                results=plans.images,
                refresh=refresh,
                clock=clock,
            ),
            Publisher(self._api, sources, plans.desired, self.publishing, clock=clock),
            Keeper(self._api, sources, plans.desired, self.keeping, clock=clock, most=s.keep_nodes),
            self._events(plans.standing),
            history,
            self._events(history.refused),
            *self._scaling(plans),
            *self._provisioning(sources, plans),
            Foretelling(
                plans.endpoints,
                self.history,
                self.predicted,
                self.foretold,
                budget=s.predict_budget,
                clock=clock,
            ),
        ]

    def _scaling(self, plans: Plans) -> list[Service]:
        """Return what raises minimum scales, and what says so in Events."""
        said: Latest[Collection[Announcement]] = Latest(())
        return [Scaler(self._api, plans.scalings, said, clock=self._clock), self._events(said)]

    def _provisioning(self, sources: Sources, plans: Plans) -> list[Service]:
        """Return what brings up nodes for windows, and what says so in Events."""
        s, clock, said = self._settings, self._clock, Latest[Collection[Announcement]](())
        limits = ProvisionLimits(
            nodes=s.provision_nodes, lead=s.provision_lead, image=s.provision_image, namespace=s.provision_namespace
        )
        provisioner = Provisioner(
            self._api, sources, plans.provisions, said, self.provisioning, clock=clock, limits=limits
        )
        select = Selection(namespace=limits.namespace, labels=LABEL_PLACEHOLDER)
        seen = Watch(self._api, PLACEHOLDERS, sources.placeholders, clock=clock, select=select)
        return [provisioner, self._events(said), *([seen] if limits.nodes else [])]

    def _brake_alarm(self) -> list[Service]:
        """Return what says so in an Event while the brake holds."""
        alarms: Latest[Collection[Announcement]] = Latest(())

        def tell(report: WithdrawReport) -> None:
            alarms.set(brake_alarm(report, self._settings.brake, self._settings.namespace))

        return [Relay("brake", self.withdrawals, tell), self._events(alarms)]

    def _events(self, standing: Latest[Collection[Announcement]]) -> EventWriter:
        component, clock = "prewarm-planner", self._clock
        return EventWriter(self._api, standing, component=component, instance=self._identity, clock=clock)


async def _synced(sources: Sources) -> None:
    signal = Signal()
    sources.attach(signal)
    try:
        while not sources.synced:
            await signal.wait()
    finally:
        sources.detach(signal)
