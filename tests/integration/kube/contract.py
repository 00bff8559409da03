"""What prewarm's client relies on, as tests that run on the fake and on a real API server (see the two test modules).

Objects: ConfigMaps in the namespace `space`, Nodes named `node-…` (created here, without a kubelet), Leases, Events.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest

from agent.core.clock import SystemClock
from agent.core.latest import Latest
from agent.core.names import KEEP_ANNOTATIONS, KEEP_MANAGER
from agent.core.retry import Backoff
from agent.kube.api import KubeApi, PatchKind, Resource
from agent.kube.errors import AlreadyExists, Conflict, NotFound, Rejected
from agent.kube.events import Announcement, EventWriter
from agent.kube.lease import LeaderElector
from agent.kube.objects import NodeView, ObjectRef, Taint
from agent.kube.resources import EVENTS, LEASES, NODES
from agent.kube.watch import Listing, Pace, Selection, Watch

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A ConfigMap."""

    namespace: str
    name: str
    version: str
    text: str


ITEMS: Resource[Item] = Resource(
    group="api/v1",
    plural="configmaps",
    parse=lambda o: Item(
        namespace=o["metadata"]["namespace"],
        name=o["metadata"]["name"],
        version=o["metadata"]["resourceVersion"],
        text=(o.get("data") or {}).get("text", ""),
    ),
)


def item(name: str, text: str, **labels: str) -> dict[str, object]:
    return {"metadata": {"name": name, "labels": labels}, "data": {"text": text}}


async def until(cell: Latest[T], holds: Callable[[T], bool], seconds: float = 10) -> T:
    """Wait until the cell's value satisfies; fail with the last value."""
    try:
        async with asyncio.timeout(seconds):
            async for value in cell.follow():
                if holds(value):
                    return value
    except TimeoutError:
        pytest.fail(f"not within {seconds} s; last: {cell.get()}")
    raise AssertionError


@asynccontextmanager
async def watching(
    api: KubeApi, space: str, select: Selection | None = None, seconds: float = 300
) -> AsyncIterator[Latest[Listing[Item]]]:
    """Watch the ConfigMaps of the namespace."""
    cell: Latest[Listing[Item]] = Latest(Listing())
    select = select or Selection(namespace=space, labels="contract=yes")
    pace = Pace(seconds=(seconds, seconds), backoff=Backoff(base_seconds=0.05, cap_seconds=0.2, floor_seconds=0.01))
    watch = Watch(api, ITEMS, cell, clock=SystemClock(), select=select, pace=pace)
    task = asyncio.create_task(watch.run(), name=watch.name)
    try:
        yield cell
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def texts(listing: Listing[Item]) -> dict[str, str]:
    return {i.name: i.text for i in listing.items.values()}


