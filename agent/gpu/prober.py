"""The NVML prober: a process of its own, which may hang or die without harming the agent.

Started by `agent.gpu.children` in isolated mode, with the standard library and pynvml only (the rest of prewarm would cost
memory in every node). It speaks JSON lines: on stdout one `started` after initialisation, then a `sample` for each line read
from stdin, which is the depth of `agent.gpu.questions` wanted, and in between an `event` the moment NVML tells of one. It dies
with its parent: by the kernel's parent-death signal, or at the end of stdin.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from agent.gpu import libraries
from agent.gpu.questions import SLOW, Questions

PR_SET_PDEATHSIG = 1
LIBRARY = "libnvidia-ml.so.1"
TIMEOUT = 10  # the normal end of an event wait
WAIT_MILLISECONDS = 60_000
AFTER_FAILED_WAIT_SECONDS = 5.0
# XidCriticalError, SingleBitEccErrorStorm, DramRetirementEvent, DramRetirementFailure, NonFatalPoison, FatalPoison,
# GpuUnavailable, GpuRecoveryAction (nvml.h)
WANTED_EVENTS = 0x8 | 0x200 | 0x400 | 0x800 | 0x1000 | 0x2000 | 0x4000 | 0x8000


def main(parent: str, extra: str) -> None:
    """Serve samples until stdin ends; `extra` are further directories of the library, `:` between them."""
    die_with(int(parent))
    libraries.adopt_devices()
    directory = libraries.load(LIBRARY, extra)
    # pynvml imports find_library from here and never calls it: 27 modules and 1.5 MB less (measured)
    sys.modules.setdefault("ctypes.util", _Unused("ctypes.util"))
    import pynvml

    prober = Prober(pynvml)
    init, _ = prober.attempt(pynvml.nvmlInit)
    watching = not init and prober.watch()
    prober.say({"kind": "started", "init": init, "watching": watching, "library": directory})
    for line in sys.stdin.buffer:
        prober.say(prober.sample(min(int(line), SLOW)))
    os._exit(0)  # the event thread may sit in the driver


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, even while a driver call hangs."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call above
        os._exit(0)


class _Unused(ModuleType):
    find_library = None


class Prober:
    """Asks an initialised `pynvml`, turning every error into its return code."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._lock = threading.Lock()
        self._questions = Questions(nvml, self.attempt)
        self._known: dict[
            int, tuple[Any, dict[str, Any]]
        ] = {}  # by index: what no GPU changes while a driver is loaded

    def say(self, message: dict[str, Any]) -> None:
        """Write one JSON line, whole even when two threads speak."""
        with self._lock:
            sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
            sys.stdout.buffer.flush()

    def attempt(self, call: Callable[..., Any], *args: Any) -> tuple[int, Any]:
        """Return NVML's code (0: success) and the value."""
        try:
            return 0, call(*args)
        except self._nvml.NVMLError as error:
            return int(error.value), None

    def sample(self, depth: int) -> dict[str, Any]:
        """Ask every GPU once."""
        driver_code, driver = self.attempt(self._nvml.nvmlSystemGetDriverVersion)
        count_code, count = self.attempt(self._nvml.nvmlDeviceGetCount)
        return {
            "kind": "sample",
            "depth": depth,
            "driver_code": driver_code,
            "driver": driver or "",
            "count_code": count_code,
            "count": count or 0,
            "gpus": [self._gpu(index, depth) for index in range(count or 0)],
        }

    def _gpu(self, index: int, depth: int) -> dict[str, Any]:
        found = self._known.get(index) or self._identify(index)
        if isinstance(found, dict):
            return found
        self._known[index] = found
        handle, seen = found
        return seen | {"answers": self._questions.ask(handle, depth)}

    def _identify(self, index: int) -> tuple[Any, dict[str, Any]] | dict[str, Any]:
        """Return the GPU's handle and who it is, or, if a call failed, only that."""
        nvml = self._nvml
        seen = {"index": index, "uuid": "", "pci": "", "name": "", "call": "", "code": 0, "answers": {}}
        code, handle = self.attempt(nvml.nvmlDeviceGetHandleByIndex, index)
        if code:
            return seen | {"call": "nvmlDeviceGetHandleByIndex", "code": code}
        asked = {
            "uuid": ("nvmlDeviceGetUUID", nvml.nvmlDeviceGetUUID),
            "pci": ("nvmlDeviceGetPciInfo", lambda gpu: nvml.nvmlDeviceGetPciInfo(gpu).busId),
            "name": ("nvmlDeviceGetName", nvml.nvmlDeviceGetName),
        }
        for key, (name, call) in asked.items():
            code, value = self.attempt(call, handle)
            if code:
                return seen | {"call": name, "code": code}
            seen[key] = value
        return handle, seen

    def watch(self) -> bool:
        """Register every event each GPU offers and tell of them from a thread; False if there is nothing to watch."""
        code, events = self.attempt(self._nvml.nvmlEventSetCreate)
        uuids = {} if code else self._register(events)
        if uuids:
            threading.Thread(target=self._tell, args=(events, uuids), name="events", daemon=True).start()
        return bool(uuids)

    def _register(self, events: Any) -> dict[int | None, str]:
        nvml, uuids = self._nvml, {}
        _, count = self.attempt(nvml.nvmlDeviceGetCount)
        for index in range(count or 0):
            code, handle = self.attempt(nvml.nvmlDeviceGetHandleByIndex, index)
            _, offered = (code, 0) if code else self.attempt(nvml.nvmlDeviceGetSupportedEventTypes, handle)
            types = (offered or 0) & WANTED_EVENTS
            if types and not self.attempt(nvml.nvmlDeviceRegisterEvents, handle, types, events)[0]:
                uuids[address(handle)] = self.attempt(nvml.nvmlDeviceGetUUID, handle)[1] or ""
        return uuids

    def _tell(self, events: Any, uuids: dict[int | None, str]) -> None:
        last = 0
        while True:
            code, event = self.attempt(self._nvml.nvmlEventSetWait_v2, events, WAIT_MILLISECONDS)
            if code == 0:  # the UUID is remembered: asking a GPU that has just failed may hang
                uuid = uuids.get(address(event.device), "")
                self.say({"kind": "event", "uuid": uuid, "type": event.eventType, "data": event.eventData})
            elif code != TIMEOUT:
                if code != last:
                    self.say({"kind": "deaf", "code": code})
                time.sleep(AFTER_FAILED_WAIT_SECONDS)
            last = code


def address(handle: Any) -> int | None:
    """Return the address behind an NVML handle, which is what makes two of them equal."""
    return ctypes.cast(handle, ctypes.c_void_p).value
