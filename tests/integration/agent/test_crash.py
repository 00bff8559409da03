"""`kill -9` of the agent while it hydrates: it goes on from what is on disk, and claims nothing before it is committed."""

from __future__ import annotations

import pytest

from tests.integration.agent.conftest import Weights
from tests.integration.agent.standalone import Standalone, Watcher, range_bytes
from tests.integration.models.conftest import contents

MODEL_BYTES = 96_000_000
CONNECTIONS = 4
PART_BYTES = 8 << 20  # agent.models.engine: at most this


@pytest.mark.parametrize("shares", [(0.02,), (0.45,), (0.9,), (0.15, 0.4, 0.7)], ids=str)
def test_killed_while_it_hydrates_it_goes_on_from_what_is_on_disk(
    agent: Standalone, weights: Weights, shares: tuple[float, ...]
) -> None:
    files = weights.put("llm", MODEL_BYTES)
    total = sum(map(len, files.values()))
    agent.write_plan({"chat": [f"llm={weights.uri('llm')}"]})
    weights.slow_down(3e6)  # the last tenth takes most of a second: it is seen, and the kill comes in time
    agent.start()

    with Watcher(agent, lambda directory: contents(directory) == files) as watcher:
        for share in shares:
            agent.wait(lambda s, at=share: s.item().get("bytes", 0) >= at * total, 60, f"{share:.0%} of it")  # type: ignore[misc]
            agent.end()
            assert agent.committed() == []
            agent.start()
            # What the journal says is told at once, before S3 is asked.
            agent.wait(lambda s: s.item()["level"] in ("partial", "committed"), 30, "it knows what it has")
        status = agent.wait_ready()

    assert status.item()["level"] == "committed"
    assert [contents(version / "files") for version in agent.committed()] == [files]
    assert watcher.false_claims == []
    assert watcher.asked > 3
    again = range_bytes(weights.proxy.ranges) - total
    assert 0 <= again <= len(shares) * CONNECTIONS * PART_BYTES


def test_killed_after_the_commit_it_claims_again_without_a_byte_from_s3(agent: Standalone, weights: Weights) -> None:
    files = weights.put("llm", 4_000_000)
    agent.write_plan({"chat": [f"llm={weights.uri('llm')}"]})
    agent.start().wait_ready()
    before = len(weights.proxy.ranges)
    agent.end()

    agent.start().wait_ready()

    assert len(weights.proxy.ranges) == before
    assert [contents(version / "files") for version in agent.committed()] == [files]
