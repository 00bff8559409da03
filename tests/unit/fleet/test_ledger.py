"""How windows end, and that it is remembered over a change of leader."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.assignment import Assignment, EndpointWant, Window
from agent.core.errors import Invalid
from agent.core.latest import Latest
from agent.core.refs import EndpointKey
from agent.fleet.ledger import Entry, Ledger, Outcome, ready_windows, settled
from agent.fleet.ledger_keeper import NAME, LedgerKeeper, format_ledger, last_outcomes, parse_ledger
from agent.kube.objects import Condition, NodeView
from tests.fakes.api_server import DirectApi, FakeApiServer
from tests.fakes.virtual_time import START, LoopClock, run_virtual

NINE = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
CHAT = EndpointKey(namespace="shop", name="chat")
WINDOWS = {CHAT: (Window(ready_by=NINE, until=NINE + timedelta(hours=1)),)}


def after(*looks: tuple[int, bool, bool], windows: Mapping[EndpointKey, tuple[Window, ...]] = WINDOWS) -> Ledger:
    """Look at minutes after nine: is it ready, is it used."""
    ledger = Ledger()
    for minute, ready, used in looks:
        now = NINE + timedelta(minutes=minute)
        ledger = settled(ledger, windows, [(CHAT, NINE)] if ready else [], [CHAT] if used else [], now)
    return ledger


@pytest.mark.parametrize(
    ("looks", "outcome", "late_minutes"),
    [
        (
            [(-30, False, False), (-5, True, False), (0, True, False), (20, True, True), (60, True, False)],
            Outcome.HIT,
            0,
        ),
        ([(-30, True, True), (60, True, True)], Outcome.HIT, 0),
        ([(-30, True, True), (0, True, False), (60, True, False)], Outcome.UNUSED, 0),
        ([(-30, False, False), (3, True, True), (60, True, False)], Outcome.LATE, 3),
        ([(-30, True, False), (-10, False, False), (4, True, False), (61, True, False)], Outcome.LATE, 4),
        ([(-30, True, False), (5, False, True), (60, False, False)], Outcome.HIT, 0),
        ([(-30, False, False), (30, False, True), (60, True, False)], Outcome.MISSED, 0),
    ],
)
def test_every_window_ends_as_one_of_four(
    looks: list[tuple[int, bool, bool]], outcome: Outcome, late_minutes: int
) -> None:
    ledger = after(*looks)
    assert ledger.last == {CHAT: Entry(ready_by=NINE, outcome=outcome, late=timedelta(minutes=late_minutes))}
    assert (ledger.totals, ledger.open) == ({(CHAT, outcome): 1}, {})


def test_what_is_first_seen_when_due_or_is_taken_back_is_not_counted() -> None:
    assert after((0, False, False), (60, False, False)).totals == {}
    begun = after((-30, False, False))
    taken = settled(begun, {CHAT: ()}, [], [], NINE + timedelta(minutes=1))
    assert (taken.open, taken.totals) == ({}, {})


def test_a_window_is_ready_when_all_its_nodes_are_that_are_there() -> None:
    noon = Window(ready_by=NINE + timedelta(hours=3), until=NINE + timedelta(hours=4))
    whole = EndpointWant(key=CHAT, windows=(*WINDOWS[CHAT], noon))
    leaner = EndpointWant(key=CHAT, windows=(noon,))  # of a holiday, it does without the first
    plans = [Assignment(node=n, endpoints=(w,)) for n, w in {"n1": whole, "n2": leaner}.items()] + [
        Assignment(node="n3")
    ]
    warm = {"endpoint.prewarm.dev/shop.chat": "ready"}
    up = (Condition(type="Ready", status="True"),)
    nodes = {"n1": NodeView(name="n1", labels=warm, conditions=up), "n2": NodeView(name="n2", conditions=up)}
    assert ready_windows(plans, nodes) == {(CHAT, NINE)}
    for n2 in (NodeView(name="n2"), NodeView(name="n2", labels=warm, conditions=up)):
        assert ready_windows(plans, nodes | {"n2": n2}) == {(CHAT, NINE), (CHAT, noon.ready_by)}
    assert ready_windows([], nodes) == frozenset()


MINUTES = st.lists(st.tuples(st.integers(-60, 120), st.booleans(), st.booleans()), max_size=8)


@given(MINUTES)
def test_no_window_is_counted_twice_or_forgotten(looks: list[tuple[int, bool, bool]]) -> None:
    looks = sorted(looks, key=lambda look: look[0])
    ledger = after(*looks)
    known = any(m < 0 for m, _, _ in looks)
    over = any(m >= 60 for m, _, _ in looks)
    assert sum(ledger.totals.values()) == (known and over)
    assert bool(ledger.open) == (known and not over)


@given(MINUTES)
def test_what_is_open_and_what_was_last_survive_being_written(looks: list[tuple[int, bool, bool]]) -> None:
    ledger = after(*sorted(looks, key=lambda look: look[0]))
    now = NINE + timedelta(hours=3)
    found = parse_ledger(json.loads(json.dumps(format_ledger(ledger, now))))
    assert (found.open, found.last) == (ledger.open, ledger.last)


@pytest.mark.parametrize(
    "bad", [[], {"last": [{}]}, {"last": 3}, {"open": [{"namespace": "a", "name": "b", "readyBy": "x"}]}]
)
def test_a_broken_ledger_is_refused(bad: object) -> None:
    with pytest.raises(Invalid):
        parse_ledger(bad)


def test_people_read_it_as_words() -> None:
    ledger = after((-30, False, False), (3, True, True), (60, True, False))
    assert last_outcomes(format_ledger(ledger, NINE), NINE) == {"shop.chat": "late 3m, 2026-03-02 09:00 UTC"}


def test_the_next_leader_knows_what_is_open_and_writes_are_rare() -> None:
    async def lead() -> None:
        server = FakeApiServer()
        cell, opened = Latest(Ledger()), {CHAT: (Window(ready_by=START, until=START + timedelta(hours=1)),)}
        keeper = LedgerKeeper(DirectApi(server), cell, namespace="prewarm", clock=LoopClock())
        await keeper.load()
        cell.set(settled(cell.get(), opened, [(CHAT, START)], [], START - timedelta(minutes=1)))
        task = asyncio.create_task(keeper.run(), name="ledger")
        for n in range(600):
            await asyncio.sleep(1)
            cell.set(settled(cell.get(), opened, [(CHAT, START)], [], START + timedelta(seconds=n)))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert server.count("PATCH") + server.count("POST") <= 3
        following = Latest(Ledger())
        await LedgerKeeper(DirectApi(server), following, namespace="prewarm", clock=LoopClock()).load()
        assert following.get().open == cell.get().open

    run_virtual(lead())


def test_the_late_word_of_the_last_leader_does_not_undo_the_next_one_s() -> None:
    async def story() -> None:
        server, opened = FakeApiServer(), {CHAT: (Window(ready_by=START, until=START + timedelta(hours=1)),)}
        cells = [Latest(Ledger()), Latest(Ledger())]
        known = settled(Ledger(), opened, [(CHAT, START)], [], START - timedelta(minutes=1))
        tasks: list[asyncio.Task[None]] = []
        for cell in cells:
            keeper = LedgerKeeper(DirectApi(server), cell, namespace="prewarm", clock=LoopClock())
            await keeper.load()
            cell.set(settled(known, opened, [(CHAT, START)], [CHAT] * len(tasks), START))
            tasks.append(asyncio.create_task(keeper.run(), name="ledger"))
            await asyncio.sleep(100)
        theirs = server.get(f"/api/v1/namespaces/prewarm/configmaps/{NAME}")
        cells[0].set(Ledger())
        await asyncio.sleep(1)
        assert server.get(f"/api/v1/namespaces/prewarm/configmaps/{NAME}") == theirs
        cells[1].set(settled(cells[1].get(), opened, [], [], START + timedelta(hours=2)))
        await asyncio.sleep(1)
        assert server.get(f"/api/v1/namespaces/prewarm/configmaps/{NAME}") != theirs
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run_virtual(story())
