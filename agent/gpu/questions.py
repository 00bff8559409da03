"""What is asked of one GPU, and how often. For the probe process only: the standard library and an initialised pynvml.

Each answer is `[code, value, …]`: NVML's own code for that question (0: the values hold), never a value without its code.
Names and numbers: nvml.h, as nvidia-ml-py spells them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

QUICK, FULL, SLOW = range(3)  # every poll; every second one: all that can take a node out; once a minute: the rest
Answer = list[int]

NOT_SUPPORTED, INVALID_ARGUMENT, FUNCTION_NOT_FOUND, VERSION_MISMATCH = 3, 2, 13, 25
MAX_LINKS = 36
FIELDS = {
    QUICK: {"recovery": 230, "ecc": 4},
    FULL: {
        "corrected": 3,
        "aggregate": 6,
        "retired_sbe": 29,
        "retired_dbe": 30,
        "retire_pending": 93,
        "replays": 94,
        "pcie_fatal": 180,
        "shutdown_margin": 193,
        "slowdown_margin": 194,
    },
    SLOW: {"thermal_ns": 270, "brake_ns": 271},
}
LINK_FIELDS = {  # one of each link
    FULL: {"link_failed": 214},
    SLOW: {"link_failed": 214, "link_replays": 161, "link_recoveries": 162, "link_recovered": 213},
}


class Questions:
    """Asks one GPU; `attempt` turns a raised NVMLError into its code."""

    def __init__(self, nvml: Any, attempt: Callable[..., tuple[int, Any]]) -> None:
        self._nvml = nvml
        self._attempt = attempt

    def ask(self, gpu: Any, depth: int) -> dict[str, Answer]:
        """Return the answers to every question up to that depth."""
        answers = self._fields(gpu, {name: (field, 0) for d in range(depth + 1) for name, field in FIELDS[d].items()})
        if depth >= FULL:
            for name, call in _FULL_CALLS.items():
                answers[name] = self._call(call, gpu)
            answers["fabric"] = self._fabric(gpu)
            answers["links"] = self._links(gpu)
            if len(answers["links"]) > 1:
                answers |= self._link_counters(gpu, len(answers["links"]) - 1, LINK_FIELDS[depth])
        if depth >= SLOW:
            for name, call in _SLOW_CALLS.items():
                answers[name] = self._call(call, gpu)
        return answers

    def _call(self, call: Callable[[Any, Any], list[int]], gpu: Any) -> Answer:
        code, values = self._attempt(call, self._nvml, gpu)
        return [code] if code else [0, *values]

    def _fields(self, gpu: Any, wanted: dict[str, tuple[int, int]]) -> dict[str, Answer]:
        code, values = self._attempt(self._nvml.nvmlDeviceGetFieldValues, gpu, list(wanted.values()))
        if code:
            return {name: [code] for name in wanted}
        return {name: field_answer(value) for name, value in zip(wanted, values, strict=True)}

    def _link_counters(self, gpu: Any, links: int, fields: dict[str, int]) -> dict[str, Answer]:
        """Return the sum over all links of each counter; a link without it is left out, as long as one has it."""
        found = self._fields(gpu, {f"{name} {n}": (field, n) for name, field in fields.items() for n in range(links)})
        sums: dict[str, Answer] = {}
        for name in fields:
            answers = [found[f"{name} {link}"] for link in range(links)]
            failed = [a[0] for a in answers if a[0] not in (0, NOT_SUPPORTED, FUNCTION_NOT_FOUND)]
            held = [a[1] for a in answers if a[0] == 0]
            sums[name] = failed[:1] or ([0, sum(held)] if held else [NOT_SUPPORTED])
        return sums

    def _links(self, gpu: Any) -> Answer:
        """Return 1 or 0 for each link that exists: active or not."""
        states: list[int] = []
        for link in range(MAX_LINKS):
            code, state = self._attempt(self._nvml.nvmlDeviceGetNvLinkState, gpu, link)
            if code in (NOT_SUPPORTED, FUNCTION_NOT_FOUND) or (code == INVALID_ARGUMENT and link):
                break
            if code:
                return [code]
            states.append(state)
        return [0, *states] if states else [NOT_SUPPORTED]

    def _fabric(self, gpu: Any) -> Answer:
        """Return state, status, health mask and summary; the summary is 0 (not supported) from a driver without it."""
        nvml = self._nvml
        info = nvml.c_nvmlGpuFabricInfo_v3_t()
        code, _ = self._attempt(nvml.nvmlDeviceGetGpuFabricInfoV, gpu, ctypes.byref(info))
        if code == VERSION_MISMATCH:  # an older driver knows the older structure
            info = nvml.c_nvmlGpuFabricInfo_v2_t()
            code, _ = self._attempt(nvml.nvmlDeviceGetGpuFabricInfoV, gpu, ctypes.byref(info))
        return [code] if code else [0, info.state, info.status, info.healthMask, getattr(info, "healthSummary", 0)]


def field_answer(value: Any) -> Answer:
    """Return one field's answer; its own code counts: the number beside a failed one means nothing."""
    if value.nvmlReturn:
        return [int(value.nvmlReturn)]
    members = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # nvmlValueType_t, in its order
    if not 0 <= value.valueType < len(members):
        return [NOT_SUPPORTED]
    return [0, int(getattr(value.value, members[value.valueType]))]