class KubeContract:
    """Inherit with fixtures `api` (KubeApi) and `space` (a namespace of one's own)."""

    async def test_created_object_is_read_back_and_created_twice_is_refused(self, api: KubeApi, space: str) -> None:
        made = await api.create(ITEMS, item("a", "one"), namespace=space)
        assert (await api.get(ITEMS, "a", namespace=space)) == made
        with pytest.raises(AlreadyExists):
            await api.create(ITEMS, item("a", "two"), namespace=space)

    async def test_absent_object_is_not_found(self, api: KubeApi, space: str) -> None:
        with pytest.raises(NotFound):
            await api.get(ITEMS, "nobody", namespace=space)
        with pytest.raises(NotFound):
            await api.delete(ITEMS, "nobody", namespace=space)

    async def test_list_reads_every_page(self, api: KubeApi, space: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("agent.kube.api._PAGE", 3)
        for number in range(8):
            await api.create(ITEMS, item(f"n{number}", str(number), contract="yes"), namespace=space)
        listed = await api.list(ITEMS, namespace=space, label_selector="contract=yes")
        assert sorted(i.text for i in listed.items) == [str(n) for n in range(8)]

    async def test_replace_of_an_old_version_conflicts(self, api: KubeApi, space: str) -> None:
        first = await api.create(ITEMS, item("a", "one"), namespace=space)
        await api.patch(ITEMS, "a", {"data": {"text": "two"}}, namespace=space)
        body = {"metadata": {"name": "a", "resourceVersion": first.version}, "data": {"text": "three"}}
        with pytest.raises(Conflict):
            await api.replace(ITEMS, "a", body, namespace=space)
        assert (await api.get(ITEMS, "a", namespace=space)).text == "two"

    async def test_delete_with_another_uid_conflicts(self, api: KubeApi, space: str) -> None:
        await api.create(ITEMS, item("a", "one"), namespace=space)
        with pytest.raises(Conflict):
            await api.delete(ITEMS, "a", namespace=space, uid=str(uuid.uuid4()))
        await api.delete(ITEMS, "a", namespace=space)
        with pytest.raises(NotFound):
            await api.get(ITEMS, "a", namespace=space)

    async def test_one_status_patch_changes_labels_annotations_and_one_condition(self, api: KubeApi, node: str) -> None:
        await _status(api, node, {"labels": {"x.dev/a": "1", "x.dev/b": "2"}}, [_condition("A", "True")])
        after = await _status(
            api, node, {"labels": {"x.dev/a": None}, "annotations": {"x.dev/n": "v"}}, [_condition("B", "False")]
        )
        assert after.labels["x.dev/b"] == "2"
        assert "x.dev/a" not in after.labels
        assert after.annotations["x.dev/n"] == "v"
        assert {(c.type, c.status) for c in after.conditions} >= {("A", "True"), ("B", "False")}

    async def test_what_a_manager_applies_to_a_node_it_takes_back_and_nothing_else(
        self, api: KubeApi, node: str
    ) -> None:
        karpenter, autoscaler = KEEP_ANNOTATIONS
        await _status(api, node, {"annotations": {karpenter: "true", "x.dev/n": "v"}}, [])
        kept = await _keep(api, node, dict.fromkeys(KEEP_ANNOTATIONS, "true"))
        assert kept.kept
        assert (kept.annotations[autoscaler], kept.annotations["x.dev/n"]) == ("true", "v")
        let_go = await _keep(api, node, {})
        assert not let_go.kept
        assert let_go.annotations[karpenter] == "true"  # somebody else has set it too
        assert autoscaler not in let_go.annotations

    async def test_what_another_has_set_differently_is_a_conflict_and_stays(self, api: KubeApi, node: str) -> None:
        await _status(api, node, {"annotations": {KEEP_ANNOTATIONS[0]: "false"}}, [])
        with pytest.raises(Conflict, match="conflict with"):
            await _keep(api, node, dict.fromkeys(KEEP_ANNOTATIONS, "true"))
        found = await api.get(NODES, node)
        assert (found.annotations[KEEP_ANNOTATIONS[0]], found.kept) == ("false", False)
        assert KEEP_ANNOTATIONS[1] not in found.annotations

    async def test_json_patch_moves_one_taint_only_if_its_test_holds(self, api: KubeApi, node: str) -> None:
        await api.patch(NODES, node, {"spec": {"taints": [{"key": "x", "effect": "NoSchedule"}]}})
        wrong = [{"op": "test", "path": "/spec/taints/0/key", "value": "y"}, {"op": "remove", "path": "/spec/taints/0"}]
        with pytest.raises(Rejected):
            await api.patch(NODES, node, wrong, kind=PatchKind.JSON)
        add = [{"op": "add", "path": "/spec/taints/-", "value": {"key": "y", "effect": "NoSchedule"}}]
        after = await api.patch(NODES, node, add, kind=PatchKind.JSON)
        ours = tuple(t for t in after.taints if t.key in ("x", "y"))  # a real cluster adds taints of its own
        assert ours == (Taint(key="x", effect="NoSchedule"), Taint(key="y", effect="NoSchedule"))

    async def test_watch_sees_what_was_there_and_every_change(self, api: KubeApi, space: str) -> None:
        await api.create(ITEMS, item("a", "one", contract="yes"), namespace=space)
        await api.create(ITEMS, item("other", "-"), namespace=space)
        async with watching(api, space) as cell:
            assert texts(await until(cell, lambda v: v.synced)) == {"a": "one"}
            await api.create(ITEMS, item("b", "two", contract="yes"), namespace=space)
            await api.patch(ITEMS, "a", {"data": {"text": "three"}}, namespace=space)
            await until(cell, lambda v: texts(v) == {"a": "three", "b": "two"})
            await api.delete(ITEMS, "b", namespace=space)
            await until(cell, lambda v: texts(v) == {"a": "three"})

    async def test_watch_drops_an_object_that_no_longer_matches(self, api: KubeApi, space: str) -> None:
        await api.create(ITEMS, item("a", "one", contract="yes"), namespace=space)
        async with watching(api, space) as cell:
            await until(cell, lambda v: texts(v) == {"a": "one"})
            await api.patch(ITEMS, "a", {"metadata": {"labels": {"contract": "no"}}}, namespace=space)
            await until(cell, lambda v: texts(v) == {})

    async def test_watch_by_name_sees_one_object(self, api: KubeApi, space: str) -> None:
        await api.create(ITEMS, item("a", "one"), namespace=space)
        async with watching(api, space, Selection(namespace=space, fields="metadata.name=b")) as cell:
            await until(cell, lambda v: v.synced)
            await api.create(ITEMS, item("b", "two"), namespace=space)
            found = await until(cell, lambda v: bool(v.items))
            assert [i.name for i in found.items.values()] == ["b"]

    async def test_watch_goes_on_when_the_server_ends_it(self, api: KubeApi, space: str) -> None:
        async with watching(api, space, seconds=1) as cell:
            await until(cell, lambda v: v.synced)
            for number in range(4):
                await api.create(ITEMS, item(f"n{number}", str(number), contract="yes"), namespace=space)
                await asyncio.sleep(0.6)  # the server's clock: watches end each second
            found = await until(cell, lambda v: len(v.items) == 4)
            assert found.away_since is None

    async def test_lease_has_one_leader_and_passes_on_at_release(self, api: KubeApi, space: str) -> None:
        leaders: Latest[tuple[str, ...]] = Latest(())
        tasks = {who: asyncio.create_task(_lead(api, space, who, leaders)) for who in ("one", "two")}
        try:
            first = (await until(leaders, bool))[0]
            assert leaders.get() == (first,)
            tasks[first].cancel()
            await asyncio.gather(tasks[first], return_exceptions=True)
            released = await api.get(LEASES, "leader", namespace=space)
            assert released.holder != first
            second = (await until(leaders, bool))[0]
            assert {first, second} == {"one", "two"}
            assert (await api.get(LEASES, "leader", namespace=space)).holder == second
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def test_event_is_told_once_and_counted_after_ten_minutes(self, api: KubeApi, space: str) -> None:
        clock = MovedClock()
        about = ObjectRef(api_version="v1", kind="ConfigMap", namespace=space, name="a", uid="u-1")
        said = Announcement(about=about, reason="Invalid", message="bad value 'x'\n" + "y" * 2000)
        writer = _writer(api, clock)
        assert await writer.announce({said}) == pytest.approx(600, abs=5)
        await writer.announce({said})
        first = await api.get(EVENTS, said.event_name, namespace=space)
        assert (first.reason, first.count) == ("Invalid", 1)
        assert first.message.startswith("bad value 'x' yyy")
        assert len(first.message.encode()) <= 1000
        assert await _writer(api, clock).announce({said}) == pytest.approx(600, abs=5)  # a new leader keeps quiet
        assert (await api.get(EVENTS, said.event_name, namespace=space)).count == 1
        clock.ahead = timedelta(minutes=11)
        await writer.announce({said})
        assert (await api.get(EVENTS, said.event_name, namespace=space)).count == 2

    async def test_event_that_aged_away_is_told_again(self, api: KubeApi, space: str) -> None:
        clock = MovedClock()
        about = ObjectRef(api_version="v1", kind="ConfigMap", namespace=space, name="a", uid="u-1")
        said = Announcement(about=about, reason="Invalid", message="bad")
        writer = _writer(api, clock)
        await writer.announce({said})
        await api.delete(EVENTS, said.event_name, namespace=space)
        clock.ahead = timedelta(minutes=11)
        await writer.announce({said})
        assert (await api.get(EVENTS, said.event_name, namespace=space)).count == 1


class MovedClock(SystemClock):
    """The machine's clocks, some time ahead."""

    ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead.total_seconds()


def _writer(api: KubeApi, clock: SystemClock) -> EventWriter:
    return EventWriter(api, Latest(()), component="prewarm-contract", instance="test", clock=clock)


def _condition(kind: str, status: str) -> dict[str, str]:
    return {"type": f"x.dev/{kind}", "status": status, "reason": "Test", "message": ""} | {"type": kind}


async def _status(api: KubeApi, node: str, meta: dict[str, object], conditions: list[dict[str, str]]) -> NodeView:
    body = {"metadata": meta, "status": {"conditions": conditions}}
    return await api.patch(NODES, node, body, kind=PatchKind.STRATEGIC, subresource="status")


async def _keep(api: KubeApi, node: str, annotations: dict[str, str]) -> NodeView:
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "annotations": annotations}}
    return await api.apply(NODES, node, body, manager=KEEP_MANAGER, subresource="status")


async def _lead(api: KubeApi, space: str, who: str, leaders: Latest[tuple[str, ...]]) -> None:
    async def work() -> None:
        leaders.set((*leaders.get(), who))
        try:
            await asyncio.Event().wait()
        finally:
            leaders.set(tuple(x for x in leaders.get() if x != who))

    elector = LeaderElector(api, namespace=space, name="leader", identity=who, clock=SystemClock())
    await elector.run(work)
