"""A `libnvidia-ml.so.1` and a `libcuda.so.1` without a GPU: built from C, loaded as the real ones are, driven by a control file.

A process under test gets `LD_LIBRARY_PATH=<dir of build()>` and `PREWARM_NVML_STUB=<path of Control>`. Inside a
container mount the control file's *directory*: the file is replaced by rename.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY, CUDA = "libnvidia-ml.so.1", "libcuda.so.1"
SOURCES = {LIBRARY: HERE / "nvml_stub.c", CUDA: HERE / "cuda_stub.c"}
FIRST_BUS = 0x10  # as in nvml_stub.c
XID_CRITICAL_ERROR = 0x8
RECOVERY_ACTION = 230


def build(directory: Path) -> Path:
    """Compiles both stubs into `directory` unless they are newer than their sources; returns the path of NVML's."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, source in SOURCES.items():
        library = directory / name
        newest = max(path.stat().st_mtime for path in (source, HERE / "control.h"))
        if library.exists() and library.stat().st_mtime > newest:
            continue
        fresh = directory / f"{name}.{os.getpid()}"
        flags = ["-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
        subprocess.run(["gcc", *flags, "-o", str(fresh), str(source)], check=True)
        fresh.replace(library)
    return directory / LIBRARY


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

    def answer(self, function: str, *numbers: int, gpu: int | None = None) -> None:
        """The numbers that `function` gives, in the order of its out-parameters; none: those of a healthy GPU again."""
        where = "" if gpu is None else f" gpu={gpu}"
        line = f"value fn={function} is={','.join(map(str, numbers))}{where}" if numbers else ""
        self._put(("value", function, gpu), line)

    def field(self, gpu: int, field: int, value: int, *, ret: int = 0) -> None:
        """One value of nvmlDeviceGetFieldValues, with its own nvmlReturn."""
        self._put(("field", gpu, field), f"field id={field} value={value} ret={ret} gpu={gpu}")

    def recovery(self, gpu: int, value: int) -> None:
        """Field 230, the recovery action: 0 none, 1 GPU reset, 2 node reboot, 3 drain P2P, 4 drain and reset ..."""
        self.field(gpu, RECOVERY_ACTION, value)

    def remap(self, gpu: int, *, cor: int = 0, unc: int = 0, pending: int = 0, failure: int = 0) -> None:
        """Remapped rows."""
        self.answer("nvmlDeviceGetRemappedRows", cor, unc, pending, failure, gpu=gpu)

    def ecc(self, gpu: int, *, volatile: int = 0, aggregate: int = 0) -> None:
        """Uncorrected ECC errors."""
        self.field(gpu, 4, volatile)
        self.field(gpu, 6, aggregate)

    def product(self, name: str) -> None:
        """The product's name."""
        self._put(("product",), f"product name={name.replace(' ', '_')}")

    def links(self, count: int, *, down: int = 0, gpu: int | None = None) -> None:
        """How many NVLinks a GPU has, and which of them are inactive (bits)."""
        where = "" if gpu is None else f" gpu={gpu}"
        self._put(("links", gpu), f"links n={count} down={down}{where}")

    def processes(self, gpu: int, count: int) -> None:
        """How many compute processes use the GPU."""
        self._put(("processes", gpu), f"processes n={count} gpu={gpu}")

    def fabric_version(self, version: int) -> None:
        """The newest structure of nvmlDeviceGetGpuFabricInfoV that the driver knows."""
        self._put(("fabric",), f"fabric version={version}")

    def cuda(self, **settings: object) -> None:
        """What the active test meets: `wrong=` memory, product or copy; `free=` bytes; `slow=` milliseconds a copy."""
        words = " ".join(f"{key}={value}" for key, value in settings.items())
        self._put(("cuda",), f"cuda {words}" if words else "")

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


def fake_pci(directory: Path, gpus: int, *, driver: str = "580.95.05") -> Path:
    """Lays out `gpus` NVIDIA GPUs bound to the driver `nvidia` as sysfs does; returns the `devices` directory.

    The addresses are those of the stub's GPUs. Called again with another number it adds or removes devices. `driver` is the
    version of the kernel's module.
    """
    module = directory / "drivers" / "nvidia" / "module"
    module.mkdir(parents=True, exist_ok=True)
    (module / "version").write_text(f"{driver}\n")
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
        (device / "driver").symlink_to(module.parent.resolve())
    return devices
