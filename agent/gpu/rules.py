"""From what was seen to a verdict. Pure, total, and closed: what cannot be read is never healthy.

Sources: nvml.h, NVIDIA's Xid catalogue, and the driver's own recovery action (field 230), which outranks every table.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.inventory import GpuReport, GpuVerdict
from agent.gpu.observation import Died, Gpu, Hung, Observation, PciGpus, Refused, Sample

SUCCESS, NOT_SUPPORTED, NOT_LOADED, NOT_FOUND, FUNCTION_NOT_FOUND = 0, 3, 9, 12, 13
NOT_APPLICABLE = (NOT_SUPPORTED, FUNCTION_NOT_FOUND)  # this product or driver does not have the question
FATAL_CODES = (9, 12, 15, 16, 18, 999)
CODES = {
    4: "permission denied",
    9: "the driver is not loaded",
    10: "timeout",
    12: "libnvidia-ml.so.1 was not found",
    15: "the GPU is lost",
    16: "the GPU needs a reset",
    18: "library and kernel driver are of different versions",
    999: "unknown error of the driver",
}
RECOVERY = {
    1: (GpuVerdict.UNHEALTHY, "reset the GPU"),
    2: (GpuVerdict.UNHEALTHY, "reboot the node"),
    3: (GpuVerdict.DEGRADED, "drain peer-to-peer traffic"),
    4: (GpuVerdict.UNHEALTHY, "drain the GPU and reset it"),
    5: (GpuVerdict.DEGRADED, "recover the IMEX domain"),
    6: (GpuVerdict.UNHEALTHY, "reset the bus"),
    7: (GpuVerdict.UNHEALTHY, "reboot the system"),
}
_WORST_FIRST = (GpuVerdict.UNHEALTHY, GpuVerdict.UNKNOWN, GpuVerdict.DEGRADED, GpuVerdict.HEALTHY)


def wanted_gpus(setting: str) -> int | None:
    """Return the number of GPUs the setting `gpus` demands; None for `auto`."""
    return None if setting == "auto" else int(setting)


def expects_gpus(pci: PciGpus, wanted: int | None) -> bool:
    """Say whether this node must have GPUs: the bus shows one or the setting names a number."""
    return bool(pci.present) or bool(wanted)


def judge(seen: Observation, pci: PciGpus, wanted: int | None) -> GpuReport:
    """Return the verdict of one observation, without memory of earlier ones."""
    expected = expects_gpus(pci, wanted)
    match seen:
        case Sample():
            return _judge_sample(seen, pci, wanted)
        case Refused(code=code) if not expected and code in (NOT_LOADED, NOT_FOUND):
            return GpuReport(verdict=GpuVerdict.NONE, reason="no GPU on the PCI bus and no driver")
        case Refused(code=code):
            verdict = GpuVerdict.UNHEALTHY if code in FATAL_CODES and expected else GpuVerdict.UNKNOWN
            return GpuReport(verdict=verdict, reason=f"NVML refused to start: {told(code)}")
        case Hung(unkillable=True):
            return _unhealthy(f"hung: process {seen.pid} sits in the driver and cannot be killed")
        case Hung():
            return _unhealthy(f"hung: NVML has not answered for {seen.seconds:g} s")
        case Died():
            verdict = GpuVerdict.UNHEALTHY if seen.times > 1 else GpuVerdict.UNKNOWN
            return GpuReport(verdict=verdict, reason=f"the NVML prober died ({_ending(seen.status)})")


def told(code: int) -> str:
    """Return an NVML code in words."""
    return f"{CODES[code]} (code {code})" if code in CODES else f"code {code}"


def _judge_sample(sample: Sample, pci: PciGpus, wanted: int | None) -> GpuReport:
    if sample.count_code:
        verdict = GpuVerdict.UNHEALTHY if sample.count_code in FATAL_CODES else GpuVerdict.UNKNOWN
        return GpuReport(verdict=verdict, reason=f"NVML cannot count the GPUs: {told(sample.count_code)}")
    faults = sorted(_faults(sample, pci, wanted), key=lambda fault: _WORST_FIRST.index(fault[0]))
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        return GpuReport(verdict=faults[0][0], reason=faults[0][1] + more, count=sample.count)
    if sample.count == 0:
        return GpuReport(verdict=GpuVerdict.NONE, reason="no GPU on the PCI bus and none in NVML")
    return GpuReport(verdict=GpuVerdict.HEALTHY, reason=_healthy(sample, wanted), count=sample.count)


def _healthy(sample: Sample, wanted: int | None) -> str:
    few = "1 GPU answers" if sample.count == 1 else f"{sample.count} GPUs answer"
    extra = f", {sample.count - wanted} more than the setting gpus names" if wanted and sample.count > wanted else ""
    blind = sum(gpu.recovery is None for gpu in sample.gpus)
    return f"{few}{extra}; " + (f"{blind} without a recovery action" if blind else "no recovery action is asked for")


def _faults(sample: Sample, pci: PciGpus, wanted: int | None) -> Iterable[tuple[GpuVerdict, str]]:
    bound, present = len(pci.bound), len(pci.present)
    if sample.count < bound:
        yield GpuVerdict.UNHEALTHY, f"NVML shows {sample.count} of the {bound} GPUs that the PCI bus shows"
    elif sample.count < present:
        yield GpuVerdict.UNHEALTHY, f"{present - sample.count} of {present} GPUs on the PCI bus have no driver"
    if wanted is not None and sample.count < wanted:
        yield GpuVerdict.UNHEALTHY, f"NVML shows {sample.count} GPUs, the setting gpus wants {wanted}"
    if sample.driver_code and sample.driver_code not in NOT_APPLICABLE:
        verdict = GpuVerdict.UNHEALTHY if sample.driver_code in FATAL_CODES else GpuVerdict.UNKNOWN
        yield verdict, f"the driver's version cannot be read: {told(sample.driver_code)}"
    if len(sample.gpus) != sample.count:
        yield GpuVerdict.UNKNOWN, f"only {len(sample.gpus)} of {sample.count} GPUs were asked"
    for gpu in sample.gpus:
        yield from _gpu_faults(gpu)


def _gpu_faults(gpu: Gpu) -> Iterable[tuple[GpuVerdict, str]]:
    name = f"GPU {gpu.index}" + (f" ({gpu.uuid})" if gpu.uuid else "")
    if gpu.code:
        verdict = GpuVerdict.UNHEALTHY if gpu.code in FATAL_CODES else GpuVerdict.UNKNOWN
        yield verdict, f"{name}: {gpu.call}: {told(gpu.code)}"
    elif gpu.recovery is not None and gpu.recovery != 0:
        otherwise = (GpuVerdict.UNHEALTHY, f"recovery action {gpu.recovery}, unknown to this version")
        verdict, action = RECOVERY.get(gpu.recovery, otherwise)
        yield verdict, f"{name}: the driver asks to {action}" if gpu.recovery in RECOVERY else f"{name}: {action}"
    elif gpu.recovery_code and gpu.recovery_code not in NOT_APPLICABLE:
        verdict = GpuVerdict.UNHEALTHY if gpu.recovery_code in FATAL_CODES else GpuVerdict.UNKNOWN
        yield verdict, f"{name}: the recovery action cannot be read: {told(gpu.recovery_code)}"


def _unhealthy(reason: str) -> GpuReport:
    return GpuReport(verdict=GpuVerdict.UNHEALTHY, reason=reason)


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
