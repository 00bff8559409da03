"""The publisher through ten thousand random stories of faults and recoveries, in virtual time.

Never ready with a cause against it standing; ready again once all is well; at most one write for each change that the watch
shows at once; and what others put on the Node stays as they left it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.core.errors import Transient
from agent.core.inventory import GpuReport, GpuVerdict, ImageLevel, ModelLevel
from agent.core.latest import Latest
from agent.core.names import ANNOTATION_BOOT_ID, ANNOTATION_TAINT_LIFTED, CONDITION_CACHE, CONDITION_GPU, LABEL_GPU
from agent.core.refs import EndpointKey
from agent.kube.objects import Condition, NodeView, Taint
from agent.node.publisher import Publisher
from agent.node.readiness import Readiness, readiness
from tests.fakes.node_api import NodeApi
from tests.fakes.virtual_time import START, LoopClock, VirtualLoop
from tests.unit.node.making import DIGEST, IMAGE, LABEL, assigned, endpoint, warm

OURS = Taint(key="prewarm.dev/not-ready", effect="NoSchedule")
THEIRS = Taint(key="their/taint", effect="NoExecute")
OTHER = endpoint(EndpointKey(namespace="team", name="plain"))
OTHER_LABEL = "endpoint.prewarm.dev/team.plain"
ASSIGNMENT = assigned(endpoint(gpus=1), OTHER)
LABELS = {LABEL, OTHER_LABEL, LABEL_GPU}
SOON_SECONDS = (
    12.0  # a failed withdrawal is tried again within 5 s, a write takes up to 1 s and the watch 1.5 s to show one
)
WELL_SECONDS = 300.0  # admissions wait for their pace and their backoff, 30 s each at most

FACTS = ("gpu", "image", "model", "proved", "node")  # what can be wrong with the node
CAUSES: Mapping[str, tuple[str, ...]] = {
    "gpu": ("healthy", "degraded", "unhealthy", "unknown"),
    "image": ("unpacked", "present", "absent"),
    "model": ("committed", "partial", "absent"),
    "proved": ("yes", "no"),
    "node": ("True", "False", "Unknown"),
}
OTHERS = (
    "strip label",
    "strip gpu",
    "strip boot",
    "wrong gpu",
    "their taint",
    "no taint of theirs",
    "their label",
    "our taint",
)
NETWORK = ("away", "back", "slow", "quick", "late watch", "prompt watch", "lost answer")

ACTIONS = (
    *((fact, value) for fact, values in CAUSES.items() for value in values),
    *(("others", value) for value in OTHERS),
    *(("network", value) for value in NETWORK),
)
PAUSES_SECONDS = (0.0, 0.0, 0.1, 0.1, 1.0, 1.0, 15.0, 60.0)
STORIES, STEPS = 10, 5  # stories of one node, each ending well, and steps of a story: a byte each, which is drawn fast


@dataclass
class Watched(NodeApi):
    """A NodeApi that knows what may be written just now."""

    story: Any = None
    applied: Counter[str] = field(default_factory=Counter)
    answer_lost: bool = False

    def _show(self, node: NodeView) -> None:
        self.story.remember()
        super()._show(node)

    async def patch_status(self, node: str, body: Mapping[str, object]) -> None:
        labels: Any = body.get("metadata", {}).get("labels", {})  # type: ignore[attr-defined]
        claimed = {k for k, v in labels.items() if v in ("ready", "healthy")}
        assert claimed <= self.story.sayable(), "claimed with a cause against it standing"
        await self._write("status", super().patch_status(node, body))

    async def patch_taints(self, node: str, ops: Any) -> None:
        await self._write("taints", super().patch_taints(node, ops))

    async def _write(self, kind: str, write: Awaitable[None]) -> None:
        await write
        self.applied[kind] += 1
        if self.answer_lost:
            self.answer_lost = False
            raise Transient("the connection broke after the request")


@dataclass
class Story:
    """One node and its publisher; `facts` is how things are."""

    facts: dict[str, str] = field(default_factory=lambda: {fact: CAUSES[fact][0] for fact in FACTS})
    changes: int = 2  # the start, and the end of its grace
    unseen: int = 0  # those of a time when the watch was late
    just_now: tuple[float, set[str]] = field(default_factory=lambda: (-1.0, set()))

    def __post_init__(self) -> None:
        node = NodeView(
            name="n1",
            uid="u1",
            resource_version="1",
            labels={"zone": "a"},
            taints=(THEIRS, OURS),
            conditions=(is_ready("True"),),
        )
        self.watched: Latest[NodeView | None] = Latest(node)
        self.api = Watched(node=node, watched=self.watched, story=self)
        self.readiness: Latest[Readiness | None] = Latest(None)
        self.theirs = {THEIRS}
        self.prove()

    def prove(self) -> None:
        """Say how the node is, as the rooms would."""
        f = self.facts
        found = warm(gpu=GpuReport(verdict=GpuVerdict(f["gpu"]), reason=f["gpu"], count=8), proved=f["proved"] == "yes")
        images = {IMAGE.ref: replace(found.images[IMAGE.ref], level=ImageLevel(f["image"]))}
        models = {DIGEST: replace(found.models[DIGEST], level=ModelLevel(f["model"]))}
        self.readiness.set(readiness(ASSIGNMENT, replace(found, images=images, models=models), START))

    def allowed(self, node: NodeView | None = None) -> set[str]:
        """What no cause stands against; `node` is the Node as far as the publisher can know."""
        f = self.facts
        if not (node or self.api.node).ready:
            return set()
        warm_enough = (f["image"], f["model"], f["proved"]) == ("unpacked", "committed", "yes")
        gpu = f["gpu"] == "healthy"
        return {k for k, fit in ((LABEL_GPU, gpu), (LABEL, warm_enough and gpu), (OTHER_LABEL, warm_enough)) if fit}

    def remember(self) -> None:
        """Keep what was allowed until this moment: a write decided on in the same moment may still say it."""
        now = asyncio.get_running_loop().time()
        self.just_now = (
            now,
            self.allowed(self.watched.get()) | (self.just_now[1] if self.just_now[0] == now else set()),
        )

    def sayable(self) -> set[str]:
        """What a write may claim that starts now."""
        at, allowed = self.just_now
        return self.allowed(self.watched.get()) | (allowed if at == asyncio.get_running_loop().time() else set())

    def standing(self) -> set[str]:
        return {k for k, v in self.api.node.labels.items() if v in ("ready", "healthy")}

    async def tell(self, told: bytes) -> None:
        for step in told:
            what, value = ACTIONS[step % len(ACTIONS)]
            seconds = PAUSES_SECONDS[step // len(ACTIONS) % len(PAUSES_SECONDS)]
            self.changes += 1
            self.unseen += bool(self.api.lag)
            self.remember()
            if what == "others":
                self.edit(value)
            elif what == "network":
                self.network(value)
            else:
                self.facts[what] = value
                if what == "node":
                    self.api.change(conditions=with_ready(self.api.node, value))
                self.prove()
            await asyncio.sleep(seconds)
            if seconds >= SOON_SECONDS and self.api.failure is None:
                assert self.standing() <= self.allowed()
        await self.mend()

    async def mend(self) -> None:
        """All is well again: then all of it is said, once, and nothing more is written."""
        self.network("back")
        self.network("quick")
        self.network("prompt watch")
        self.facts |= {fact: CAUSES[fact][0] for fact in FACTS}
        self.api.change(conditions=with_ready(self.api.node, "True"))
        self.prove()
        self.changes += 1
        await asyncio.sleep(WELL_SECONDS)
        node, written = self.api.node, len(self.api.writes)
        assert self.standing() == LABELS
        assert {c.type: c.status for c in node.conditions if c.type.startswith("prewarm.dev/")} == {
            CONDITION_GPU: "True",
            CONDITION_CACHE: "True",
        }
        assert node.annotations[ANNOTATION_BOOT_ID] == "boot-1"
        assert OURS not in node.taints
        assert ANNOTATION_TAINT_LIFTED in node.annotations
        assert {t for t in node.taints if t != OURS} == self.theirs
        assert (node.labels["zone"], node.labels.get("their/label", "x")) == ("a", "x")
        await asyncio.sleep(WELL_SECONDS)
        assert len(self.api.writes) == written
        # The taint is compared with what the watch has shown: while that is late, the next change says it once more, and a
        # patch of taints conflicts, which is tried again, with the status, until the watch shows what others did to them.
        assert self.api.applied["status"] <= self.changes + 2 * self.unseen, (
            f"{self.api.applied} for {self.changes} changes"
        )
        assert self.api.applied["taints"] <= self.changes + self.unseen, (
            f"{self.api.applied} for {self.changes} changes"
        )

    def edit(self, value: str) -> None:
        node = self.api.node
        labels, taints = dict(node.labels), node.taints
        match value:
            case "strip label":
                labels.pop(LABEL, None)
            case "strip gpu":
                labels.pop(LABEL_GPU, None)
            case "wrong gpu":
                labels[LABEL_GPU] = "unknown"
            case "their label":
                labels["their/label"] = "x"
            case "their taint" if THEIRS not in taints:
                taints = (*taints, THEIRS)
                self.theirs.add(THEIRS)
            case "no taint of theirs":
                taints = tuple(t for t in taints if t != THEIRS)
                self.theirs.discard(THEIRS)
            case "our taint" if OURS not in taints:
                taints = (OURS, *taints)
            case "strip boot":
                kept = {k: v for k, v in node.annotations.items() if k != ANNOTATION_BOOT_ID}
                self.api.change(annotations=kept)
                return
        self.api.change(labels=labels, taints=taints)

    def network(self, value: str) -> None:
        api = self.api
        match value:
            case "away":
                api.failure = Transient("away")
            case "back":
                api.failure = None
            case "slow":
                api.latency = 1.0
            case "quick":
                api.latency = 0.0
            case "late watch":
                api.lag = 1.5
            case "prompt watch":
                api.lag = 0.0
                self.watched.set(api.node)
            case "lost answer":
                api.answer_lost = True


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Ten thousand stories log too much."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def is_ready(status: str) -> Condition:
    return Condition(type="Ready", status=status)


def with_ready(node: NodeView, status: str) -> tuple[Condition, ...]:
    return (*(c for c in node.conditions if c.type != "Ready"), is_ready(status))


@pytest.mark.timeout(900)  # 90 s of one core's time
@settings(max_examples=10_000 // STORIES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.binary(min_size=STORIES * STEPS, max_size=STORIES * STEPS), st.integers(0, 3))
@example(b"\x1b\x8c\x82_}" + bytes(45), 3)  # two patches of taints conflict while the watch is late
def test_no_story_ends_in_a_false_claim_a_lost_one_or_a_flood(told: bytes, seed: int) -> None:
    async def play() -> None:
        story = Story()
        publisher = Publisher(
            node=story.watched, readiness=story.readiness, writer=story.api, clock=LoopClock(), rng=random.Random(seed)
        )
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(publisher.run(), name="publisher")
            try:
                for start in range(0, len(told), STEPS):
                    await story.tell(told[start : start + STEPS])
            finally:
                running.cancel()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(play())
