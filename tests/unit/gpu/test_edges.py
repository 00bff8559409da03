"""Foreign data: the children's lines, the PCI bus, the kernel log, files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.clock import SystemClock
from agent.gpu.health import Fault
from agent.gpu.kept import KeptFaults
from agent.gpu.kernel_log import _RECORD, KernelLog, parse_record
from agent.gpu.libraries import adopt_devices
from agent.gpu.observation import Deaf, Event, Garbled, LogEvent, PciGpus, Started, parse_message, pci_address
from agent.gpu.pci import PciBus
from agent.gpu.proofs import Proofs
from agent.gpu.reasons import Code
from tests.bed.nvml import fake_pci


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_messages_are_parsed() -> None:
    assert parse_message(line(kind="started", init=0, watching=True, library="/x")) == Started(
        init=0, watching=True, library="/x"
    )
    assert parse_message(line(kind="event", uuid="GPU\n1", type=8, data=79)) == Event(uuid="GPU 1", type=8, data=79)
    assert parse_message(line(kind="deaf", code=15)) == Deaf(code=15)


@given(
    st.binary(max_size=80)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_anything_else_is_garbled_and_nothing_worse(junk: bytes) -> None:
    with pytest.raises(Garbled):
        parse_message(junk)


def test_the_bus_shows_gpus_bound_to_the_driver(tmp_path: Path) -> None:
    bus = PciBus(fake_pci(tmp_path, 2))
    assert bus.gpus() == PciGpus(
        present=("0000:10:00.0", "0000:11:00.0"), bound=("0000:10:00.0", "0000:11:00.0"), driver="580.95.05"
    )
    fake_pci(tmp_path, 1)
    assert bus.gpus().bound == ("0000:10:00.0",)
    fake_pci(tmp_path, 3)
    assert len(bus.gpus().bound) == 3


def test_a_gpu_without_driver_is_present_and_one_of_a_guest_is_not(tmp_path: Path) -> None:
    devices = fake_pci(tmp_path, 3)
    (devices / "0000:10:00.0" / "driver").unlink()
    guest = tmp_path / "drivers" / "vfio-pci"
    guest.mkdir()
    (devices / "0000:11:00.0" / "driver").unlink()
    (devices / "0000:11:00.0" / "driver").symlink_to(guest)
    assert PciBus(devices).gpus() == PciGpus(
        present=("0000:10:00.0", "0000:12:00.0"), bound=("0000:12:00.0",), guests=1, driver="580.95.05"
    )


@pytest.mark.parametrize(
    ("attribute", "value"), [("vendor", "0x8086\n"), ("class", "0x040300\n"), ("class", "0x068000\n")]
)
def test_other_devices_are_no_gpus(tmp_path: Path, attribute: str, value: str) -> None:
    devices = fake_pci(tmp_path, 1)
    (devices / "0000:10:00.0" / attribute).write_text(value)
    assert PciBus(devices).gpus() == PciGpus()


def test_no_bus_shows_no_gpu_and_one_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    assert PciBus(tmp_path / "none").gpus() == PciGpus()
    (tmp_path / "file").touch()
    assert PciBus(tmp_path / "file").gpus() == PciGpus(readable=False)


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (
            "4,812,99999,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            LogEvent(pci="0000:3b:00.0", xid=79, seq=812),
        ),
        (
            "NVRM: Xid (PCI:0000:CB:00): 13, pid=1, Graphics SM Warp Exception",
            LogEvent(pci="0000:cb:00.0", xid=13, seq=5),
        ),
        (
            "3,7,1,-;NVRM: Xid (PCI:0008:01:00): 145, NVLINK: RLW_REMAP Nonfatal XC0 i0 Link 00",
            LogEvent(pci="0008:01:00.0", xid=145, nonfatal=True, seq=7),
        ),
        ("3,7,1,-;NVRM: Xid (PCI:0000:3b:00 GPU-I:05): 95, pid=7", LogEvent(pci="0000:3b:00.0", xid=95, seq=7)),
        ("3,7,1,-;NVRM: Xid (PCI:0000:3b:00 GPU-I:05 GPU-CI:00): 48, x", LogEvent(pci="0000:3b:00.0", xid=48, seq=7)),
        ("3,7,1,-;NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.", LogEvent(pci="0000:3b:00.0", seq=7)),
        ("3,7,1,-;NVRM: The NVIDIA GPU has fallen off the bus and is not responding.", LogEvent(pci="", seq=7)),
        ("3,7,1,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module", None),
        ("6,7,1,-;usb 1-1: new device", None),
        ("NVRM: Xid (PCI:nonsense): many", None),
    ],
)
def test_lines_of_the_kernel_log(record: str, found: LogEvent | None) -> None:
    assert parse_record(record, 5) == found


@given(st.text(max_size=200))
def test_no_line_of_the_kernel_log_is_too_strange(text: str) -> None:
    parse_record(text, 0)
    parse_record(f"NVRM: Xid (PCI:{text}): 79", 0)


@pytest.mark.parametrize(
    ("text", "address"),
    [("00000000:3B:00.0", "0000:3b:00.0"), ("0000:3b:00", "0000:3b:00.0"), ("", ""), ("nonsense", "")],
)
def test_addresses_are_spelled_as_in_sysfs(text: str, address: str) -> None:
    assert pci_address(text) == address


async def test_a_ring_that_runs_while_it_is_read_loses_no_event(tmp_path: Path) -> None:
    heard: list[LogEvent] = []
    path = tmp_path / "kmsg"
    path.write_text("6,1,1,-;boot\n4,2,1,-;NVRM: Xid (PCI:0000:3b:00): 31, x\n SUBSYSTEM=pci\n")
    log = KernelLog(path, heard.append, clock=SystemClock())
    await log.open()
    assert (log.readable, [e.xid for e in heard], log.seq) == (True, [31], 2)
    with path.open("a") as file:
        file.write("4,9,1,-;NVRM: Xid (PCI:0000:3b:00): 48")
    log._take()
    assert len(heard) == 1  # half a line
    with path.open("a") as file:
        file.write(", x\n")
    log._take()
    assert ([e.xid for e in heard], log.seq) == ([31, 48], 9)
    log.close()


async def test_a_device_that_tells_of_new_records_is_heard_and_one_that_ends_is_let_go(tmp_path: Path) -> None:
    heard: list[LogEvent] = []
    path = tmp_path / "kmsg"
    os.mkfifo(path)
    log = KernelLog(path, heard.append, clock=SystemClock())
    await log.open()
    following = asyncio.create_task(log.run())
    with path.open("w") as device:
        device.write("4,9,1,-;NVRM: Xid (PCI:0000:3b:00): 48, x\n")
        device.flush()
        async with asyncio.timeout(10):
            while not heard:  # noqa: ASYNC110 (what is watched is outside this loop)
                await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        while log.readable:  # noqa: ASYNC110 (the same)
            await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert [e.xid for e in heard] == [48]


async def test_a_log_that_is_not_there_is_told(tmp_path: Path) -> None:
    log = KernelLog(tmp_path / "none", lambda event: None, clock=SystemClock())
    await log.open()
    assert not log.readable


def test_the_real_kernel_log_has_the_form_we_read() -> None:
    with contextlib.suppress(OSError):
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        with contextlib.closing(os.fdopen(fd, "rb", buffering=0)) as ring:
            record = (ring.read(8192) or b"").decode(errors="replace")
        assert not record or _RECORD.match(record.splitlines()[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: device files")
def test_devices_that_the_host_got_later_are_adopted(tmp_path: Path) -> None:
    host, own = tmp_path / "host", tmp_path / "own"
    host.mkdir()
    own.mkdir()
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "null"):
        os.mknod(host / name, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (host / "nvidia9").touch()
    adopt_devices(str(host), str(own))
    assert sorted(p.name for p in own.iterdir()) == ["nvidia-uvm", "nvidia0", "nvidiactl"]
    assert os.stat(own / "nvidia0").st_rdev == os.makedev(1, 3)


def test_proofs_hold_for_their_boot_and_gpu_only(tmp_path: Path) -> None:
    kept = Proofs(tmp_path / "proofs.json", "boot-1")
    kept.add("0000:3b:00.0", 7)
    kept.save()
    again, other = Proofs(tmp_path / "proofs.json", "boot-1"), Proofs(tmp_path / "proofs.json", "boot-2")
    again.load()
    other.load()
    event = LogEvent(pci="0000:3b:00.0", xid=79, seq=7)
    assert (again.covers(event), other.covers(event)) == (True, False)
    assert not again.covers(replace(event, seq=8))
    assert not again.covers(replace(event, pci=""))


@pytest.mark.parametrize("junk", ["", "[]", "{}", '{"bootId": "b", "gpus": 3}', '{"bootId": "b", "gpus": {"x": "y"}}'])
def test_a_file_of_proofs_that_cannot_be_read_proves_nothing(tmp_path: Path, junk: str) -> None:
    (tmp_path / "proofs.json").write_text(junk)
    kept = Proofs(tmp_path / "proofs.json", "b")
    kept.load()
    assert not kept.covers(LogEvent(pci="x", seq=0))


FAULTS = {
    (Code.TEST_FAILED, "GPU-1"): Fault(text="the active test failed", event=True),
    (Code.LOST, "GPU-2"): Fault(text="nvmlDeviceGetHandleByIndex: the GPU is lost"),
}


def test_faults_that_stand_hold_for_their_boot(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    assert KeptFaults(file, "boot-1").save(FAULTS)
    assert KeptFaults(file, "boot-1").load() == FAULTS
    assert KeptFaults(file, "boot-2").load() == {}
    assert [path.name for path in tmp_path.iterdir()] == ["faults.json"]
    assert not KeptFaults(tmp_path / "none" / "faults.json", "boot-1").save(FAULTS)


@pytest.mark.parametrize(
    "row",
    [
        None, [], {}, {"gpu": "GPU-3"}, {"code": "lost"}, {"gpu": "GPU-3", "code": ["lost"]},
        {"gpu": "GPU-3", "code": "no-such"},
        {"gpu": "GPU-3", "code": "hot"},  # which the samples tell of
        {"gpu": "", "code": "lost"}, {"gpu": "#0", "code": "lost"}, {"gpu": "0000:3b:00.0", "code": "xid-fatal"},
    ],
)  # fmt: skip
def test_a_row_that_is_no_fault_hides_no_other(tmp_path: Path, row: object) -> None:
    file = tmp_path / "faults.json"
    good = {"gpu": "GPU-1", "code": "test-failed", "text": "x\n" * 400, "event": True}
    file.write_text(json.dumps({"bootId": "b", "faults": [row, good]}))
    ((key, fault),) = KeptFaults(file, "b").load().items()
    assert (key, len(fault.text), fault.event) == ((Code.TEST_FAILED, "GPU-1"), 300, True)


@pytest.mark.parametrize(
    "junk", [b"", b"\xff", b"[]", b"[" * 100_000, b'{"bootId": "b"}', b'{"bootId": "b", "faults": {}}']
)
def test_a_file_of_faults_that_cannot_be_read_holds_none(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "faults.json").write_bytes(junk)
    assert KeptFaults(tmp_path / "faults.json", "b").load() == {}
