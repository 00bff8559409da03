"""GPUs as the command line and the agent's process show them: stub libraries, everything else real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.bed import nvml
from tests.integration.agent.conftest import MakeAgent
from tests.integration.agent.standalone import PREWARM, Standalone

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")


class Machine:
    """A machine with two stub GPUs."""

    def __init__(self, directory: Path, library: Path) -> None:
        self.control = nvml.Control(directory / "control", gpus=2)
        self.log = directory / "kmsg"
        self.log.touch()
        self.settings = {"pci_devices": nvml.fake_pci(directory, 2), "kernel_log": self.log, "root": directory / "root"}
        self.environment = {**os.environ, **self.control.environment(library)}

    def gpu(self, *arguments: str) -> tuple[int, str]:
        """`prewarm gpu …`: exit code and output."""
        settings = {f"PREWARM_{name.upper()}": str(value) for name, value in self.settings.items()}
        command = [PREWARM, "gpu", *arguments]
        done = subprocess.run(
            command, env=self.environment | settings, capture_output=True, text=True, check=False, timeout=60
        )
        return done.returncode, done.stdout or done.stderr


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.build(tmp_path_factory.mktemp("stubs"))


@pytest.fixture
def machine(tmp_path: Path, library: Path) -> Machine:
    return Machine(tmp_path, library)


def test_a_check_tells_each_gpu_and_ends_with_the_verdict(machine: Machine) -> None:
    assert machine.gpu("check")[0] == 0
    machine.control.recovery(1, 2)
    code, told = machine.gpu("check")
    assert code == 4
    assert told.splitlines()[0].startswith("unhealthy: GPU 1 (GPU-")
    assert "recovery-reboot" in told
    assert "drain and reboot the node" in told


@pytest.mark.parametrize(
    ("function", "numbers", "code", "verdict"),
    [
        ("nvmlDeviceGetRemappedRows", (0, 1, 1, 0), 3, "degraded"),
        ("nvmlDeviceGetComputeMode", (7,), 5, "unknown"),
        ("nvmlDeviceGetPersistenceMode", (0,), 0, "healthy"),
    ],
)
def test_exit_codes_and_json_are_for_scripts(
    machine: Machine, function: str, numbers: tuple[int, ...], code: int, verdict: str
) -> None:
    machine.control.answer(function, *numbers, gpu=0)
    ended, told = machine.gpu("check", "--json")
    found = json.loads(told)
    assert (ended, found["verdict"], found["count"], len(found["gpus"])) == (code, verdict, 2, 2)
    assert found["gpus"][0]["reasons"][0].keys() == {"code", "verdict", "text", "do"}


def test_a_machine_without_gpus_and_one_whose_driver_is_missing(machine: Machine, tmp_path: Path) -> None:
    machine.environment["LD_LIBRARY_PATH"] = ""
    code, told = machine.gpu("check")
    assert code in (4, 5), told  # unknown in the first ten minutes of a boot
    nvml.fake_pci(tmp_path, 0)
    assert machine.gpu("check")[0] == 6


def test_a_check_counts_an_xid_of_this_boot(machine: Machine) -> None:
    machine.log.write_text("4,1,1,-;NVRM: Xid (PCI:0000:10:00): 79, GPU has fallen off the bus.\n")
    code, told = machine.gpu("check", "--json")
    assert (code, json.loads(told)["gpus"][0]["reasons"][0]["code"]) == (4, "xid-fatal")


def test_the_active_test_can_be_asked_for_on_idle_gpus(machine: Machine) -> None:
    machine.control.processes(1, 1)
    code, told = machine.gpu("check", "--test", "--json")
    first, second = (gpu["test"] for gpu in json.loads(told)["gpus"])
    assert (code, first.partition(":")[0], second) == (0, "passed", "skipped: 1 processes use it")


def test_a_gpu_that_is_well_again_proves_it_by_the_active_test(machine: Machine) -> None:
    machine.log.write_text("4,1,1,-;NVRM: Xid (PCI:0000:10:00): 119, Timeout waiting for RPC from GSP!\n")
    assert machine.gpu("check")[0] == 4
    assert machine.gpu("check", "--test")[0] == 0
    machine.control.recovery(0, 1)
    assert machine.gpu("check", "--test")[0] == 4


def until(agent: Standalone, verdict: str, seconds: float) -> float:
    """Wait for a verdict, the agent being alive all the time; returns when it was told (monotonic)."""
    deadline = time.monotonic() + seconds
    while f'prewarm_gpu_verdict{{verdict="{verdict}"}} 1.0' not in agent.probe("/metrics")[1]:
        assert agent.probe("/livez")[0] == 200
        assert time.monotonic() < deadline, agent.log()
        time.sleep(0.1)
    return time.monotonic()


def test_a_driver_that_hangs_is_told_within_fifteen_seconds_and_the_agent_lives(
    machine: Machine, make_agent: MakeAgent
) -> None:
    agent = make_agent(machine.environment, **machine.settings, gpu_poll_seconds="1s")
    agent.write_plan({})
    agent.start()
    until(agent, "healthy", 60)
    code, told = machine.gpu("status", "--json", "--socket", str(agent.socket))
    assert (code, len(json.loads(told)["gpus"])) == (0, 2)
    machine.control.hang("nvmlDeviceGetFieldValues", gpu=1)
    began = time.monotonic()  # the hung call starts within a second
    assert until(agent, "unhealthy", 30) - began < 15
    code, told = machine.gpu("status", "--json", "--socket", str(agent.socket))
    assert (code, json.loads(told)["reasons"][0]["code"]) == (4, "hung")
    machine.control.clear(gpus=2)
    until(agent, "healthy", 60)
