"""`memory: true` in a plan, on a real agent: weights come into the page cache, are told as resident, and are let go again."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.models.memory_group import MemoryGroup, group_name
from agent.models.resident import HeldFiles, measure
from tests.integration.agent.conftest import MakeAgent, Weights
from tests.integration.agent.standalone import Standalone, Status

pytestmark = pytest.mark.root
MODEL_BYTES = 48_000_000


@pytest.fixture
def warm(make_agent: MakeAgent, weights: Weights) -> Iterator[Standalone]:
    """An agent that may keep 100 MB of weights in memory; its cgroup goes when it has ended."""
    if os.geteuid() != 0 or not Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists():
        pytest.skip("needs root and memory cgroups of version 1")
    agent = make_agent(weights.environment, memory_budget="100MB", high_watermark="0.99")
    yield agent
    if not agent.ended:
        agent.end()
    group = MemoryGroup(Path("/sys/fs/cgroup"), group_name("", agent.root))
    for digest in group.held():
        group.remove(digest)
    with contextlib.suppress(OSError):
        group.path.rmdir()


def ask_memory(agent: Standalone, *, on: bool) -> None:
    plan = json.loads(agent.plan.read_text())
    for endpoint in plan["endpoints"]:
        endpoint["memory"] = on
    agent.plan.write_text(json.dumps(plan))


def at_level(agent: Standalone, level: str, part: str = "llm") -> Status:
    return agent.wait(lambda s: s if s.item(part)["level"] == level else None, 60, f"{part} is {level}")


def test_weights_come_into_memory_are_told_and_are_let_go(warm: Standalone, weights: Weights) -> None:
    weights.put("llm", MODEL_BYTES)
    warm.write_plan({"chat": [f"llm={weights.uri('llm')}"]})
    ask_memory(warm, on=True)
    warm.start()
    status = at_level(warm, "resident")
    assert status.ready()
    assert status.item()["residentBytes"] >= 0.95 * MODEL_BYTES
    assert status.told["memory"]["basis"] == "the setting memory_budget is 100 MB"
    files = files_of(warm)
    assert measure(files)[0] >= 0.95 * MODEL_BYTES
    metrics = warm.probe("/metrics")[1]
    value = next(line for line in metrics.splitlines() if line.startswith("prewarm_endpoint_resident_bytes{"))
    assert float(value.split()[-1]) >= 0.95 * MODEL_BYTES

    warm.end()  # killed: what it holds is the kernel's to keep, and the next agent's to find
    assert measure(files)[0] >= 0.95 * MODEL_BYTES
    warm.start()
    at_level(warm, "resident")

    ask_memory(warm, on=False)
    at_level(warm, "committed")
    warm.wait(lambda s: s.told["memory"] is None or None, 20, "nothing is held")
    assert measure(files)[0] == 0
    assert warm.status() is not None
    assert warm.wait_ready(seconds=5).ready()  # memory is no part of the claim


def test_what_does_not_fit_is_told_with_numbers_and_stays_ready(warm: Standalone, weights: Weights) -> None:
    weights.put("huge", 96_000_000)
    warm.write_plan({"chat": [f"huge={weights.uri('huge')}"]})
    ask_memory(warm, on=True)
    warm.start()
    status = warm.wait(
        lambda s: s if "in memory: needs" in s.item("huge").get("reason", "") else None, 60, "it is refused"
    )
    assert status.item("huge")["level"] == "committed"
    assert "needs 113 MB, and 67.1 MB of 67.1 MB are left" in status.item("huge")["reason"]
    assert warm.wait_ready().ready()


def files_of(agent: Standalone) -> HeldFiles:
    (version,) = agent.committed()
    paths = [p for p in (version / "files").rglob("*") if p.is_file()]
    return HeldFiles(
        root=version / "files",
        names=tuple(p.name for p in paths),
        inodes=frozenset(p.stat().st_ino for p in paths),
        size_bytes=sum(p.stat().st_size for p in paths),
    )
