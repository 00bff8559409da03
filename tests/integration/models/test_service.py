"""The models room as a whole: a real S3 server, a real disk, and a plan that the test sets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.config import Settings
from agent.core.assignment import EndpointWant, ImageWant, ModelWant
from agent.core.clock import SystemClock
from agent.core.errors import Transient
from agent.core.heartbeat import Heartbeat
from agent.core.inventory import ModelLevel, ModelState, ModelsView
from agent.core.latest import Latest
from agent.core.refs import Digest, EndpointKey, ModelUri, parse_image_ref
from agent.core.sandbox import Sandbox
from agent.core.sources import SourceRule
from agent.models import eviction, queue
from agent.models.resolve import resolve
from agent.models.service import ModelService
from agent.plan.decision import EndpointPlan, EvictStep, HydrateStep, NodePlan, PullStep, Stage, ViewWant
from tests.bed.faultproxy import Rule
from tests.integration.models.conftest import SourceBucket, contents, noise

MIB = 1 << 20
ENDPOINT = EndpointKey(namespace="shop", name="chat")
POD = "0b9f1c1e-1111-2222-3333-444455556666"


class Runtime:
    """The container runtime's answer, as the test sets it."""

    def __init__(self) -> None:
        self.uids: list[str] = []
        self.endpoint: EndpointKey | None = None  # that the pods' label names
        self.away = False
        self.asked = 0

    async def sandboxes(self) -> Sequence[Sandbox]:
        self.asked += 1
        if self.away:
            raise Transient("the container runtime does not answer")
        now = datetime.now(UTC)
        return [
            Sandbox(namespace="shop", name="p", uid=uid, created=now, ready=True, endpoint=self.endpoint)
            for uid in self.uids
        ]


@dataclass
class Room:
    service: ModelService
    plan: Latest[NodePlan]
    models: Latest[ModelsView]
    runtime: Runtime
    root: Path
    heartbeat: Heartbeat

    async def until(self, holds: Callable[[ModelsView], object]) -> ModelsView:
        async with asyncio.timeout(60):
            async for view in self.models.follow():
                if holds(view):
                    return view
        raise AssertionError

    async def until_disk(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():  # noqa: ASYNC110 (the disk tells no one)
                await asyncio.sleep(0.02)

    async def bring(self, *wants: ModelWant, urgent: Sequence[ModelWant] = ()) -> None:
        steps = tuple(
            HydrateStep(want=w, endpoints=(ENDPOINT,), due=None, urgent=w in urgent, reason="the test wants it")
            for w in wants
        )
        self.plan.set(replace(self.plan.get(), hydrations=steps, models=tuple(wants)))


@asynccontextmanager
async def room(
    root: Path,
    *,
    interval: float = 0.2,
    rules: Sequence[SourceRule] | None = None,
    connections: int = 2,
    scrub: int = 0,
) -> AsyncIterator[Room]:
    plan, models, runtime, heartbeat = Latest(NodePlan()), Latest(ModelsView()), Runtime(), Heartbeat()
    settings = replace(
        Settings(), root=root, proof_interval_seconds=interval, connections=connections, high_watermark=1.0, scrub=scrub
    )
    service = ModelService(
        settings=settings,
        plan=plan,
        models=models,
        clock=SystemClock(),
        heartbeat=heartbeat,
        rules=rules,
        sandboxes=runtime,
    )
    running = asyncio.create_task(service.run(), name="models")
    try:
        yield Room(service, plan, models, runtime, root, heartbeat)
        if running.done():
            running.result()
    finally:
        running.cancel()
        await asyncio.wait({running})


def want(uri: ModelUri, digest: Digest | None = None, name: str = "m") -> ModelWant:
    return ModelWant(name=name, uri=uri, digest=digest)


def only(view: ModelsView) -> ModelState:
    (state,) = view.states.values()
    return state


def is_committed(view: ModelsView) -> bool:
    return any(s.level is ModelLevel.COMMITTED for s in view.states.values())


async def test_a_version_is_brought_in_shown_in_its_view_and_adopted_by_the_next_agent(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    model = {"a.bin": bucket.put("m/a.bin", noise(9 * MIB)), "sub/b": bucket.put("m/sub/b", b"b")}
    digest = (await resolve(bucket.uri())).digest
    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri(), digest))
        state = (await r.until(is_committed)).states[digest]
        assert (state.proof, state.done_bytes, state.error) == ("crc64nvme", 9 * MIB + 1, "")
        r.plan.set(replace(r.plan.get(), views=(ViewWant(endpoint=ENDPOINT, name="m", digest=digest),)))
        view = r.service.view_path(ENDPOINT, digest)
        await r.until_disk(lambda: view.with_name(f"{digest}.json").exists())
        assert contents(view) == model
        assert os.stat(view / "a.bin").st_ino == os.stat(tmp_path / "store" / digest / "files/a.bin").st_ino
        assert os.stat(view / "a.bin").st_mode & 0o777 == 0o444
    bucket.server.stop()
    try:
        async with room(tmp_path) as r:
            assert only(await r.until(is_committed)).digest == digest  # S3 plays no part in it
            assert r.heartbeat.ages_seconds(SystemClock().monotonic())["models"] < 10
    finally:
        bucket.server.start()


