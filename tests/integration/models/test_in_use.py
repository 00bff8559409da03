"""What a pod uses stays where the pod finds it: over restarts of its container and of the agent, whatever the plan says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.assignment import EndpointWant, ModelWant
from agent.core.errors import Transient
from agent.core.refs import Digest
from agent.models import eviction
from agent.models.resolve import resolve
from agent.plan.decision import EndpointPlan, EvictStep, HydrateStep, NodePlan, Stage, ViewWant
from tests.integration.models.conftest import SourceBucket, contents, noise
from tests.integration.models.test_service import ENDPOINT, POD, Room, room, want

INTERVAL_SECONDS = 0.05


@pytest.fixture(autouse=True)
def quick_eviction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(eviction, "HOLD_SECONDS", 0.1)


class Weights:
    """Two versions of one model, of which the second has come while a pod runs on the first."""

    def __init__(self, bucket: SourceBucket) -> None:
        self._bucket = bucket
        self.content = bucket.put("m/a.bin", noise(10_000, 1))

    async def old(self) -> ModelWant:
        return want(self._bucket.uri(), (await resolve(self._bucket.uri())).digest)

    async def new(self) -> ModelWant:
        self._bucket.put("m/a.bin", noise(10_000, 2))
        return await self.old()


def digest_of(model: ModelWant) -> Digest:
    assert model.digest
    return model.digest


def plan_for(model: ModelWant, evict: Digest | None = None) -> NodePlan:
    """What a node does that is assigned this version, and maybe shall give up another."""
    assert model.digest
    endpoint = EndpointWant(key=ENDPOINT, models=(model,))
    step = HydrateStep(want=model, endpoints=(ENDPOINT,), due=None, urgent=False, reason="the test wants it")
    return NodePlan(
        endpoints=(EndpointPlan(want=endpoint, stage=Stage.IDLE, reason=""),),
        hydrations=(step,),
        models=(model,),
        views=(ViewWant(endpoint=ENDPOINT, name="m", digest=model.digest),),
        evictions=(EvictStep(digest=evict, reason="not wanted"),) if evict else (),
    )


async def committed_and_shown(r: Room, model: ModelWant) -> Path:
    """Return the view that a pod's link points to."""
    assert model.digest
    view = r.service.view_path(ENDPOINT, model.digest)
    r.plan.set(plan_for(model))
    await r.until_disk(view.with_name(f"{model.digest}.json").exists)
    return view


async def turns(r: Room, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Wait until unused views were swept so many times."""
    swept, sweep = 0, r.service._shelf.sweep_views

    async def counted(*wanted: object) -> None:
        nonlocal swept
        await sweep(*wanted)  # type: ignore[arg-type]
        swept += 1

    with monkeypatch.context() as patch:
        patch.setattr(r.service._shelf, "sweep_views", counted)
        await r.until_disk(lambda: swept >= number)


async def test_a_container_that_restarts_finds_its_version_until_its_pod_is_gone(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Weights(bucket)
    old = await weights.old()
    digest = digest_of(old)
    link = tmp_path / "models-of-the-pod"
    async with room(tmp_path / "root", interval=INTERVAL_SECONDS) as r:
        link.symlink_to(await committed_and_shown(r, old))
        await r.service.add(POD, [digest])
        r.runtime.uids = [POD]
        r.plan.set(plan_for(await weights.new(), evict=digest))
        await r.until(
            lambda v: digest in v.states and v.states[digest].reason == f"kept: 1 pod(s) use it, among them {POD}"
        )
        await turns(r, monkeypatch, 3)  # between two containers nothing runs, and nothing is open
        assert contents(link) == {"a.bin": weights.content}
        r.runtime.uids = []
        await r.until_disk(lambda: not link.exists() and not (tmp_path / "root" / "store" / digest).exists())


async def test_a_pod_that_came_while_no_agent_ran_is_found_before_anything_is_deleted(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    weights = Weights(bucket)
    old = await weights.old()
    digest = digest_of(old)
    async with room(tmp_path, interval=INTERVAL_SECONDS) as r:
        view = await committed_and_shown(r, old)
    new = await weights.new()
    async with room(tmp_path, interval=INTERVAL_SECONDS) as r:
        r.runtime.uids, r.runtime.endpoint = [POD], ENDPOINT
        r.plan.set(plan_for(new, evict=digest))
        await r.until(
            lambda v: digest in v.states and v.states[digest].reason == f"kept: 1 pod(s) use it, among them {POD}"
        )
        assert contents(view) == {"a.bin": weights.content}
        r.runtime.uids = []
        await r.until_disk(lambda: not view.exists())


async def test_its_view_stays_too_where_nothing_is_evicted(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Weights(bucket)
    old = await weights.old()
    async with room(tmp_path, interval=INTERVAL_SECONDS) as r:
        view = await committed_and_shown(r, old)
    new = await weights.new()
    async with room(tmp_path, interval=INTERVAL_SECONDS) as r:
        r.runtime.uids, r.runtime.endpoint = [POD], ENDPOINT
        r.runtime.away = True
        await committed_and_shown(r, new)
        await r.until_disk(lambda: r.runtime.asked >= 3)
        assert contents(view) == {"a.bin": weights.content}  # nobody knows who runs here
        r.runtime.away = False
        await turns(r, monkeypatch, 3)
        assert contents(view) == {"a.bin": weights.content}
        r.runtime.uids = []
        await r.until_disk(lambda: not view.exists())


async def test_a_pod_bound_just_before_the_withdrawal_keeps_its_version_or_is_told_that_it_is_gone(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Weights(bucket)
    old = await weights.old()
    digest = digest_of(old)
    async with room(tmp_path, interval=INTERVAL_SECONDS) as r:
        view = await committed_and_shown(r, old)
        look = r.service._shelf.why_in_use

        async def just_too_early(asked: Digest) -> str:
            found = await look(asked)
            monkeypatch.setattr(r.service._shelf, "why_in_use", look)
            await r.service.add(POD, [asked])  # linked when the last look is over, and nobody has a file open
            r.runtime.uids = [POD]
            return found

        monkeypatch.setattr(r.service._shelf, "why_in_use", just_too_early)
        r.plan.set(replace(plan_for(old, evict=digest), hydrations=()))
        await r.until(lambda v: v.states[digest].reason == f"kept: 1 pod(s) use it, among them {POD}")
        assert contents(view) == {"a.bin": weights.content}
        r.runtime.uids = []
        await r.until_disk(lambda: not (tmp_path / "store" / digest).exists())
        with pytest.raises(Transient, match="is not committed here any more"):
            await r.service.add(POD, [digest])
        assert not view.exists()
