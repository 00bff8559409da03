"""The agent's sockets, served and called for real: what pods get, what they may not, and in which order things happen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from agent.core.assignment import Assignment
from agent.core.clock import SystemClock
from agent.core.errors import Permanent, Transient
from agent.core.inventory import Inventory, ModelLevel, ModelState
from agent.core.latest import Latest
from agent.core.refs import Digest, EndpointKey
from agent.core.sandbox import Sandbox
from agent.node.ask_socket import serving_questions
from agent.node.grants import Grants, LocalCells
from agent.node.local_api import LocalApi
from agent.node.local_client import Away, LocalClient, Progress
from agent.node.readiness import Readiness, readiness
from agent.node.waiting import WaitingLine, WaitOrder, parse_order
from agent.pb.prewarm.v1 import local_pb2
from agent.plan.decision import NodePlan
from agent.plan.planning import Limits, plan
from tests.unit.node.making import CHAT, DIGEST, assigned, warm

UID = "6b1f0c9e-0000-4000-8000-000000000000"


@dataclass
class Refs:
    """References as the models room keeps them; may fail a few times."""

    fail: int = 0
    kept: list[tuple[str, tuple[Digest, ...]]] = field(default_factory=list)

    async def add(self, pod_uid: str, digests: Sequence[Digest]) -> None:
        if self.fail:
            self.fail -= 1
            raise Transient("it has just gone")
        self.kept.append((pod_uid, tuple(digests)))


@dataclass
class Removing:
    """Removals as the models room does them; what is pinned stays."""

    pinned: set[Digest] = field(default_factory=set)
    removed: list[Digest] = field(default_factory=list)

    async def remove(self, digest: Digest) -> None:
        if digest in self.pinned:
            raise Permanent("it is pinned")
        self.removed.append(digest)


@dataclass
class Runtime:
    """The container runtime's list of sandboxes."""

    known: tuple[Sandbox, ...]

    async def sandboxes(self) -> tuple[Sandbox, ...]:
        return self.known


class Node:
    """Both sockets over cells that a test sets."""

    def __init__(self, root: Path, patience_seconds: float = 0.2) -> None:
        self.views = root / "views"
        self.run_dir = root / "run"
        self.assignment: Latest[Assignment | None] = Latest(assigned())
        self.inventory = Latest(Inventory())
        self.plan = Latest(NodePlan())
        self.readiness: Latest[Readiness | None] = Latest(None)
        self.waiting: Latest[frozenset[EndpointKey]] = Latest(frozenset())
        self.refs = Refs()
        self.remover = Removing()
        alive = Sandbox(namespace="team", name="chat-1", uid=UID, created=datetime.now(UTC), ready=True)
        self.runtime = Runtime((alive,))
        self.api = LocalApi(
            node="n1",
            run_dir=self.run_dir,
            cells=LocalCells(
                assignment=self.assignment, inventory=self.inventory, plan=self.plan, readiness=self.readiness
            ),
            line=WaitingLine(self.waiting, limit=3),
            refs=self.refs,
            remover=self.remover,
            sandboxes=self.runtime,
            view_path=lambda endpoint, digest: self.views / endpoint.namespace / endpoint.name / digest,
            clock=SystemClock(),
            patience_seconds=patience_seconds,
        )

    def prove(self, found: Inventory) -> None:
        asked, now = self.assignment.get(), datetime.now(UTC)
        self.inventory.set(found)
        self.plan.set(plan(asked, found, now, Limits()))
        self.readiness.set(readiness(asked, found, now))

    def show(self) -> Path:
        view = self.views / "team" / "chat" / DIGEST
        view.mkdir(parents=True)
        return view

    def client(self, name: str = "agent.sock") -> LocalClient:
        return LocalClient(self.run_dir / name)


@contextlib.asynccontextmanager
async def serving(root: Path, patience_seconds: float = 0.2) -> AsyncIterator[Node]:
    node = Node(root, patience_seconds)
    task = asyncio.create_task(node.api.run(), name="local-api")
    async with asyncio.timeout(20):
        while not (node.run_dir / "ask.sock").exists():  # noqa: ASYNC110 (the last one; a socket tells nobody that it is there)
            await asyncio.sleep(0.01)
    try:
        yield node
    finally:
        task.cancel()
        await asyncio.wait({task})


