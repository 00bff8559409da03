"""What goes so that another model fits: the farthest next use first, never what is needed, and nothing in vain."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from agent.core.assignment import Assignment, EndpointWant, ModelWant, Window
from agent.core.inventory import Inventory, ModelLevel, ModelState
from agent.core.refs import Digest, EndpointKey, parse_model_uri
from agent.plan.decision import NodePlan, Stage
from agent.plan.planning import Limits, plan

NOW = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
GB = 10**9
NEW = Digest("sha256:" + "0" * 64)
HOUR = timedelta(hours=1)


def digest(name: str) -> Digest:
    return Digest("sha256:" + name * 64)


def endpoint(name: str, of: Digest, opens_in: timedelta | None, priority: int = 500) -> EndpointWant:
    windows = () if opens_in is None else (Window(ready_by=NOW + opens_in, until=NOW + opens_in + HOUR),)
    model = ModelWant(name="llm", uri=parse_model_uri(f"s3://models/{name}/"), digest=of, size_bytes=10 * GB)
    key = EndpointKey(namespace="team", name=name)
    return EndpointWant(key=key, models=(model,), windows=windows, priority=priority)


def here(name: str, size: int = 10 * GB, **more: object) -> ModelState:
    state = ModelState(
        digest=digest(name), level=ModelLevel.COMMITTED, done_bytes=size, total_bytes=size, own_bytes=size
    )
    return replace(state, **more)  # type: ignore[arg-type]


def lacking(short: int) -> ModelState:
    return ModelState(
        digest=NEW, total_bytes=10 * GB, short_bytes=short, error="needs 10.0 GB but only 1 B may be used"
    )


def decide(
    short: int, states: list[ModelState], others: list[EndpointWant], *, waiting: bool = False, **more: object
) -> NodePlan:
    wanted = endpoint("new", NEW, None if waiting else timedelta(minutes=20))
    inventory = Inventory(
        models={NEW: lacking(short)} | {s.digest: s for s in states},
        waiting=frozenset({wanted.key} if waiting else ()) | frozenset(more.get("waiting_too", ())),  # type: ignore[call-overload]
    )
    limits = Limits(warm_ahead=timedelta(minutes=30), rate_bytes_per_second=1e9)
    return plan(Assignment(endpoints=(wanted, *others)), inventory, NOW, limits)


def goes(decided: NodePlan) -> list[str]:
    return [step.digest[7] for step in decided.evictions]


def test_unassigned_goes_before_windowless_before_the_latest_window() -> None:
    states = [here(n) for n in "abcd"]
    others = [
        endpoint("soon", digest("a"), 20 * HOUR),
        endpoint("late", digest("b"), 40 * HOUR),
        endpoint("none", digest("c"), None),
    ]
    assert goes(decide(5 * GB, states, others)) == ["d"]
    assert goes(decide(15 * GB, states, others)) == ["d", "c"]
    assert goes(decide(25 * GB, states, others)) == ["d", "c", "b"]
    decided = decide(35 * GB, states, others)
    assert goes(decided) == ["d", "c", "b", "a"]
    assert (
        decided.evictions[-1].reason
        == "not needed before 2026-03-03 03:29 UTC, and 35.0 GB are needed for another model"
    )
    assert decided.endpoints[0].stage is Stage.WARMING
    assert decided.endpoints[0].reason == "room for model llm is being made: 35.0 GB are lacking"


def test_of_two_with_the_same_window_the_lower_priority_goes() -> None:
    others = [endpoint("x", digest("a"), 20 * HOUR, 900), endpoint("y", digest("b"), 20 * HOUR, 100)]
    assert goes(decide(GB, [here("a"), here("b")], others)) == ["b"]


@pytest.mark.parametrize(
    ("state", "other", "why"),
    [
        (here("a", kept="1 pod(s) use it"), None, "1 in use or pinned"),
        (here("a"), endpoint("open", digest("a"), -HOUR / 2), "1 needed now"),
        (here("a"), endpoint("near", digest("a"), HOUR / 4), "1 needed now"),
        (here("a"), endpoint("within", digest("a"), HOUR), "1 due before the window ends"),
        (here("a", busy=True, level=ModelLevel.PARTIAL), None, ""),
        (here("a", own_bytes=0), None, ""),
    ],
    ids=["in use", "open", "near", "within the window", "busy", "shared with others"],
)
def test_what_may_not_go_stays_and_the_new_one_is_refused_with_numbers(
    state: ModelState, other: EndpointWant | None, why: str
) -> None:
    decided = decide(GB, [state], [other] if other else [])
    assert decided.evictions == ()
    assert decided.refusals[NEW] == "1.00 GB are lacking and 0 B may go for it" + (f" ({why})" if why else "")
    told = next(e for e in decided.endpoints if e.want.key.name == "new")
    assert told.stage is Stage.FAILING
    assert told.reason.startswith("model llm: needs 10.0 GB but only 1 B may be used; 1.00 GB are lacking")


def test_nothing_goes_in_vain_where_all_of_it_would_not_do() -> None:
    decided = decide(25 * GB, [here("a"), here("b")], [])
    assert decided.evictions == ()
    assert decided.refusals[NEW] == "25.0 GB are lacking and 20.0 GB may go for it"


def test_no_more_goes_than_is_needed() -> None:
    assert goes(decide(10 * GB, [here("a", GB), here("b", 10 * GB)], [])) == ["b"]


def test_two_waiting_pods_that_do_not_both_fit_never_evict_each_other() -> None:
    first = endpoint("first", digest("a"), None)
    decided = decide(GB, [here("a")], [first], waiting=True, waiting_too={first.key})
    assert decided.evictions == ()
    assert "1 needed now" in decided.refusals[NEW]
    assert decided.needed[digest("a")] == "a pod waits for team.first"
    assert goes(decide(GB, [here("a")], [first], waiting=True)) == ["a"]


def test_a_step_that_is_backed_off_still_has_its_room_made() -> None:
    decided = decide(GB, [here("a")], [])
    assert goes(decided) == ["a"]
    assert [h.want.digest for h in decided.hydrations] == [NEW]
