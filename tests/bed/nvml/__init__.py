"""A `libnvidia-ml.so.1` without a GPU: built from C, loaded by unmodified pynvml, driven by a control file.

A process under test gets `LD_LIBRARY_PATH=<dir of build()>` and `PREWARM_NVML_STUB=<path of Control>`. Inside a
container mount the control file's *directory*: the file is replaced by rename.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

SOURCE = Path(__file__).parent / "nvml_stub.c"
LIBRARY = "libnvidia-ml.so.1"
FIRST_BUS = 0x10  # as in nvml_stub.c
XID_CRITICAL_ERROR = 0x8
RECOVERY_ACTION = 230


def build(directory: Path) -> Path:
    """Compiles the stub into `directory` unless it is newer than its source; returns the library's path."""
    library = directory / LIBRARY
    if library.exists() and library.stat().st_mtime > SOURCE.stat().st_mtime:
        return library
    directory.mkdir(parents=True, exist_ok=True)
    fresh = directory / f"{LIBRARY}.{os.getpid()}"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}"]
    subprocess.run(["gcc", *flags, "-o", str(fresh), str(SOURCE)], check=True)
    fresh.replace(library)
    return library


class Control:
    """What the stub answers from now on; every method rewrites the file atomically and takes effect on the next call."""

    def __init__(self, path: Path, *, gpus: int = 1) -> None:
        self.path = path
        self._lines: dict[tuple[object, ...], str] = {}
        self._seq = time.time_ns()  # also above whatever an earlier Control of this file has used
        self.gpus(gpus)

    def environment(self, library: Path) -> dict[str, str]:
        """Variables that make a child process load the stub at `library` and obey this file."""
        return {"LD_LIBRARY_PATH": str(library.parent), "PREWARM_NVML_STUB": str(self.path)}

    def gpus(self, count: int) -> None:
        """How many GPUs NVML counts."""
        self._put(("gpus",), f"gpus n={count}")

    def driver(self, version: str) -> None:
        """The driver's version, as nvmlSystemGetDriverVersion tells it."""
        self._put(("driver",), f"driver name={version}")

    def set(self, function: str, *, err: int, gpu: int | None = None) -> None:
        """`function` (the C symbol pynvml calls, with its `_v2`) returns `err`, for one GPU or for all; 0 restores it."""
        self._call(function, f"err={err}" if err else "", gpu)

    def hang(self, function: str, *, gpu: int | None = None) -> None:
        """`function` does not return until the next `set` of it or `clear`."""
        self._call(function, "hang=1", gpu)

    def crash(self, function: str, *, gpu: int | None = None) -> None:
        """`function` aborts the calling process."""
        self._call(function, "crash=1", gpu)

    def lost(self, gpu: int) -> None:
        """Every call that addresses the GPU returns GPU_IS_LOST."""
        self._put(("lost", gpu), f"lost gpu={gpu}")

    def field(self, gpu: int, field: int, value: int, *, ret: int = 0) -> None:
        """One value of nvmlDeviceGetFieldValues, with its own nvmlReturn."""
        self._put(("field", gpu, field), f"field id={field} value={value} ret={ret} gpu={gpu}")

    def recovery(self, gpu: int, value: int) -> None:
        """Field 230, the recovery action: 0 none, 1 GPU reset, 2 node reboot, 3 drain P2P, 4 drain and reset ..."""
        self.field(gpu, RECOVERY_ACTION, value)

    def remap(self, gpu: int, *, cor: int = 0, unc: int = 0, pending: int = 0, failure: int = 0) -> None:
        """Remapped rows."""
        self._put(("remap", gpu), f"remap cor={cor} unc={unc} pending={pending} failure={failure} gpu={gpu}")

    def ecc(self, gpu: int, *, volatile: int = 0, aggregate: int = 0) -> None:
        """Uncorrected ECC errors."""
        self._put(("ecc", gpu), f"ecc volatile={volatile} aggregate={aggregate} gpu={gpu}")

    def event_types(self, gpu: int, mask: int) -> None:
        """What nvmlDeviceGetSupportedEventTypes offers."""
        self._put(("types", gpu), f"types mask={mask} gpu={gpu}")

    def event(self, gpu: int, event_type: int, data: int) -> None:
        """Delivers an event once to each event set that has registered this GPU and type; earlier ones never see it."""
        self._seq = max(self._seq + 1, time.time_ns())
        self._put(("event", self._seq), f"event seq={self._seq} gpu={gpu} type={event_type} data={data}")

    def xid(self, gpu: int, code: int) -> None:
        """An XidCriticalError event."""
        self.event(gpu, XID_CRITICAL_ERROR, code)

    def clear(self, *, gpus: int = 1) -> None:
        """Back to `gpus` healthy GPUs; hanging calls return."""
        self._lines = {}
        self.gpus(gpus)

    def _call(self, function: str, what: str, gpu: int | None) -> None:
        where = "" if gpu is None else f" gpu={gpu}"
        self._put(("call", function, gpu), f"call fn={function} {what}{where}" if what else "")

    def _put(self, key: tuple[object, ...], line: str) -> None:
        self._lines[key] = line
        fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        fresh.write_text("".join(f"{line}\n" for line in self._lines.values() if line))
        fresh.replace(self.path)


def fake_pci(directory: Path, gpus: int) -> Path:
    """Lays out `gpus` NVIDIA GPUs bound to the driver `nvidia` as sysfs does; returns the `devices` directory.

    The addresses are those of the stub's GPUs. Called again with another number it adds or removes devices.
    """
    driver = directory / "drivers" / "nvidia"
    driver.mkdir(parents=True, exist_ok=True)
    devices = directory / "devices"
    devices.mkdir(exist_ok=True)
    for old in devices.iterdir():
        for entry in old.iterdir():
            entry.unlink()
        old.rmdir()
    for index in range(gpus):
        device = devices / f"0000:{FIRST_BUS + index:02x}:00.0"
        device.mkdir()
        (device / "vendor").write_text("0x10de\n")
        (device / "device").write_text("0x2330\n")
        (device / "class").write_text("0x030200\n")
        (device / "driver").symlink_to(driver.resolve())
    return devices
