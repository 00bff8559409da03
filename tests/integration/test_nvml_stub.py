"""The NVML stub, as unmodified pynvml sees it from a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import nvml

DEADLINE_SECONDS = 30

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")

Probe = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def control(tmp_path: Path) -> nvml.Control:
    return nvml.Control(tmp_path / "nvml", gpus=2)


@pytest.fixture
def probe(library: Path, control: nvml.Control) -> Iterator[Probe]:
    """Starts Python code that has pynvml initialised as `n`, GPU 0 as `gpu`, and `say(value)` to answer in JSON lines."""
    children: list[subprocess.Popen[str]] = []
    prelude = """
        import json, pynvml as n
        def say(value): print(json.dumps(value), flush=True)
        def code(fn, *args):
            try: fn(*args)
            except n.NVMLError as error: return error.value
            return 0
        n.nvmlInit()
        gpu = n.nvmlDeviceGetHandleByIndex(0)
    """

    def start(code: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
            env={**os.environ, **control.environment(library)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate(timeout=DEADLINE_SECONDS)


def answer(child: subprocess.Popen[str]) -> Any:
    """The only JSON value that a finished child has printed."""
    out, _ = child.communicate(timeout=DEADLINE_SECONDS)
    assert child.returncode == 0
    return json.loads(out)


def heard(child: subprocess.Popen[str]) -> Any:
    assert child.stdout is not None
    return json.loads(child.stdout.readline())


def tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go on\n")
    child.stdin.flush()


def test_library_loads_where_glibc_is_older(library: Path) -> None:
    symbols = subprocess.run(["objdump", "-T", str(library)], capture_output=True, text=True, check=True).stdout
    versions = {tuple(map(int, text.split("."))) for text in re.findall(r"GLIBC_([\d.]+)", symbols)}
    assert (2, 2, 5) in versions
    assert max(versions) <= (2, 28)


def test_each_gpu_has_its_own_handle_uuid_and_bus_address(probe: Probe, control: nvml.Control) -> None:
    control.gpus(3)
    child = probe("""
        handles = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]
        uuids = [n.nvmlDeviceGetUUID(h) for h in handles]
        say({
            "uuids": len(set(uuids)),
            "found": n.nvmlDeviceGetMinorNumber(n.nvmlDeviceGetHandleByUUID(uuids[2])),
            "pci": [n.nvmlDeviceGetPciInfo(h).busId for h in handles],
            "driver": n.nvmlSystemGetDriverVersion(),
            "memory": n.nvmlDeviceGetMemoryInfo(gpu, version=n.nvmlMemory_v2).reserved,
            "beyond": code(n.nvmlDeviceGetHandleByIndex, 3),
        })
    """)
    assert answer(child) == {
        "uuids": 3,
        "found": 2,
        "pci": ["00000000:10:00.0", "00000000:11:00.0", "00000000:12:00.0"],
        "driver": "580.95.05",
        "memory": 512 << 20,
        "beyond": 2,
    }


def test_fake_pci_bus_shows_the_same_addresses_bound_to_nvidia(tmp_path: Path) -> None:
    nvml.fake_pci(tmp_path, 5)
    devices = nvml.fake_pci(tmp_path, 2)
    assert sorted(device.name for device in devices.iterdir()) == ["0000:10:00.0", "0000:11:00.0"]
    for device in devices.iterdir():
        assert (device / "vendor").read_text() == "0x10de\n"
        assert (device / "driver").resolve().name == "nvidia"


def test_recovery_action_is_none_until_set_and_other_fields_are_not_supported(
    probe: Probe, control: nvml.Control
) -> None:
    control.field(0, 7, 12)
    child = probe("""
        def fields(): return [(v.nvmlReturn, v.value.ullVal) for v in n.nvmlDeviceGetFieldValues(gpu, [230, 99, 7])]
        say(fields())
        input()
        say(fields())
    """)
    assert heard(child) == [[0, 0], [3, 0], [0, 12]]
    control.recovery(0, 2)
    control.field(0, 7, 0, ret=999)
    tell(child)
    assert heard(child) == [[0, 2], [3, 0], [999, 0]]


def test_remapped_rows_and_ecc_errors_are_those_written(probe: Probe, control: nvml.Control) -> None:
    control.remap(0, unc=3, pending=1)
    control.ecc(0, volatile=7, aggregate=9)
    child = probe("""
        ecc = [v.value.ullVal for v in n.nvmlDeviceGetFieldValues(gpu, [4, 6])]
        say([n.nvmlDeviceGetRemappedRows(gpu), ecc])
    """)
    assert answer(child) == [[0, 3, 1, 0], [7, 9]]


def test_an_error_code_reaches_the_caller_and_is_gone_when_restored(probe: Probe, control: nvml.Control) -> None:
    child = probe("""
        say(code(n.nvmlDeviceGetCount)); input()
        say(code(n.nvmlDeviceGetCount)); input()
        say(code(n.nvmlDeviceGetCount))
    """)
    assert heard(child) == 0
    control.set("nvmlDeviceGetCount_v2", err=15)
    tell(child)
    assert heard(child) == 15
    control.set("nvmlDeviceGetCount_v2", err=0)
    tell(child)
    assert heard(child) == 0


def test_a_lost_gpu_fails_alone(probe: Probe, control: nvml.Control) -> None:
    control.lost(1)
    child = probe(
        "say([code(n.nvmlDeviceGetUUID, gpu), code(n.nvmlDeviceGetHandleByIndex, 1), n.nvmlDeviceGetCount()])"
    )
    assert answer(child) == [0, 15, 2]


def test_without_a_control_file_the_driver_is_not_loaded(library: Path) -> None:
    code = "import pynvml\ntry: pynvml.nvmlInit()\nexcept pynvml.NVMLError as error: print(error.value)"
    env = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
    env.pop("PREWARM_NVML_STUB", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "9"


def test_an_xid_reaches_a_waiting_set_once_and_only_for_its_own_gpu(probe: Probe, control: nvml.Control) -> None:
    control.xid(0, 13)  # before the registration: never seen
    child = probe("""
        events = n.nvmlEventSetCreate()
        n.nvmlDeviceRegisterEvents(gpu, n.nvmlEventTypeXidCriticalError, events)
        say("registered")
        event = n.nvmlEventSetWait_v2(events, 20_000)
        index = n.nvmlDeviceGetIndex(event.device)
        say([index, event.eventType, event.eventData, code(n.nvmlEventSetWait_v2, events, 50)])
    """)
    assert heard(child) == "registered"
    control.xid(1, 31)
    control.xid(0, 79)
    assert heard(child) == [0, 8, 79, 10]


def test_each_event_set_gets_its_own_copy(probe: Probe, control: nvml.Control) -> None:
    child = probe("""
        sets = [n.nvmlEventSetCreate() for _ in range(2)]
        for events in sets: n.nvmlDeviceRegisterEvents(gpu, 0x8008, events)
        say("registered")
        input()
        say([[n.nvmlEventSetWait_v2(events, 5000).eventData for _ in range(2)] for events in sets])
    """)
    assert heard(child) == "registered"
    control.xid(0, 48)
    control.event(0, 0x8000, 2)
    tell(child)
    assert heard(child) == [[48, 2], [48, 2]]


def test_an_event_type_that_is_not_offered_cannot_be_registered(probe: Probe, control: nvml.Control) -> None:
    control.event_types(0, 0x8)
    child = probe("""
        types = n.nvmlDeviceGetSupportedEventTypes(gpu)
        say([types, code(n.nvmlDeviceRegisterEvents, gpu, 0x8000, n.nvmlEventSetCreate())])
    """)
    assert answer(child) == [8, 3]


def test_a_hanging_call_returns_when_the_line_goes(probe: Probe, control: nvml.Control) -> None:
    control.hang("nvmlDeviceGetUUID", gpu=0)
    child = probe('say("calling"); n.nvmlDeviceGetUUID(gpu); say("returned")')
    assert heard(child) == "calling"
    assert child.poll() is None
    control.clear()
    assert heard(child) == "returned"


def test_a_hanging_child_can_be_killed_from_outside(probe: Probe, control: nvml.Control) -> None:
    control.hang("nvmlDeviceGetCount_v2")
    child = probe('say("calling"); n.nvmlDeviceGetCount()')
    assert heard(child) == "calling"
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(timeout=0.3)
    child.kill()
    assert child.wait(timeout=DEADLINE_SECONDS) == -signal.SIGKILL


def test_a_crashing_call_aborts_the_process(probe: Probe, control: nvml.Control) -> None:
    control.crash("nvmlDeviceGetRemappedRows")
    child = probe("n.nvmlDeviceGetRemappedRows(gpu)")
    assert child.wait(timeout=DEADLINE_SECONDS) == -signal.SIGABRT


def test_waiting_for_events_costs_no_cpu(probe: Probe, control: nvml.Control) -> None:
    child = probe("""
        import time
        events = n.nvmlEventSetCreate()
        n.nvmlDeviceRegisterEvents(gpu, 8, events)
        before = time.process_time()
        say([code(n.nvmlEventSetWait_v2, events, 1500), time.process_time() - before])
    """)
    result, cpu_seconds = answer(child)
    assert result == 10
    assert cpu_seconds < 0.1  # of 1.5 that it waited