async def test_an_unresolved_want_is_resolved_once_and_an_absent_one_says_why(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    bucket.put("m/a", b"a")
    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri("none/")), want(bucket.uri()))
        view = await r.until(lambda v: is_committed(v) and v.unresolved)
        assert view.resolved == {str(bucket.uri()): only(view).digest}
        assert view.unresolved == {str(bucket.uri("none/")): f"nothing under s3://{bucket.name}/none/"}


async def test_another_version_than_the_planner_resolved_is_not_fetched(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("m/a", b"a")
    digest = (await resolve(bucket.uri())).digest
    bucket.put("m/a", b"b")
    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri(), digest))
        state = only(await r.until(lambda v: v.states and only(v).error))
        assert state.error == f"s3://{bucket.name}/m/: the source changed since the planner resolved it"
        assert state.level is ModelLevel.ABSENT
        assert state.retry_at
    assert bucket.proxy.ranges == []


async def test_a_namespace_that_may_not_use_a_source_gets_nothing(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("m/a", b"a")
    digest = (await resolve(bucket.uri())).digest
    rules = [SourceRule(namespace="other", bucket=bucket.name, prefix="")]
    async with room(tmp_path, rules=rules) as r:
        await r.bring(want(bucket.uri(), digest))
        state = only(await r.until(lambda v: v.states and only(v).error))
        assert f"sources: shop=s3://{bucket.name}/m/" in state.error
    assert bucket.proxy.ranges == []


@pytest.mark.parametrize("harm", ["truncate", "rewrite", "replace", "remove"])
async def test_a_version_changed_behind_our_back_is_withdrawn_and_brought_in_again(
    bucket: SourceBucket, tmp_path: Path, harm: str
) -> None:
    content = bucket.put("m/a", noise(MIB))
    digest = (await resolve(bucket.uri())).digest
    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri(), digest))
        await r.until(is_committed)
        r.plan.set(NodePlan())
        file = tmp_path / "store" / digest / "files" / "a"
        match harm:
            case "truncate":
                os.truncate(file, 5)
            case "rewrite":
                with file.open("r+b") as opened:
                    opened.write(b"x")
            case "replace":
                file.with_name("b").write_bytes(content)
                file.with_name("b").replace(file)
            case _:
                file.unlink()
        state = only(await r.until(lambda v: not is_committed(v)))
        assert state.level is ModelLevel.ABSENT
        assert state.reason.startswith("broken: 'a' ")
        await r.until_disk(lambda: not (tmp_path / "store" / digest).exists())
        await r.bring(want(bucket.uri(), digest))
        await r.until(is_committed)
        assert contents(tmp_path / "store" / digest / "files") == {"a": content}


