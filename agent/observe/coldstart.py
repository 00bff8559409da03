"""Measures the cold starts of annotated pods on this node: follows their phases, and asks for the first answer.

A pod's metrics endpoint is asked every POLL_SECONDS from its serving container's start until its first answer, at most ten
minutes after Ready; with no pod starting nothing is asked and nothing wakes up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import structlog

from agent.core.assignment import Assignment
from agent.core.clock import Clock
from agent.core.inventory import Inventory
from agent.core.latest import Latest, Signal
from agent.kube.objects import NodeView, PodView
from agent.kube.watch import Listing
from agent.observe.start import Measure, Phase, Start, StartLabels, advance, answer, begin, seen_too_late

POLL_SECONDS = 0.5
AT_A_TIME = 8

log = structlog.get_logger(__name__)


class StartObserver(Protocol):
    """Whoever counts starts."""

    def image_pull(self, labels: StartLabels, seconds: float) -> None:
        """Take the time from creation to container start."""
        ...

    def model_load(self, labels: StartLabels, seconds: float) -> None:
        """Take the time from container start to Ready."""
        ...

    def cold_start(self, labels: StartLabels, seconds: float) -> None:
        """Take the time from creation to first answer."""
        ...


class Answers(Protocol):
    """Whoever reads model servers' metrics."""

    async def has_answered(self, ip: str, targets: tuple[tuple[int, str], ...]) -> bool:
        """Say whether a successful answer has been given; never raises for what a pod does."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class ColdStarts:
    """Follows the pods of this node; a pod that ran before the first listing is never counted."""

    name = "cold starts"

    def __init__(
        self,
        *,
        pods: Latest[Listing[PodView]],
        assignment: Callable[[], Assignment | None],
        inventory: Callable[[], Inventory],
        node: Callable[[], NodeView | None],
        clock: Clock,
        observer: StartObserver,
        answers: Answers,
    ) -> None:
        self._pods = pods
        self._assignment = assignment
        self._inventory = inventory
        self._node = node
        self._clock = clock
        self._observer = observer
        self._answers = answers
        self._starts: dict[str, Start | None] = {}  # by pod uid; None: not measured, or done
        self._listed = False
        self._ask = Signal()
        self._asking: set[str] = set()  # pods whose question is open
        self._turn = asyncio.Semaphore(AT_A_TIME)

    async def run(self) -> None:
        """Measure until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="cold starts: pods")
            tasks.create_task(self._poll(), name="cold starts: answers")

    async def _follow(self) -> None:
        async for listing in self._pods.follow():
            if listing.synced:
                self._take({pod.uid: pod for pod in listing.items.values()})
                self._listed = True

    def _take(self, pods: dict[str, PodView]) -> None:
        for uid, pod in pods.items():
            if uid not in self._starts:
                self._starts[uid] = self._begin(pod)
        for uid in list(self._starts):
            self._advance(uid, pods.get(uid))
            if uid not in pods:
                del self._starts[uid]
        if any(start and start.to_ask for start in self._starts.values()):
            self._ask.fire()

    def _begin(self, pod: PodView) -> Start | None:
        node = self._node()
        start = begin(pod, self._assignment(), self._inventory(), node.labels if node else {})
        if start and seen_too_late(start, pod, self._clock.now(), first_listing=not self._listed):
            return None
        return start

    def _advance(self, uid: str, pod: PodView | None) -> None:
        start = self._starts[uid]
        if start:
            self._keep(uid, *advance(start, pod, self._clock.now()))

    def _keep(self, uid: str, start: Start, measures: tuple[Measure, ...]) -> None:
        self._starts[uid] = None if start.over else start
        for measure in measures:
            self._tell(start.labels, measure)

    def _tell(self, labels: StartLabels, measure: Measure) -> None:
        labels = replace(labels, outcome=measure.outcome.value)
        match measure.phase:
            case Phase.IMAGE_PULL:
                self._observer.image_pull(labels, measure.seconds)
            case Phase.MODEL_LOAD:
                self._observer.model_load(labels, measure.seconds)
            case Phase.TOTAL:
                self._observer.cold_start(labels, measure.seconds)
        log.info(
            "pod start measured",
            phase=measure.phase.value,
            seconds=round(measure.seconds, 1),
            namespace=labels.namespace,
            endpoint=labels.endpoint,
            warm=labels.warm,
            outcome=labels.outcome,
        )

    async def _poll(self) -> None:
        try:
            async with asyncio.TaskGroup() as questions:
                while True:
                    await self._ask.wait()
                    while self._ask_all(questions):
                        await self._clock.sleep(POLL_SECONDS)
                    await self._answers.close()
        finally:
            await self._answers.close()

    def _ask_all(self, questions: asyncio.TaskGroup) -> bool:
        """Ask every pod that is starting, but those that still keep a question open; False if there is none."""
        pods = {pod.uid: pod for pod in self._pods.get().items.values()}
        starting = [uid for uid, start in self._starts.items() if start and start.to_ask and uid in pods]
        for uid in starting:
            if uid not in self._asking:
                self._asking.add(uid)
                questions.create_task(self._ask_one(pods[uid]), name=f"cold starts: {uid}")
        return bool(starting or self._asking)

    async def _ask_one(self, pod: PodView) -> None:
        try:
            start = self._starts.get(pod.uid)
            if not start or not pod.pod_ip:
                return
            async with self._turn:
                answered = await self._answers.has_answered(pod.pod_ip, start.targets)
        finally:
            self._asking.discard(pod.uid)
        start = self._starts.get(pod.uid)  # it may have ended meanwhile
        if start and answered:
            self._keep(pod.uid, *answer(start, self._clock.now()))
        elif start:
            self._keep(pod.uid, *advance(start, pod, self._clock.now()))
