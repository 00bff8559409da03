"""An API server that is away or refuses everything: both processes stay up, say so, and end well when told to."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.bed.s3 import free_port
from tests.integration.agent.standalone import PREWARM, eventually
from tests.integration.agent.test_mistakes import NOWHERE, answering, kubeconfig

PROCESSES = {
    "agent": ["--node-name=node-1", "--containerd=none"],
    "planner": [],
}


@pytest.mark.parametrize("command", PROCESSES)
@pytest.mark.parametrize("status", [0, 401, 403, 404, 500])
def test_a_process_stays_up_and_says_what_the_api_server_answers(command: str, status: int, tmp_path: Path) -> None:
    if status:
        with answering(status) as url:
            log = log_of_a_run(command, url, tmp_path, str(status))
    else:
        log = log_of_a_run(command, NOWHERE, tmp_path, "127.0.0.1:9")
    assert "Traceback" not in log
    assert len(log.splitlines()) < 60  # it does not shout


def log_of_a_run(command: str, url: str, directory: Path, said: str) -> str:
    """What a process logs until it has said `said`; it must answer /livez then, and end with 0."""
    file, port = directory / "log", free_port()
    flags = [*PROCESSES[command], f"--kubeconfig={kubeconfig(directory, url)}", f"--http-address=127.0.0.1:{port}"]
    if command == "agent":
        flags += [f"--root={directory}/root", f"--run-dir={directory}/run", f"--pci-devices={directory}"]
    with file.open("wb") as log:
        process = subprocess.Popen([PREWARM, command, *flags], stdout=log, stderr=log)
    try:
        eventually(lambda: said in file.read_text() or process.poll() is not None, 60, f"{said} in the log")
        assert process.poll() is None, file.read_text()[-2000:]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return file.read_text()
