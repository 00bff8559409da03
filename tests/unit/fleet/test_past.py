"""Reading weeks at once: who is refused costs no other an answer, and a Prometheus that falls silent is not asked for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from agent.core.errors import Permanent, PrewarmError, Transient
from agent.core.refs import EndpointKey
from agent.demand.history import Track
from agent.demand.history_queries import HEARTBEAT
from agent.fleet.past import past_activity, past_levels
from agent.fleet.prometheus import Prometheus


class Failing(Prometheus):
    """Was at work in slots 10 to 19; answers 3 in slots 12 and 14, and fails where the query is bad."""

    def __init__(self, error: type[PrewarmError]) -> None:
        super().__init__("http://127.0.0.1:9")
        self._error = error

    async def levels(self, query: str, first: int, count: int) -> Mapping[int, float]:
        if query == "bad":
            raise self._error("no answer")
        return dict.fromkeys(range(10, 20) if query == HEARTBEAT else (12, 14), 3.0)


def queries(bad: int) -> dict[EndpointKey, str]:
    names = {f"e{n}": "bad" for n in range(bad)} | {"good": "good"}
    return {EndpointKey(namespace="shop", name=name): query for name, query in names.items()}


GOOD = EndpointKey(namespace="shop", name="good")


@pytest.mark.parametrize(("error", "bad"), [(Permanent, 20), (Transient, 8)])
async def test_those_refused_are_named_and_the_others_told(error: type[PrewarmError], bad: int) -> None:
    past = await past_levels(Failing(error), queries(bad), 10, 20)
    assert past.found == {GOOD: {slot: 3.0 * (slot in (12, 14)) for slot in range(12, 20)}}
    assert (len(past.refused), set(past.refused.values())) == (bad, {"no answer"})
    known = (await past_activity(Failing(error), queries(bad), 10, 20)).found[GOOD]
    assert isinstance(known, Track)
    assert [known.state(slot) for slot in range(11, 21)] == [None, True, False, True, *[False] * 5, None]


async def test_a_question_refused_among_many_unanswered_raises_nothing_of_its_own() -> None:
    class Mixed(Failing):
        async def levels(self, query: str, first: int, count: int) -> Mapping[int, float]:
            await asyncio.sleep(0.01)  # so that all answers come in one turn
            if query == "worse":
                raise Permanent("a bad query")
            return await super().levels(query, first, count)

    many = {EndpointKey(namespace="shop", name=f"e{n}"): ("bad", "worse")[n % 2] for n in range(40)}
    with pytest.raises(Transient, match="no answer"):
        await past_levels(Mixed(Transient), many, 10, 20)


async def test_one_that_falls_silent_is_away() -> None:
    with pytest.raises(Transient, match="no answer"):
        await past_levels(Failing(Transient), queries(40), 10, 20)
