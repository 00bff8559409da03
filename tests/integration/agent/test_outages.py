"""S3 and containerd away, at the start and later: the agent runs, says what is missing, and goes on when it returns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed import needs
from tests.bed.s3 import S3Server
from tests.contract.images_worlds import why_not_real
from tests.integration.agent.conftest import MakeAgent, Weights
from tests.integration.agent.runtime import IMAGE, Containerd, containerd
from tests.integration.agent.standalone import Standalone, eventually
from tests.integration.models.conftest import contents, environment, noise

TRUST_SECONDS = 30


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    """A server that a test may stop."""
    if reason := needs.why_not("s3"):
        pytest.skip(reason)
    with S3Server(tmp_path / "s3") as running:
        running.put("weights", "llm/a.bin", noise(3_000_000))
        running.put("weights", "other/b.bin", noise(2_000_000, seed=2))
        yield running


@pytest.fixture
def runtime() -> Iterator[Containerd]:
    if reason := why_not_real():
        pytest.skip(reason)
    with containerd() as daemon:
        yield daemon


def test_s3_away_at_the_start_is_named_and_the_agent_goes_on_when_it_returns(
    make_agent: MakeAgent, s3: S3Server
) -> None:
    s3.stop()
    agent = make_agent(environment(s3, s3.url))
    agent.write_plan({"chat": ["s3://weights/llm/"]})
    agent.start()

    status = agent.wait(
        lambda s: s if s.item()["level"] == "absent" and s.item().get("error") else None, 40, "an error"
    )
    assert "S3 does not answer" in status.item()["error"]
    assert status.endpoint()["stage"] == "failing"
    assert "S3 does not answer" in status.endpoint()["reason"]
    assert "S3 does not answer" in agent.log()
    assert not status.claims()
    # S3 plays no part in whether what is claimed is true.
    assert agent.probe("/readyz")[0] == 200

    s3.start()
    agent.wait_ready(seconds=75)
    assert [contents(v / "files") for v in agent.committed()] == [{"a.bin": noise(3_000_000)}]


def test_s3_away_later_takes_no_claim_and_holds_up_only_what_is_not_here(make_agent: MakeAgent, s3: S3Server) -> None:
    agent = make_agent(environment(s3, s3.url))
    agent.write_plan({"chat": ["s3://weights/llm/"]})
    agent.start().wait_ready()
    s3.stop()
    agent.write_plan({"chat": ["s3://weights/llm/"], "other": ["s3://weights/other/"]})

    status = agent.wait(lambda s: s if s.item("other").get("error") else None, 40, "an error")
    assert status.ready("chat")
    assert not status.ready("other")
    assert "S3 does not answer" in status.endpoint("other")["reason"]

    s3.start()
    assert agent.wait_ready("other", seconds=75).ready("chat")


def test_s3_lost_in_the_middle_of_a_download_costs_only_the_parts_in_flight(
    make_agent: MakeAgent, weights: Weights
) -> None:
    files = weights.put("llm", 48_000_000)
    agent = make_agent(weights.environment)
    agent.write_plan({"chat": [weights.uri("llm")]})
    weights.slow_down(4e6)
    agent.start()
    agent.wait(lambda s: s.item().get("bytes", 0) > 10_000_000, 30, "a part of it")
    weights.server.stop()
    try:
        status = agent.wait(lambda s: s if s.endpoint()["stage"] == "failing" else None, 60, "the loss is told")
        assert status.item()["level"] == "partial"
        assert status.item()["bytes"] > 0
        assert not status.claims()
    finally:
        weights.server.start()
    agent.wait_ready(seconds=90)
    assert [contents(v / "files") for v in agent.committed()] == [files]


@pytest.mark.root
def test_containerd_away_at_the_start_is_named_and_its_siblings_go_on(
    make_agent: MakeAgent, weights: Weights, runtime: Containerd
) -> None:
    weights.put("llm", 1_000_000)
    agent = make_agent(weights.environment, containerd=runtime.socket)
    agent.write_plan({"chat": [weights.uri("llm")]}, images=[IMAGE])
    agent.start()

    agent.wait(lambda s: s.item()["level"] == "committed", 30, "the model comes without containerd")
    assert agent.probe("/livez")[0] == 200
    assert "containerd" in agent.log()
    status = agent.status()
    assert status is not None
    assert not status.claims()
    why = wait_until_red(agent)
    assert "images: " in why
    assert "containerd" in why
    failing = agent.wait(lambda s: s if s.endpoint()["stage"] == "failing" else None, 20, "the endpoint says why")
    assert "containerd" in failing.endpoint()["reason"]
    assert "containerd" in failing.item(IMAGE)["error"]
    assert agent.probe("/livez")[0] == 200

    runtime.start()
    agent.wait_ready(seconds=40)
    assert agent.probe("/readyz")[0] == 200


@pytest.mark.root
def test_containerd_away_later_turns_readiness_red_after_thirty_seconds_and_drops_the_claim(
    make_agent: MakeAgent, weights: Weights, runtime: Containerd
) -> None:
    weights.put("llm", 1_000_000)
    runtime.start()
    agent = make_agent(weights.environment, containerd=runtime.socket)
    agent.write_plan({"chat": [weights.uri("llm")]}, images=[IMAGE])
    agent.start().wait_ready()
    runtime.kill()

    assert agent.probe("/readyz")[0] == 200  # what was proved a moment ago still holds
    why = wait_until_red(agent)
    assert "images: last completed a cycle" in why
    assert "containerd" in why
    assert agent.probe("/livez")[0] == 200
    status = agent.wait(lambda s: s if not s.claims() else None, 20, "the claim goes")
    assert "containerd" in status.endpoint()["reason"]
    assert status.item()["level"] == "committed"

    runtime.start()
    agent.wait_ready(seconds=40)
    assert agent.probe("/readyz") == (200, "ok\n")


def wait_until_red(agent: Standalone) -> str:
    """What /readyz says once nothing was proved for too long."""

    def red() -> str:
        code, text = agent.probe("/readyz")
        return text if code == 503 else ""

    return eventually(red, TRUST_SECONDS + 10, "/readyz red")
