"""`prewarm models` beside a running agent: it is asked, refuses what is needed, and takes its time to remove."""

from __future__ import annotations

import json

import pytest

from agent.cli import main
from tests.integration.agent.conftest import MakeAgent, Weights


def test_an_agent_removes_what_is_free_and_keeps_what_is_needed_or_pinned(
    make_agent: MakeAgent, weights: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = make_agent(weights.environment, high_watermark="0.99")

    def call(act: str, *words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["models", act, *words, "--root", str(agent.root), "--run-dir", str(agent.run_dir)])
        return code, *capsys.readouterr()

    for name in ("llm", "old"):
        weights.put(name, 1_000_000)
    agent.write_plan({"chat": [f"llm={weights.uri('llm')}"], "past": [f"old={weights.uri('old')}"]})
    agent.start()
    agent.wait_ready("chat")
    agent.wait_ready("past")

    code, out, _ = call("ls", "--json")
    told = {e["uri"]: e for e in map(json.loads, out.splitlines())}
    assert {u: (e["level"], e["assigned"]) for u, e in told.items()} == {
        weights.uri("llm"): ("committed", True),
        weights.uri("old"): ("committed", True),
    }
    assert call("verify", "-q")[0] == 0
    code, _, err = call("rm", weights.uri("old"))
    assert (code, "needed now: a window of team.past" in err) == (1, True)

    agent.write_plan({"chat": [f"llm={weights.uri('llm')}"]})
    agent.wait(lambda s: s.endpoint("past")["stage"] == "unassigned", 20, "it is not asked for any more")
    assert call("pin", weights.uri("old"))[0] == 0
    code, _, err = call("rm", weights.uri("old"))
    assert (code, "it is pinned" in err) == (1, True)
    assert call("unpin", weights.uri("old"))[0] == 0
    assert len(agent.committed()) == 2

    code, out, err = call("rm", told[weights.uri("old")]["digest"][:20])
    assert (code, "asking the agent" in err) == (0, True)
    assert "removed" in out
    assert [weights.uri("llm") in (v / "manifest.json").read_text() for v in agent.committed()] == [True]
    assert agent.wait_ready("chat").ready("chat")
