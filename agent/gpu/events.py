"""What NVML's events and the kernel log's lines mean. Pure tables.

Xid classes: NVIDIA's Xid catalogue. An event carries no sub-code, so an NVLink Xid, whose class depends on it, counts as fatal
unless the kernel log's line says "Nonfatal". Whatever the class, the recovery action (field 230) is read again at once, and a
non-zero answer wins.
"""

from __future__ import annotations

from enum import StrEnum

from agent.gpu.observation import Event, LogEvent
from agent.gpu.reasons import Code

XID, DRAM_RETIREMENT_FAILURE, FATAL_POISON, UNAVAILABLE = 0x8, 0x800, 0x2000, 0x4000
_FATAL_EVENTS = {
    DRAM_RETIREMENT_FAILURE: "a memory row could not be retired",
    FATAL_POISON: "fatal memory poison",
    UNAVAILABLE: "the GPU became unavailable",
}


class XidClass(StrEnum):
    """What an Xid asks for."""

    FATAL = "fatal"  # a reset, a reboot or a repair
    NVLINK = "nvlink"  # the same, unless the driver calls it nonfatal
    APPLICATION = "application"  # restart the application: says nothing about the GPU
    IGNORED = "ignored"
    UNLISTED = "unlisted"  # in no table: only the recovery action decides


_RESET = {46, 48, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158}
_RESTART_OR_REPAIR = {54, 79, 142, 151}
_NVLINK = {74, *range(144, 151)}
_OTHER_FATAL = {78, 159, 167, 168, 169}  # vGPU; reset where UVM is used, as CUDA does; three with an empty bucket
_FATAL = _RESET | _RESTART_OR_REPAIR | _OTHER_FATAL
_APPLICATION = (
    {8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 80, 88, 89, 94, 139}
    | set(range(68, 73))
    | {75, 76, 77}
    | set(range(82, 87))
    | set(range(96, 106))
    | set(range(126, 136))
)
_IGNORED = {14, 37, 38, 43, 44, 45, 63, 66, 67, 92, 93, 106, 107, 108, 121, 137, 141, 152, 153, 154, 157, 160, 161}


def xid_class(code: int) -> XidClass:
    """Return the class of an Xid."""
    for kind, codes in (
        (XidClass.FATAL, _FATAL),
        (XidClass.NVLINK, _NVLINK),
        (XidClass.APPLICATION, _APPLICATION),
        (XidClass.IGNORED, _IGNORED),
    ):
        if code in codes:
            return kind
    return XidClass.UNLISTED


def xid_of(event: Event | LogEvent) -> int | None:
    """Return the Xid an event tells of, None if it tells of something else."""
    if isinstance(event, LogEvent):
        return event.xid or None
    return event.data if event.type == XID else None


def meaning(event: Event | LogEvent) -> tuple[Code, str] | None:
    """Return the reason that the event alone gives against its GPU, and its text; None if it gives none."""
    xid = xid_of(event)
    if xid is not None:
        kind = xid_class(xid)
        if kind is XidClass.FATAL:
            return Code.XID_FATAL, f"Xid {xid}"
        if kind is XidClass.NVLINK:
            nonfatal = isinstance(event, LogEvent) and event.nonfatal
            return Code.XID_NVLINK_NONFATAL if nonfatal else Code.XID_NVLINK, f"Xid {xid}"
        return None
    if isinstance(event, LogEvent):
        return Code.OFF_THE_BUS, "it has fallen off the bus"
    return (Code.EVENT_FATAL, _FATAL_EVENTS[event.type]) if event.type in _FATAL_EVENTS else None
