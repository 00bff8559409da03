"""Leader election when things go wrong, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agent.kube.lease import LeaderElector
from tests.fakes.api_server import DirectApi, FakeApiServer
from tests.fakes.virtual_time import LoopClock, run_virtual

PATH = "/apis/coordination.k8s.io/v1/namespaces/prewarm/leases/planner"


class LateApi(DirectApi):
    """What is written is written at once, and answered `late` seconds after."""

    late = 0.0

    async def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        answer = await super()._ask(method, path, **more)
        await asyncio.sleep(self.late if method != "GET" else 0)
        return answer


class Candidate:
    """One replica with a way of its own to the API server; notes when it led."""

    def __init__(self, server: FakeApiServer, name: str, late: float = 0.0) -> None:
        self.api = LateApi(server)
        self.api.late = late
        self.leads: list[tuple[float, str]] = []
        self.elector = LeaderElector(self.api, namespace="prewarm", name="planner", identity=name, clock=LoopClock())
        self.task = asyncio.create_task(self.elector.run(self.work), name=name)

    async def work(self) -> None:
        now = asyncio.get_running_loop().time
        self.leads.append((now(), "begins"))
        try:
            await asyncio.Event().wait()
        finally:
            self.leads.append((now(), "ends"))

    @property
    def leading(self) -> bool:
        return bool(self.leads) and self.leads[-1][1] == "begins"

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def seconds(number: float) -> None:
    await asyncio.sleep(number)  # virtual


def test_leader_cut_off_stops_before_the_other_begins() -> None:
    async def story() -> None:
        server = FakeApiServer()
        one = Candidate(server, "one")
        await seconds(1)
        two = Candidate(server, "two")
        await seconds(60)
        assert one.leading
        assert two.leads == []
        one.api.down = True
        await seconds(60)
        assert not one.leading
        assert two.leading
        stopped, began = one.leads[-1][0], two.leads[-1][0]
        assert stopped < began
        assert began - 61 <= 15 + 3  # the Lease's duration from when its last renewal was seen
        one.api.down = False
        await seconds(60)
        assert not one.leading
        await one.end()
        await two.end()

    run_virtual(story())


def test_a_leader_that_heard_late_of_its_lease_stops_before_the_other_begins() -> None:
    async def story() -> None:
        server = FakeApiServer()
        one = Candidate(server, "one", late=9)
        await seconds(1)
        two = Candidate(server, "two")
        await seconds(8.5)
        assert one.leading
        one.api.down = True
        await seconds(20)
        assert not one.leading
        assert two.leading
        assert one.leads[-1][0] < two.leads[-1][0]
        await one.end()
        await two.end()

    run_virtual(story())


def test_slow_answers_keep_the_leader() -> None:
    async def story() -> None:
        one = Candidate(FakeApiServer(), "one", late=4)
        await seconds(300)
        assert [what for _, what in one.leads] == ["begins"]
        await one.end()

    run_virtual(story())


def test_a_deleted_lease_makes_no_second_leader() -> None:
    async def story() -> None:
        server = FakeApiServer()
        one = Candidate(server, "one")
        await seconds(1)
        two = Candidate(server, "two")
        await seconds(9.5)
        await server.remove(PATH)  # just after it was renewed
        await seconds(60)
        assert [what for _, what in one.leads] == ["begins"]
        assert two.leads == []
        await one.end()
        await two.end()

    run_virtual(story())


def test_short_outage_keeps_the_leader() -> None:
    async def story() -> None:
        one = Candidate(FakeApiServer(), "one")
        await seconds(10)
        one.api.down = True
        await seconds(4)
        one.api.down = False
        await seconds(60)
        assert [what for _, what in one.leads] == ["begins"]
        await one.end()

    run_virtual(story())


def test_outage_for_all_ends_the_lead_and_it_comes_back() -> None:
    async def story() -> None:
        one = Candidate(FakeApiServer(), "one")
        await seconds(10)
        one.api.down = True
        await seconds(30)
        assert not one.leading
        one.api.down = False
        await seconds(30)
        assert one.leading
        await one.end()

    run_virtual(story())


def test_cancelled_in_the_moment_of_loss_it_ends() -> None:
    async def story(cancel_at: float | None) -> float:
        one = Candidate(FakeApiServer(), "one")
        if cancel_at is not None:
            loop = asyncio.get_running_loop()
            loop.call_at(
                cancel_at, lambda: loop.call_soon(one.task.cancel)
            )  # in the very turn in which the renewal gives up
        await seconds(7)
        one.api.down = True
        await seconds(30)
        if cancel_at is not None:
            assert one.task.done()
        await one.end()
        return one.leads[-1][0]

    lost_at = run_virtual(story(None))
    assert run_virtual(story(lost_at)) == lost_at


def test_lease_taken_by_hand_ends_the_lead() -> None:
    async def story() -> None:
        server = FakeApiServer()
        one = Candidate(server, "one")
        await seconds(10)
        lease = server.get(PATH)
        assert lease is not None
        lease["spec"] |= {"holderIdentity": "thief", "renewTime": "2026-01-01T00:00:00.000000Z"}
        await server.put(PATH, lease)
        await seconds(7)
        assert not one.leading
        await seconds(30)
        assert one.leading  # nobody renewed it
        await one.end()

    run_virtual(story())


def test_released_lease_is_taken_within_seconds() -> None:
    async def story() -> None:
        server = FakeApiServer()
        one = Candidate(server, "one")
        await seconds(1)
        two = Candidate(server, "two")
        await seconds(10)
        await one.end()
        await seconds(3)
        assert two.leading
        lease = server.get(PATH)
        assert lease is not None
        assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("two", 2)
        await two.end()

    run_virtual(story())


def test_idle_leader_renews_every_five_seconds() -> None:
    async def story() -> None:
        server = FakeApiServer()
        one = Candidate(server, "one")
        await seconds(100)
        assert 18 <= server.count("PUT") <= 20
        await one.end()

    run_virtual(story())


async def _fails() -> None:
    raise ValueError("broken")


async def _returns() -> None:
    return None


@pytest.mark.parametrize(("work", "error"), [(_fails, ValueError), (_returns, RuntimeError)])
def test_work_that_ends_ends_the_process(work: Callable[[], object], error: type[Exception]) -> None:
    async def story() -> None:
        api = DirectApi(FakeApiServer())
        elector = LeaderElector(api, namespace="prewarm", name="planner", identity="one", clock=LoopClock())
        await elector.run(work)  # type: ignore[arg-type]

    with pytest.raises(ExceptionGroup) as caught:
        run_virtual(story())
    assert isinstance(caught.value.exceptions[0], error)