def _sram(nvml: Any, gpu: Any) -> list[int]:
    status = nvml.c_nvmlEccSramErrorStatus_v1_t()
    nvml.nvmlDeviceGetSramEccErrorStatus(gpu, ctypes.byref(status))
    return [status.bThresholdExceeded]


def _histogram(nvml: Any, gpu: Any) -> list[int]:
    found = nvml.nvmlDeviceGetRowRemapperHistogram(gpu)
    return [found.max, found.high, found.partial, found.low, found.none]


def _memory(nvml: Any, gpu: Any) -> list[int]:
    memory = nvml.nvmlDeviceGetMemoryInfo(gpu, nvml.nvmlMemory_v2)
    return [memory.used, memory.free, memory.total]


_FULL_CALLS: dict[str, Callable[[Any, Any], list[int]]] = {
    "remap": lambda nvml, gpu: list(nvml.nvmlDeviceGetRemappedRows(gpu)),  # corrected, uncorrected, pending, failed
    "histogram": _histogram,  # banks by spare rows left: all, many, some, few, none
    "unrepairable": lambda nvml, gpu: [nvml.nvmlDeviceGetUnrepairableMemoryFlag_v1(gpu)],
    "repair": lambda nvml, gpu: nvml.nvmlDeviceGetRepairStatus(gpu),  # channel, TPC
    "sram": _sram,
    "margin": lambda nvml, gpu: [nvml.nvmlDeviceGetMarginTemperature(gpu)],  # degrees below the limit
    "temperature": lambda nvml, gpu: [
        nvml.nvmlDeviceGetTemperature(gpu, 0),
        nvml.nvmlDeviceGetTemperatureThreshold(gpu, 1),  # slowdown
    ],
    "pcie_width": lambda nvml, gpu: [
        nvml.nvmlDeviceGetCurrPcieLinkWidth(gpu),
        nvml.nvmlDeviceGetMaxPcieLinkWidth(gpu),
    ],
    "compute_mode": lambda nvml, gpu: [nvml.nvmlDeviceGetComputeMode(gpu)],
    "mig": lambda nvml, gpu: nvml.nvmlDeviceGetMigMode(gpu),  # current, pending
}
_SLOW_CALLS: dict[str, Callable[[Any, Any], list[int]]] = {
    "clocks": lambda nvml, gpu: [nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)],
    "persistence": lambda nvml, gpu: [nvml.nvmlDeviceGetPersistenceMode(gpu)],
    "pcie_generation": lambda nvml, gpu: [
        nvml.nvmlDeviceGetCurrPcieLinkGeneration(gpu),
        nvml.nvmlDeviceGetMaxPcieLinkGeneration(gpu),
    ],
    "pstate": lambda nvml, gpu: [nvml.nvmlDeviceGetPerformanceState(gpu)],
    "busy": lambda nvml, gpu: [nvml.nvmlDeviceGetUtilizationRates(gpu).gpu],  # per cent
    "memory": _memory,
    "processes": lambda nvml, gpu: [
        len(nvml.nvmlDeviceGetComputeRunningProcesses_v3(gpu)) + len(nvml.nvmlDeviceGetGraphicsRunningProcesses_v3(gpu))
    ],
}
