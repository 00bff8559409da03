"""The planner foretells from histories: what counts, what is only measured, and what a failure costs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from agent.core.assignment import Assignment, EndpointWant, Window, WindowSource
from agent.core.latest import Latest
from agent.core.refs import EndpointKey
from agent.demand.endpoint import Endpoint, Predict
from agent.demand.foretell import Foreteller
from agent.demand.foretold import Foretold, Windows
from agent.demand.history import Track, slot_of, track_of
from agent.fleet.foretelling import Foretelling, standing_windows
from agent.fleet.history import HistoryReport
from agent.kube.objects import NodeWarmupView
from tests.fakes.virtual_time import START, LoopClock, run_virtual
from tests.unit.demand.test_foretell import WORKLOAD

DAYS = 5
FIRST = slot_of(START - timedelta(days=DAYS))  # 08:00
OFF, SHADOW, ON = (EndpointKey(namespace="shop", name=str(mode)) for mode in Predict)


def endpoint(key: EndpointKey) -> Endpoint:
    return Endpoint(key=key, workload=WORKLOAD, predict=Predict(key.name))


def daily() -> Track:
    """Used from 09:00 to 12:00, each day."""
    return track_of(FIRST, [6 <= slot % 144 < 24 for slot in range(144 * DAYS)])


class Leader:
    """A service with the cells it reads and writes."""

    def __init__(self, standing: Windows | None = None) -> None:
        self.endpoints: Latest[tuple[Endpoint, ...] | None] = Latest(None)
        self.history = Latest(HistoryReport())
        self.predicted: Latest[Windows] = Latest(standing or {})
        self.foretold = Latest(Foretold(failures=2))
        cells = (self.endpoints, self.history, self.predicted, self.foretold)
        self.service = Foretelling(*cells, budget=0.2, clock=LoopClock())

    def knows(self, tracks: Mapping[EndpointKey, Track] | None = None) -> None:
        self.endpoints.set(tuple(map(endpoint, (ON, SHADOW, OFF))))
        self.history.set(HistoryReport(tracks=tracks or dict.fromkeys((ON, SHADOW, OFF), daily()), complete=True))

    async def next(self) -> Foretold:
        """Start the service, and return what it foretells first."""
        before = self.foretold.get()
        async for found in self.foretold.follow():
            if found != before:
                return found
        raise AssertionError


def test_windows_count_where_predict_is_on_and_are_measured_in_shadow() -> None:
    async def story() -> None:
        leader = Leader()
        task = asyncio.create_task(leader.service.run(), name="foretell")
        leader.endpoints.set(())
        leader.history.set(HistoryReport(tracks={ON: daily()}))
        await asyncio.sleep(600)
        assert leader.foretold.get() == Foretold(failures=2), "histories are not complete"
        leader.knows()
        found = await leader.next()
        assert set(found.windows) == set(found.fared) == {ON, SHADOW}
        nine = START + timedelta(hours=1)
        for key in (ON, SHADOW):
            assert any(w.ready_by <= nine < w.until for w in found.windows[key])
            assert found.fared[key].returns > 1
        assert leader.predicted.get() == {ON: found.windows[ON]}
        assert found.failures == 2
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtual(story())


def test_arithmetic_is_done_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()
    for name in ("begin", "learn", "foretell"):
        method = getattr(Foreteller, name)

        def noted(*args: object, method: object = method) -> object:
            threads.add(threading.get_ident())
            return method(*args)  # type: ignore[operator]

        monkeypatch.setattr(Foreteller, name, noted)

    async def story() -> None:
        leader = Leader()
        leader.knows()
        await leader.service.foretell()

    run_virtual(story())
    assert threads
    assert threading.get_ident() not in threads


def test_a_forecast_that_fails_is_told_and_leaves_what_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(ready_by=START, until=START + timedelta(hours=9), source=WindowSource.PREDICTED, confidence=70)

    def broken(self: Foreteller) -> bool:
        raise FloatingPointError("no number")

    async def story() -> None:
        leader = Leader({ON: (window,)})
        leader.knows()
        monkeypatch.setattr(Foreteller, "learn", broken)
        task = asyncio.create_task(leader.service.run(), name="foretell")
        with capture_logs() as logs:
            assert (await leader.next()).failures == 3
        assert [entry["event"] for entry in logs] == ["nothing can be foretold, windows foretold before run out"]
        assert leader.predicted.get() == {ON: (window,)}
        monkeypatch.undo()
        failed_at = LoopClock().monotonic()
        assert (await leader.next()).failures == 3
        assert LoopClock().monotonic() - failed_at >= 3600
        assert leader.predicted.get()[ON][0].ready_by == START, "it is open, and goes on"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtual(story())


def test_the_next_leader_begins_with_what_nodes_were_told() -> None:
    guess = Window(ready_by=START, until=START + timedelta(hours=1), source=WindowSource.PREDICTED, confidence=70)
    declared = replace(guess, source=WindowSource.DECLARED, confidence=100)
    wants = (EndpointWant(key=ON, windows=(guess, declared)), EndpointWant(key=SHADOW, windows=(declared,)))
    told = NodeWarmupView(name="n1", assignment=Assignment(endpoints=wants))
    assert standing_windows([told, NodeWarmupView(name="n2")]) == {ON: (guess,)}
