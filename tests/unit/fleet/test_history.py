"""Histories are observed, kept and handed on between leaders, against an API server in memory, in virtual time."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Coroutine
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.config import Settings
from agent.core.latest import Latest
from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint, WorkloadRef
from agent.demand.history import Track, slot_of, track_of
from agent.demand.history_shards import SHARD_ENDPOINTS, decode
from agent.fleet.history import HistoryKeeper, HistoryReport
from agent.fleet.history_store import HistoryStore
from agent.fleet.sources import Sources
from agent.kube.errors import Away
from agent.kube.objects import WorkloadView
from tests.fakes.api_server import DirectApi, FakeApiServer
from tests.fakes.virtual_time import START, LoopClock, run_virtual

MAPS = "/api/v1/namespaces/prewarm/configmaps"
FIRST = slot_of(START)
CHAT, CODE = (EndpointKey(namespace="shop", name=n) for n in ("chat", "code"))


def endpoint(key: EndpointKey) -> Endpoint:
    ref = WorkloadRef(api_version="apps/v1", kind="Deployment", namespace=key.namespace, name=key.name, uid="u")
    return Endpoint(key=key, workload=ref)


def workload(key: EndpointKey, *, running: bool) -> WorkloadView:
    return WorkloadView(
        api_version="apps/v1",
        kind="Deployment",
        namespace=key.namespace,
        name=key.name,
        uid="u",
        running=running,
    )


def kept(server: FakeApiServer, number: int = 0) -> dict[EndpointKey, Track]:
    found = server.get(f"{MAPS}/prewarm-history-{number}")
    return dict(decode(base64.b64decode(found["binaryData"]["history"])).tracks) if found else {}


class Leader:
    """A keeper with the cells it looks at."""

    def __init__(self, server: FakeApiServer) -> None:
        self.api = DirectApi(server)
        self.sources, self.endpoints = Sources(), Latest[tuple[Endpoint, ...] | None](None)
        self.report = Latest(HistoryReport())
        self.keeper = HistoryKeeper(self.api, Settings(), self.sources, self.endpoints, self.report, clock=LoopClock())
        self.answers(True)

    def answers(self, current: bool) -> None:
        since = None if current else START
        for cell in self.sources._planned():
            cell.set(replace(cell.get(), synced=True, away_since=since))

    def sees(self, *running: EndpointKey, declared: tuple[EndpointKey, ...] = (CHAT, CODE)) -> None:
        self.endpoints.set(tuple(endpoint(key) for key in declared))
        items = {str(key): workload(key, running=key in running) for key in declared}
        cell = self.sources.workloads["deployments"]
        cell.set(replace(cell.get(), items=items))

    def start(self) -> None:
        self.task = asyncio.create_task(self.keeper.run(), name="keeper")

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def crash(self) -> None:
        """End it without a goodbye."""
        self.api.down = True
        await self.stop()

    def states(self, key: EndpointKey, count: int) -> list[bool | None]:
        track = self.report.get().tracks.get(key, Track())
        return [track.state(FIRST + n) for n in range(count)]


def told(story: Coroutine[Any, Any, None]) -> None:
    run_virtual(story)


async def minutes(count: float) -> None:
    await asyncio.sleep(count * 60)


def test_replicas_make_a_slot_active_and_a_whole_slot_without_them_idle() -> None:
    async def story() -> None:
        leader = Leader(FakeApiServer())
        await minutes(3)
        leader.start()
        leader.sees()
        await minutes(12)  # 08:15
        leader.sees(CHAT)
        await minutes(1)
        leader.sees()
        await minutes(15)  # 08:31
        assert leader.states(CHAT, 4) == [None, True, False, None]
        assert leader.states(CODE, 4) == [None, False, False, None]
        await leader.stop()

    told(story())


def test_while_the_api_server_is_away_slots_are_unknown() -> None:
    async def story() -> None:
        leader = Leader(FakeApiServer())
        leader.start()
        leader.sees(CODE)
        await minutes(15)
        leader.answers(False)
        await minutes(10)
        leader.answers(True)
        await minutes(20)  # 08:45
        assert leader.states(CHAT, 4) == [None, None, None, False]
        assert leader.states(CODE, 4) == [True, True, True, True]
        await leader.stop()

    told(story())


def test_an_endpoint_whose_workload_nobody_sees_is_unknown_not_idle() -> None:
    async def story() -> None:
        leader = Leader(FakeApiServer())
        leader.start()
        leader.endpoints.set((endpoint(CHAT),))
        await minutes(60)
        assert leader.states(CHAT, 6) == [None] * 6
        await leader.stop()

    told(story())


def test_an_hour_of_slots_is_written_and_the_next_leader_goes_on_from_it() -> None:
    async def story() -> None:
        server = FakeApiServer()
        first = Leader(server)
        first.start()
        first.sees(CHAT)
        await minutes(65)
        assert [kept(server)[CHAT].state(FIRST + n) for n in range(7)] == [True] * 6 + [None]
        assert first.report.get().written_at == START + timedelta(hours=1)
        first.sees()
        await minutes(30)  # 09:35
        await first.crash()
        second = Leader(server)
        second.start()
        second.sees()
        await minutes(26)  # 10:01
        assert second.states(CHAT, 12) == [True] * 6 + [None] * 4 + [False, False]
        await second.stop()
        assert kept(server)[CHAT].state(FIRST + 11) is False
        assert server.count("POST") == 1

    told(story())


def test_a_leader_that_is_told_to_stop_writes_what_it_saw() -> None:
    async def story() -> None:
        server = FakeApiServer()
        leader = Leader(server)
        leader.start()
        leader.sees(CHAT)
        await minutes(25)
        assert kept(server) == {}
        await leader.stop()
        assert [kept(server)[CHAT].state(FIRST + n) for n in range(4)] == [True, True, True, None]

    told(story())


def test_histories_are_complete_once_what_was_kept_is_loaded() -> None:
    async def story() -> None:
        leader = Leader(FakeApiServer())
        leader.api.down = True
        leader.start()
        leader.sees(CHAT)
        await minutes(15)
        assert not leader.report.get().complete
        leader.api.down = False
        await minutes(1)
        assert leader.report.get().complete
        await leader.stop()

    told(story())


def test_nothing_is_written_while_nothing_is_new() -> None:
    async def story() -> None:
        server = FakeApiServer()
        leader = Leader(server)
        leader.start()
        leader.answers(False)
        leader.sees()
        await minutes(300)
        assert server.all("/api/v1/configmaps") == []
        await leader.stop()

    told(story())


def test_what_another_leader_wrote_meanwhile_is_not_lost() -> None:
    async def story() -> None:
        server = FakeApiServer()
        first, second = Leader(server), Leader(server)
        first.start()
        first.sees(CHAT, declared=(CHAT,))
        await minutes(1)
        second.start()
        second.sees(CODE, declared=(CODE,))
        await minutes(125)
        assert set(kept(server)) == {CHAT, CODE}
        assert kept(server)[CHAT].state(FIRST) is True
        assert kept(server)[CODE].state(FIRST) is True
        await first.stop()
        await second.stop()

    told(story())


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"binaryData": {"history": base64.b64encode(b"PWH\x01damaged").decode()}}, "checksum"),
        ({"binaryData": {"history": base64.b64encode(b"PWH\x09damaged").decode()}}, "format 9"),
        ({"data": {"mine": "a person's"}}, "not prewarm's"),
    ],
)
def test_a_configmap_that_holds_no_history_is_left_alone_and_told_once(held: dict[str, Any], said: str) -> None:
    async def story() -> None:
        server = FakeApiServer()
        await server.put(f"{MAPS}/prewarm-history-0", dict(held))
        leader = Leader(server)
        with capture_logs() as logs:
            leader.start()
            leader.sees(CHAT)
            await minutes(185)
        warnings = [entry for entry in logs if entry["log_level"] == "warning"]
        assert len(warnings) == 1
        assert said in warnings[0]["error"]
        assert "kubectl -n prewarm delete configmap prewarm-history-0" in warnings[0]["cure"]
        assert leader.report.get().failures == {"shard": 1}
        found = server.get(f"{MAPS}/prewarm-history-0") or {}
        assert {k: found[k] for k in held} == held
        assert kept(server, 1)[CHAT].state(FIRST) is True
        await server.remove(f"{MAPS}/prewarm-history-0")
        leader.sees(CHAT, CODE)
        await minutes(125)
        assert CODE in kept(server, 0) | kept(server, 1)
        await leader.stop()

    told(story())


def test_a_deleted_shard_is_made_again() -> None:
    async def story() -> None:
        server = FakeApiServer()
        leader = Leader(server)
        leader.start()
        leader.sees(CHAT)
        await minutes(65)
        await server.remove(f"{MAPS}/prewarm-history-0")
        await minutes(60)
        assert kept(server)[CHAT].state(FIRST) is True
        await leader.stop()

    told(story())


def test_an_api_server_that_refuses_costs_nothing_but_the_writing() -> None:
    async def story() -> None:
        server = FakeApiServer()
        server.forbidden = "configmaps"
        leader = Leader(server)
        with capture_logs() as logs:
            leader.start()
            leader.sees(CHAT)
            await minutes(65)
        assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["histories cannot be kept"]
        assert leader.report.get().failures["write"] > 60
        assert leader.states(CHAT, 6) == [True] * 6
        server.forbidden = ""
        await minutes(65)
        assert kept(server)[CHAT].state(FIRST) is True
        await leader.stop()

    told(story())


def test_shards_fill_one_after_the_other_and_nobody_moves() -> None:
    async def story() -> None:
        server = FakeApiServer()
        store = HistoryStore(DirectApi(server), "prewarm")
        track = track_of(FIRST, [True])
        keys = [EndpointKey(namespace="n", name=f"e{n:04d}") for n in range(SHARD_ENDPOINTS + 10)]
        await store.load()
        await store.write(dict.fromkeys(keys, track), START)
        assert (len(kept(server, 0)), len(kept(server, 1))) == (SHARD_ENDPOINTS, 10)
        again = HistoryStore(DirectApi(server), "prewarm")
        assert set(await again.load()) == set(keys)
        left = dict.fromkeys([*keys[5:], EndpointKey(namespace="n", name="a-new-one")], track)
        await again.write(left, START)
        assert (len(kept(server, 0)), len(kept(server, 1))) == (SHARD_ENDPOINTS - 4, 10)
        assert set(kept(server, 1)) == set(keys[SHARD_ENDPOINTS:])
        writes = server.count("POST") + server.count("PUT")
        await again.write(left, START + timedelta(hours=1))
        assert server.count("POST") + server.count("PUT") == writes

    told(story())


def test_a_crash_between_two_writes_loses_nobody() -> None:
    async def story() -> None:
        server = FakeApiServer()
        track = track_of(FIRST, [True])
        keys = [EndpointKey(namespace="n", name=f"e{n:04d}") for n in range(SHARD_ENDPOINTS + 10)]
        store = HistoryStore(DirectApi(server), "prewarm")
        await store.load()
        await store.write(dict.fromkeys(keys, track), START)
        longer = replace(track, active=3, known=3)
        for broken in (1, 2):
            api = DirectApi(server)
            other = HistoryStore(api, "prewarm")
            await other.load()
            _break_after(api, broken)
            with pytest.raises(Away):
                await other.write(dict.fromkeys([*keys[20:], *(keys[n] for n in range(10))], longer), START)
            found = await HistoryStore(DirectApi(server), "prewarm").load()
            assert set(keys[20:]) <= set(found)

    told(story())


def _break_after(api: DirectApi, requests: int) -> None:
    ask, left = api._ask, [requests]

    async def broken(method: str, path: str, **rest: Any) -> Any:
        left[0] -= 1
        if left[0] <= 0:
            raise Away("gone")
        return await ask(method, path, **rest)

    api._ask = broken  # type: ignore[method-assign]
