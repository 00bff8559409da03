from __future__ import annotations

import os
import subprocess
import sys

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


def test_a_command_gives_the_blas_of_numpy_one_thread() -> None:
    code = "import os\nfrom agent.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nimport numpy\nprint(len(os.listdir('/proc/self/task')))"
    alone = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=alone, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1"