def order(**other: Any) -> WaitOrder:
    full: dict[str, Any] = {
        "namespace": "team",
        "endpoint": "chat",
        "pod_name": "chat-1",
        "pod_uid": UID,
        "models": (("llama", "s3://weights/llama/"),),
        "timeout": 10.0,
    }
    return parse_order(**(full | other))


async def wait(node: Node, asked: WaitOrder | None = None) -> list[Progress]:
    async with node.client() as client, asyncio.timeout(20):
        return [step async for step in client.wait(asked or order())]


def loading(done: int) -> Inventory:
    state = ModelState(digest=DIGEST, level=ModelLevel.PARTIAL, done_bytes=done, total_bytes=1000, busy=True)
    return warm(models={DIGEST: state})


async def test_a_committed_version_is_handed_out_with_its_view_and_a_reference(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        view = node.show()
        node.prove(warm())
        steps = await wait(node)
    assert steps[-1].ready
    assert steps[-1].paths == {"llama": view}
    assert node.refs.kept == [(UID, (DIGEST,))]


async def test_a_waiting_pod_is_first_in_line_while_it_waits_and_no_longer(tmp_path: Path) -> None:
    async with serving(tmp_path) as node, node.client() as client:
        node.prove(loading(10))
        steps = client.wait(order())
        while (await anext(steps)).total_bytes == 0:
            pass
        assert node.waiting.get() == {CHAT}
        await steps.aclose()
        async with asyncio.timeout(20):
            async for value in node.waiting.follow():
                if not value:
                    break


async def test_progress_is_streamed_at_most_once_a_second_until_commit_and_view(tmp_path: Path) -> None:
    began = asyncio.get_running_loop().time()
    async with serving(tmp_path) as node, asyncio.TaskGroup() as group:
        node.prove(loading(0))
        waiting = group.create_task(wait(node))
        for done in range(100, 900, 50):
            node.prove(loading(done))
            await asyncio.sleep(0.1)
        node.prove(warm())
        await asyncio.sleep(0.3)
        assert not waiting.done()  # committed, but its view does not stand yet
        assert node.refs.kept == []
        node.show()
        steps = await waiting
    told = [s.done_bytes for s in steps if s.total_bytes]
    assert 2 <= len(told) <= 3 + asyncio.get_running_loop().time() - began
    assert told == sorted(told)
    assert steps[-1].ready


async def test_without_a_reference_nothing_is_handed_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        node.show()
        node.refs.fail = 2
        node.prove(warm())
        steps = await wait(node)
    assert steps[-1].ready
    assert node.refs.kept == [(UID, (DIGEST,))]


@pytest.mark.parametrize(
    "asked",
    [
        {"pod_uid": "7b1f0c9e-0000-4000-8000-000000000000"},
        {"pod_name": "chat-2"},
        {"namespace": "other"},
    ],
)
async def test_who_is_no_pod_of_this_node_gets_nothing(tmp_path: Path, asked: dict[str, Any]) -> None:
    async with serving(tmp_path) as node:
        node.show()
        node.prove(warm())
        with pytest.raises(Permanent, match="runs on this node"):
            await wait(node, order(**asked))
        assert node.refs.kept == []
        node.runtime.known = tuple(replace(s, ready=False) for s in node.runtime.known)
        with pytest.raises(Permanent, match="runs on this node"):
            await wait(node)


async def test_an_endpoint_that_is_not_assigned_is_refused_after_a_moment(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        node.prove(warm())
        with pytest.raises(Permanent, match=r"team.other is not assigned to this node"):
            await wait(node, order(endpoint="other"))


async def test_an_assignment_that_comes_a_moment_later_serves_the_pod(tmp_path: Path) -> None:
    async with serving(tmp_path, patience_seconds=20) as node, asyncio.TaskGroup() as group:
        node.show()
        node.assignment.set(None)
        node.inventory.set(warm())
        waiting = group.create_task(wait(node))
        await asyncio.sleep(0.1)
        node.assignment.set(assigned())
        assert (await waiting)[-1].ready


async def test_the_timeout_of_the_pod_is_kept(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        node.prove(loading(0))
        with pytest.raises(TimeoutError):
            await wait(node, order(timeout=0.5))


async def test_too_many_pods_wait_elsewhere(tmp_path: Path) -> None:
    async with serving(tmp_path) as node, contextlib.AsyncExitStack() as stack:
        node.prove(loading(0))
        for _ in range(3):
            client = await stack.enter_async_context(node.client())
            steps = await stack.enter_async_context(contextlib.aclosing(client.wait(order())))
            while (await anext(steps)).total_bytes == 0:
                pass
        with pytest.raises(Away, match="3 pods wait already"):
            await wait(node)


async def test_a_malformed_or_oversized_request_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as node, grpc.aio.insecure_channel(f"unix:{node.run_dir}/agent.sock") as channel:
        call = channel.unary_stream("/prewarm.v1.Local/Wait")
        for raw, code in (
            (b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
            (local_pb2.WaitRequest(namespace="../x").SerializeToString(), grpc.StatusCode.INVALID_ARGUMENT),
            (
                local_pb2.WaitRequest(namespace="x" * 400_000).SerializeToString(),
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in call(raw):
                    pass
            assert caught.value.code() is code


async def test_pods_learn_nothing_of_other_tenants_and_root_learns_all(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        node.prove(loading(10))
        async with node.client() as pod, node.client("admin.sock") as root:
            seen, whole = await pod.status(), await root.status()
    assert (len(seen.items), len(seen.reasons), seen.endpoints[0].reason) == (0, 0, "")
    assert whole.node == "n1"
    assert [(i.ref, i.level, i.done_bytes) for i in whole.items if i.ref.startswith("s3://")] == [
        ("s3://weights/llama/", "partial", 10)
    ]
    assert whole.reasons["endpoint.prewarm.dev/team.chat"] == "not ready: model llama is partial"
    assert whole.labels == {"prewarm.dev/gpu": "healthy"}


async def test_the_pods_socket_is_open_and_the_other_is_roots(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "agent.sock").touch()  # left behind
    async with serving(tmp_path) as node:
        assert (node.run_dir / "agent.sock").stat().st_mode & 0o777 == 0o666
        assert (node.run_dir / "admin.sock").stat().st_mode & 0o777 == 0o600


async def test_cancelled_as_it_begins_to_answer_questions_it_leaves_no_socket_open(tmp_path: Path) -> None:
    async def serve() -> None:
        async with serving_questions(tmp_path / "ask.sock", cast("Grants", None)):  # nobody asks
            await asyncio.Event().wait()

    begins = asyncio.create_task(serve())
    await asyncio.sleep(0)
    begins.cancel()
    await asyncio.gather(begins, return_exceptions=True)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_unix_connection(tmp_path / "ask.sock")


async def test_an_agent_that_goes_away_in_the_middle_is_told_apart_from_a_refusal(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as agent:
        node = await agent.enter_async_context(serving(tmp_path))
        node.prove(loading(10))
        async with node.client() as client:
            steps = client.wait(order())
            await anext(steps)
            await agent.aclose()
            with pytest.raises(Away):
                async for _ in steps:
                    pass
    with pytest.raises(Away):
        await wait(node)


async def test_root_has_a_version_removed_and_hears_why_not(tmp_path: Path) -> None:
    async with serving(tmp_path) as node, node.client("admin.sock") as root:
        node.remover.pinned.add(DIGEST)
        with pytest.raises(Permanent, match="it is pinned"):
            await root.remove(DIGEST)
        node.remover.pinned.clear()
        await root.remove(DIGEST)
        assert node.remover.removed == [DIGEST]
        with pytest.raises(Permanent, match="64 hex digits"):
            await root.remove(Digest("../x"))


async def test_a_pod_may_not_remove(tmp_path: Path) -> None:
    async with serving(tmp_path) as node, node.client("agent.sock") as pod:
        with pytest.raises(Permanent, match="removes nothing"):
            await pod.remove(DIGEST)
        assert node.remover.removed == []