async def test_s3_away_is_said_and_goes_on_when_it_returns(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("m/a", b"a")
    digest = (await resolve(bucket.uri())).digest
    bucket.server.stop()
    try:
        async with room(tmp_path) as r:
            await r.bring(want(bucket.uri(), digest))
            assert "S3 " in only(await r.until(lambda v: v.states and only(v).error)).error
            bucket.server.start()
            assert only(await r.until(is_committed)).error == ""
    finally:
        bucket.server.start() if not bucket.server.answers() else None


async def test_a_version_a_pod_waits_for_interrupts_another_which_resumes(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("slow/a", noise(16 * MIB))
    bucket.put("fast/a", b"a")
    slow, fast = want(bucket.uri("slow/"), name="slow"), want(bucket.uri("fast/"), name="fast")
    bucket.proxy.rules.append(Rule("slow", times=99, arg=1e6, match=lambda q: q.is_range and "/slow/" in q.path))
    async with room(tmp_path) as r:
        await r.bring(slow)
        await r.until(lambda v: any(s.done_bytes > 0 for s in v.states.values()))
        await r.bring(slow, fast, urgent=[fast])
        view = await r.until(is_committed)
        committed = [s.digest for s in view.states.values() if s.level is ModelLevel.COMMITTED]
        assert committed == [view.resolved[str(fast.uri)]]
        bucket.proxy.rules.clear()
        await r.until(lambda v: sum(s.level is ModelLevel.COMMITTED for s in v.states.values()) == 2)


async def test_a_download_trickles_within_a_second_while_a_pod_waits_for_an_image(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    bucket.put("m/a", noise(64 * MIB))
    bucket.proxy.rules.append(Rule("slow", times=999, arg=8 * MIB))
    pull = PullStep(
        want=ImageWant(ref=parse_image_ref("registry.bed/a:1")),
        runtime_handler="",
        endpoints=(ENDPOINT,),
        due=None,
        urgent=True,
        reason="a pod waits for it",
    )

    async def brought(r: Room, seconds: float) -> int:
        before = sum(s.done_bytes for s in r.models.get().states.values())
        await asyncio.sleep(seconds)
        return sum(s.done_bytes for s in r.models.get().states.values()) - before

    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri()))
        await r.until(lambda v: any(s.done_bytes > 4 * MIB for s in v.states.values()))
        r.plan.set(replace(r.plan.get(), pulls=(pull,)))
        await asyncio.sleep(1)
        assert await brought(r, 2) <= 3 * queue.TRICKLE_BYTES_PER_SECOND  # progress is told in steps
        r.plan.set(replace(r.plan.get(), pulls=()))
        view = await r.until(is_committed)
        assert only(view).level is ModelLevel.COMMITTED


async def test_eviction_waits_asks_and_keeps_what_is_used(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(eviction, "HOLD_SECONDS", 0.3)
    bucket.put("m/a", noise(MIB))
    digest = (await resolve(bucket.uri())).digest
    endpoint = EndpointPlan(want=EndpointWant(key=ENDPOINT), stage=Stage.IDLE, reason="")
    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri(), digest))
        await r.until(is_committed)
        await r.service.add(POD, [digest])
        r.runtime.uids = [POD]
        r.plan.set(NodePlan(endpoints=(endpoint,), evictions=(EvictStep(digest=digest, reason="not wanted"),)))
        kept = only(await r.until(lambda v: only(v).reason.startswith("kept")))
        assert kept.reason == f"kept: 1 pod(s) use it, among them {POD}"
        opened = (tmp_path / "store" / digest / "files/a").open("rb")
        r.runtime.uids = []
        await r.until(lambda v: "has a file of it open" in only(v).reason)
        assert is_committed(r.models.get())
        opened.close()
        await r.until(lambda v: only(v).reason == "removed: not wanted")
        await r.until_disk(lambda: not (tmp_path / "store" / digest).exists())
        assert list((tmp_path / "refs").iterdir()) == []


async def test_what_does_not_fit_is_refused_with_numbers(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("m/a", noise(MIB))
    digest = (await resolve(bucket.uri())).digest
    async with room(tmp_path) as r:
        r.service._queue._hydration._high_watermark = 0.0
        await r.bring(want(bucket.uri(), digest))
        state = only(await r.until(lambda v: v.states and only(v).error))
        assert state.error.startswith("needs 1.05 MB but only 0 B may be used: the store's file system has ")
    assert bucket.proxy.ranges == []


async def test_the_room_waits_for_a_root_that_another_agent_has(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("m/a", b"a")
    digest = (await resolve(bucket.uri())).digest
    async with room(tmp_path) as first:
        await first.bring(want(bucket.uri(), digest))
        await first.until(is_committed)
        async with room(tmp_path) as second:
            await asyncio.sleep(0)
            assert second.models.get().states == {}
    async with room(tmp_path) as third:
        await third.until(is_committed)
