"""What `prewarm history` says before it asks anybody."""

from __future__ import annotations

import pytest

from agent.cli import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chat"], "endpoint name ''"),
        (["Team/chat"], "'Team' is not a Kubernetes namespace"),
        (["team-a/chat", "--timezone", "Mars/Base"], "write it like Europe/Paris"),
        (["team-a/chat", "--days", "0"], "a number from 1 to 42"),
        (["team-a/chat", "--days", "43"], "a number from 1 to 42"),
    ],
)
def test_a_bad_argument_is_told_as_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["history", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
