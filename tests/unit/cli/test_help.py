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


def test_a_command_cut_short_by_its_reader_does_not_say_that_it_is_done() -> None:
    ended = _piped("print('x' * 100_000, flush=True)")
    assert ended == 1


def test_progress_that_nobody_reads_stops_no_work() -> None:
    assert _piped("[say_json('progress', text='x' * 100_000) for _ in range(3)]; sys.exit(7)") == 7


def _piped(work: str) -> int:
    """Return how a command that does this ends, when whoever reads its output has gone."""
    code = f"""
import argparse, sys
import agent.cli
from agent.cli.progress import say_json
class Given(argparse.Namespace):
    def run(self, options):
        {work}
agent.cli._parser = lambda _: argparse.Namespace(parse_args=lambda _: Given(command='x'))
sys.exit(agent.cli.main(['x']))
"""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as out:
        return subprocess.run([sys.executable, "-c", code], stdout=out, check=False).returncode
