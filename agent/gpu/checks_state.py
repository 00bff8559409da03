"""Checks of the driver's own word, temperature, clocks, modes and forgotten memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from agent.gpu.checks import Check, Found, Look, check
from agent.gpu.reasons import Code
from agent.gpu.tracks import HW_POWER_BRAKE, HW_THERMAL

HW_SLOWDOWN = 0x8
THROTTLED_MINUTES = 6
LEAKED_SECONDS = 120
COMPUTE_MODES = {0: "default", 1: "exclusive thread", 3: "exclusive process"}
PROHIBITED = 2
RECOVERY = {
    1: (Code.RECOVERY_RESET, "the driver asks to reset the GPU"),
    2: (Code.RECOVERY_REBOOT, "the driver asks to reboot the node"),
    3: (Code.RECOVERY_DRAIN_P2P, "the driver asks to drain peer-to-peer traffic"),
    4: (Code.RECOVERY_RESET, "the driver asks to drain the GPU and reset it"),
    5: (Code.RECOVERY_IMEX, "the driver asks to recover the IMEX domain"),
    6: (Code.RECOVERY_RESET, "the driver asks to reset the bus"),
    7: (Code.RECOVERY_REBOOT, "the driver asks to reboot the system"),
}


@check("recovery", finds=(Code.RECOVERY_RESET, Code.RECOVERY_REBOOT, Code.RECOVERY_DRAIN_P2P, Code.RECOVERY_IMEX,
                          Code.RECOVERY_UNKNOWN))  # fmt: skip
def recovery(look: Look) -> Iterator[Found]:
    """The driver's own arbiter: nvml.h, NVML_FI_DEV_GET_GPU_RECOVERY_ACTION (230), driver R565 and newer."""
    action = look.gpu.value("recovery")
    if action:
        yield RECOVERY.get(
            action, (Code.RECOVERY_UNKNOWN, f"the driver asks for action {action}, unknown to this version")
        )


@check("margin", "slowdown_margin", finds=(Code.TOO_HOT, Code.HOT))
def margin(look: Look) -> Iterator[Found]:
    """Degrees left to the limit: nvml.h, nvmlDeviceGetMarginTemperature against T.Limit of fields 193 and 194."""
    left, slowdown = look.gpu.value("margin"), look.gpu.value("slowdown_margin")
    shutdown = look.gpu.value("shutdown_margin")
    if left is None or slowdown is None:
        return
    if shutdown is not None and left <= shutdown:
        yield Code.TOO_HOT, "at its shutdown temperature"
    elif left <= slowdown:
        yield Code.HOT, "at its slowdown temperature"


@check("temperature", finds=(Code.HOT,))
def temperature(look: Look) -> Iterator[Found]:
    """Products without a margin: nvml.h, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN."""
    degrees, slowdown = look.gpu.values("temperature") or (0, 0)
    if not look.gpu.asked("slowdown_margin") and 0 < slowdown <= degrees:
        yield Code.HOT, "at its slowdown temperature"


@check("clocks", finds=(Code.THROTTLED, Code.SLOWED))
def clocks(look: Look) -> Iterator[Found]:
    """Clock limits over time: nvml.h, nvmlClocksEventReason…, fields 270 and 271; idle and power cap are normal (gpud too)."""
    if sum(look.track.throttled.values()) >= THROTTLED_MINUTES:
        yield Code.THROTTLED, f"slowed down by heat or power brake in {THROTTLED_MINUTES} of the last ten minutes"
    elif (look.gpu.value("clocks") or 0) & (HW_SLOWDOWN | HW_THERMAL | HW_POWER_BRAKE) == HW_SLOWDOWN:
        yield Code.SLOWED, "a hardware slowdown, without heat or power brake"


@check("compute_mode", finds=(Code.COMPUTE_PROHIBITED, Code.COMPUTE_UNKNOWN))
def compute_mode(look: Look) -> Iterator[Found]:
    """nvml.h, nvmlComputeMode_t."""
    mode = look.gpu.value("compute_mode")
    if mode == PROHIBITED:
        yield Code.COMPUTE_PROHIBITED, "its compute mode forbids every context"
    elif mode not in COMPUTE_MODES:
        yield Code.COMPUTE_UNKNOWN, f"compute mode {mode} is unknown to this version"


@check("mig", finds=(Code.MIG_PENDING,))
def mig(look: Look) -> Iterator[Found]:
    """nvml.h, nvmlDeviceGetMigMode: what is pending comes with the next reset."""
    current, pending = look.gpu.values("mig") or (0, 0)
    if current != pending:
        yield Code.MIG_PENDING, f"MIG is {'on' if current else 'off'} and will be {'on' if pending else 'off'}"


@check("persistence", finds=(Code.PERSISTENCE_OFF,))
def persistence(look: Look) -> Iterator[Found]:
    """nvml.h, nvmlDeviceGetPersistenceMode."""
    if look.gpu.value("persistence") == 0:
        yield Code.PERSISTENCE_OFF, "persistence mode is off"


@check("memory", "processes", finds=(Code.MEMORY_LEAKED,))
def leaked_memory(look: Look) -> Iterator[Found]:
    """Memory used by nobody; needs the host's PID namespace to see processes. 500 MiB and 2 min are our own judgement."""
    if look.track.held_for("memory alone", look.at) >= LEAKED_SECONDS:
        yield Code.MEMORY_LEAKED, "over 500 MiB of its memory are in use, by no process"


CHECKS: tuple[Check, ...] = (recovery, margin, temperature, clocks, compute_mode, mig, persistence, leaked_memory)
