from __future__ import annotations

import pytest

from agent.cli import COMMANDS, main


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_no_other(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert told.startswith(f"usage: prewarm {command} ")
    others = [c for c in ("agent", "planner") if c != command]
    assert not any(f"`prewarm {other}`" in told for other in others)
