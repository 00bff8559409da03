"""Foreign data: the prober's lines and the PCI bus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gpu.observation import Deaf, Event, Garbled, PciGpus, Started, parse_message
from agent.gpu.pci import PciBus
from tests.bed.nvml import fake_pci


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_messages_are_parsed() -> None:
    assert parse_message(line(kind="started", init=0, watching=True)) == Started(init=0, watching=True)
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
    assert bus.gpus() == PciGpus(present=("0000:10:00.0", "0000:11:00.0"), bound=("0000:10:00.0", "0000:11:00.0"))
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
    assert PciBus(devices).gpus() == PciGpus(present=("0000:10:00.0", "0000:12:00.0"), bound=("0000:12:00.0",))


@pytest.mark.parametrize(
    ("attribute", "value"), [("vendor", "0x8086\n"), ("class", "0x040300\n"), ("class", "0x068000\n")]
)
def test_other_devices_are_no_gpus(tmp_path: Path, attribute: str, value: str) -> None:
    devices = fake_pci(tmp_path, 1)
    (devices / "0000:10:00.0" / attribute).write_text(value)
    assert PciBus(devices).gpus() == PciGpus()


def test_no_bus_shows_no_gpu(tmp_path: Path) -> None:
    assert PciBus(tmp_path / "none").gpus() == PciGpus()
