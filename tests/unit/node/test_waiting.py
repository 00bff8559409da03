"""What a waiting pod may ask, and what holds for it."""

from __future__ import annotations

from typing import Any

import pytest

from agent.core.errors import Invalid
from agent.core.inventory import ModelLevel, ModelState
from agent.core.latest import Latest
from agent.core.refs import EndpointKey
from agent.node.waiting import Full, WaitingLine, WaitOrder, outlook, parse_order
from tests.unit.node.making import CHAT, DIGEST, assigned, endpoint, warm

GOOD: dict[str, Any] = {
    "namespace": "team",
    "endpoint": "chat",
    "pod_name": "chat-1",
    "pod_uid": "6b1f0c9e-0000-4000-8000-000000000000",
    "models": (("llama", "s3://weights/llama/"),),
    "timeout": 60.0,
}


def order(**other: Any) -> WaitOrder:
    return parse_order(**(GOOD | other))


def test_a_good_order_is_read() -> None:
    found = order()
    assert found.endpoint == CHAT
    assert [(m.name, str(m.uri)) for m in found.models] == [("llama", "s3://weights/llama/")]


@pytest.mark.parametrize(
    "bad",
    [
        {"namespace": "../x"},
        {"namespace": "a.b"},
        {"namespace": "x" * 64},
        {"endpoint": "a/b"},
        {"endpoint": ""},
        {"pod_name": "a\nb"},
        {"pod_uid": "x" * 65},
        {"pod_uid": "../../etc"},
        {"models": ()},
        {"models": (("m", "s3://weights/llama/"),) * 2},
        {"models": tuple((f"m{n}", "s3://weights/llama/") for n in range(51))},
        {"models": (("../m", "s3://weights/llama/"),)},
        {"models": (("m", "file:///etc/passwd"),)},
        {"models": (("m", "s3://weights/../x"),)},
        {"timeout": -1.0},
        {"timeout": float("nan")},
        {"timeout": 1e9},
    ],
)
def test_a_bad_order_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        order(**bad)


def test_an_order_is_served_when_every_model_of_it_is_committed() -> None:
    found = outlook(order(), assigned(), warm())
    assert found.committed
    assert found.models[0].digest == DIGEST


def test_it_tells_progress_and_errors_until_then() -> None:
    loading = ModelState(
        digest=DIGEST, level=ModelLevel.PARTIAL, done_bytes=500, total_bytes=1000, rate_bytes_per_second=50, busy=True
    )
    failed = ModelState(digest=DIGEST, error="access denied")
    assert (
        outlook(order(), assigned(), warm(models={DIGEST: loading})).message
        == "model llama: 500 B of 1.00 kB at 50 B/s"
    )
    assert "access denied" in outlook(order(), assigned(), warm(models={DIGEST: failed})).message
    assert not outlook(order(), assigned(), warm(models={})).committed


def test_what_is_not_assigned_here_is_refused_with_the_reason() -> None:
    assert "no assignment" in outlook(order(), None, warm()).refusal
    other = assigned(endpoint(EndpointKey(namespace="team", name="other")))
    assert outlook(order(), other, warm()).refusal == "endpoint team.chat is not assigned to this node"
    newer = order(models=(("llama", "s3://weights/llama-2/"),))
    assert "s3://weights/llama-2/" in outlook(newer, assigned(), warm()).refusal


def test_an_endpoint_is_first_in_line_as_long_as_one_of_its_pods_waits() -> None:
    waiting: Latest[frozenset[EndpointKey]] = Latest(frozenset())
    line = WaitingLine(waiting)
    with line.standing(order()):
        with line.standing(order()):
            assert waiting.get() == {CHAT}
        assert waiting.get() == {CHAT}
    assert waiting.get() == frozenset()


def test_the_line_is_bounded() -> None:
    line = WaitingLine(Latest(frozenset()), limit=1)
    with line.standing(order()), pytest.raises(Full), line.standing(order()):
        pass
    with line.standing(order()):
        pass


def test_one_pod_cannot_take_all_places() -> None:
    line = WaitingLine(Latest(frozenset()), limit=3, of_pod=2)
    with line.standing(order()), line.standing(order()):
        with pytest.raises(Full, match="this pod waits 2 times already"), line.standing(order()):
            pass
        with line.standing(order(pod_uid="another")):
            pass
    with line.standing(order()):
        pass


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    loading = ModelState(digest=DIGEST, level=ModelLevel.PARTIAL)
    found = outlook(order(), assigned(), warm(models={DIGEST: loading}), {DIGEST: "1 GB is lacking"})
    assert found.refusal == "there is no room for model llama: 1 GB is lacking"
    assert outlook(order(), assigned(), warm(), {DIGEST: "1 GB is lacking"}).refusal == ""
