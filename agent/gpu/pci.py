"""The second witness: NVIDIA GPUs as sysfs shows them, without touching the driver's lock."""

from __future__ import annotations

from pathlib import Path

from agent.gpu.observation import PciGpus

NVIDIA = "0x10de"
GPU_CLASSES = ("0x0302", "0x0300")  # 3D controller, VGA controller
GUEST_DRIVERS = ("vfio-pci", "pci-stub", "xen-pciback")  # the GPU belongs to a virtual machine, not to this node


class PciBus:
    """Looks for GPUs under `directory` (`/sys/bus/pci/devices`).

    What a slot holds is read once and remembered while it stays: a large node has hundreds, and this is asked at every poll.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._is_gpu: dict[str, bool] = {}

    def gpus(self) -> PciGpus:
        """Return what the bus shows now. Blocks on sysfs: call it in a thread. No bus, no GPUs."""
        try:
            names = sorted(entry.name for entry in self._directory.iterdir())
        except FileNotFoundError:
            return PciGpus()
        except OSError:
            return PciGpus(readable=False)
        self._is_gpu = {name: self._look(name) for name in names}
        drivers = {name: self._driver(name) for name, is_gpu in self._is_gpu.items() if is_gpu}
        ours = {name: driver for name, driver in drivers.items() if driver not in GUEST_DRIVERS}
        bound = tuple(name for name, driver in ours.items() if driver == "nvidia")
        version = self._read(bound[0], "driver/module/version") if bound else ""
        return PciGpus(present=tuple(ours), bound=bound, guests=len(drivers) - len(ours), driver=version)

    def _look(self, name: str) -> bool:
        known = self._is_gpu.get(name)
        if known is not None:
            return known
        return self._read(name, "vendor") == NVIDIA and self._read(name, "class")[:6] in GPU_CLASSES

    def _read(self, name: str, attribute: str) -> str:
        try:
            return (self._directory / name / attribute).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def _driver(self, name: str) -> str:
        try:
            return (self._directory / name / "driver").readlink().name
        except OSError:
            return ""
