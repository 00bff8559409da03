"""Signals, two agents on one root, and plan files: at the start and edited later."""

from __future__ import annotations

import signal

import pytest

from tests.integration.agent.conftest import MakeAgent, Weights
from tests.integration.agent.standalone import Standalone, eventually, range_bytes
from tests.integration.models.conftest import contents

END_SECONDS = 15  # the goodbye of a plan file's agent says nothing to nobody


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_told_to_stop_while_it_hydrates_it_ends_well_and_goes_on_later(
    agent: Standalone, weights: Weights, number: signal.Signals
) -> None:
    files = weights.put("llm", 48_000_000)
    total = sum(map(len, files.values()))
    agent.write_plan({"chat": [weights.uri("llm")]})
    weights.slow_down(4e6)
    agent.start()
    agent.wait(lambda s: s.item().get("bytes", 0) > total // 3, 30, "a third of it")

    assert agent.end(number, seconds=END_SECONDS) == 0
    assert agent.committed() == []
    assert "Traceback" not in agent.log()
    assert agent.probe("/livez")[0] == 0  # the port is free again

    agent.start().wait_ready()
    assert [contents(version / "files") for version in agent.committed()] == [files]
    assert range_bytes(weights.proxy.ranges) - total <= 4 * (8 << 20)


def test_told_to_stop_before_it_has_anything_to_do_it_ends_well(agent: Standalone) -> None:
    agent.write_plan({})
    agent.start()
    assert agent.end(signal.SIGTERM, seconds=END_SECONDS) == 0
    assert "Traceback" not in agent.log()


def test_a_second_agent_on_the_same_root_waits_and_takes_over_without_fetching_again(
    make_agent: MakeAgent, weights: Weights
) -> None:
    weights.put("llm", 2_000_000)
    first = make_agent(weights.environment)
    first.write_plan({"chat": [weights.uri("llm")]})
    first.start().wait_ready()
    fetched = len(weights.proxy.ranges)

    second = make_agent(weights.environment, root=first.root)
    second.write_plan({"chat": [weights.uri("llm")]})
    second.start()
    eventually(lambda: "another agent has" in second.probe("/readyz")[1], 30, "the second says what it waits for")
    status = second.wait(lambda s: s, 30, "the second answers")
    assert not status.claims()
    first.wait_ready(seconds=5)

    assert first.end(signal.SIGTERM, seconds=END_SECONDS) == 0
    second.wait_ready()
    assert second.probe("/readyz") == (200, "ok\n")
    assert len(weights.proxy.ranges) == fetched


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file"),
        ("endpoints: [", "cannot read the plan"),
        ("- a\n", "must be a mapping"),
        ("endpoints: 5\n", "spec.endpoints"),
        ("endpoints: [{namespace: team}]\n", "name"),
        ("endpoints: [{namespace: team, name: chat, models: ['http://x/y']}]\n", "http://x/y"),
        ("endpoints: [{namespace: team, name: chat, models: ['s3://b/../x']}]\n", "s3://b/../x"),
        ("endpoints: [{namespace: team, name: chat, windows: [{readyBy: soon}]}]\n", "soon"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_plan_at_the_start_ends_the_agent_with_one_sentence(
    agent: Standalone, content: str | None, told: str
) -> None:
    if content is not None:
        agent.plan.write_text(content)
    agent.start()
    eventually(lambda: agent.ended, 30, "the agent ends")

    assert agent.process is not None
    assert agent.process.returncode == 1
    assert "Traceback" not in agent.log()
    problems = [line for line in agent.log().splitlines() if "cannot go on" in line]
    assert len(problems) == 1
    assert told in problems[0]


def test_a_bad_edit_later_leaves_the_old_plan_standing(agent: Standalone, weights: Weights) -> None:
    weights.put("llm", 1_000_000)
    agent.write_plan({"chat": [weights.uri("llm")]})
    agent.start().wait_ready()

    agent.plan.write_text("endpoints: [{namespace: team, name: chat, models: ['nonsense']}]\n")
    eventually(lambda: "the old plan stands" in agent.log(), 30, "the edit is refused")
    assert "nonsense" in agent.log()
    status = agent.wait_ready(seconds=5)

    agent.plan.unlink()
    eventually(lambda: agent.log().count("the old plan stands") == 2, 30, "its absence is told")
    assert agent.wait_ready(seconds=5).endpoint()["stage"] == status.endpoint()["stage"]

    agent.write_plan({"other": [weights.uri("llm")]})
    assert agent.wait_ready("other").endpoint("chat")["stage"] == "unassigned"
