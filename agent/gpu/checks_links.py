"""Checks of what connects a GPU: PCIe, NVLink, fabric. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.gpu.checks import Check, Found, Look, check
from agent.gpu.reasons import Code

RECENT_SECONDS = 600
FABRIC_SECONDS = 300
GIGABITS_PER_LANE = {1: 2.5, 2: 5, 3: 8, 4: 16, 5: 32, 6: 64}  # by PCIe generation
BIT_ERROR_RATE = 1e-12  # what PCIe allows a link, hence the replays it explains
NOT_SUPPORTED, WAITS, COMPLETED = 0, (1, 2), 3
UNHEALTHY, LIMITED = 2, 3
DEGRADED_BANDWIDTH = 1  # value of bits 0 and 1 of the health mask: 0 not supported, 1 true, 2 false
# Products whose every NVLink is wired (boards with NVSwitch or a full mesh); on cards with bridges, links may lie idle.
_WIRED = re.compile(r"SXM|HGX|H[12]00 80GB HBM3|H200(?! NVL)|H20\b|B[123]00|GB[123]00")


@check("pcie_width", finds=(Code.PCIE_NARROW,))
def pcie_width(look: Look) -> Iterator[Found]:
    """nvml.h, nvmlDeviceGetCurrPcieLinkWidth: unlike the generation it does not shrink in idle."""
    now, most = look.gpu.values("pcie_width") or (0, 0)
    if now < most:
        yield Code.PCIE_NARROW, f"{now} of {most} PCIe lanes"


@check("pcie_generation", "pstate", "busy", finds=(Code.PCIE_SLOW,))
def pcie_generation(look: Look) -> Iterator[Found]:
    """nvml.h, nvmlDeviceGetCurrPcieLinkGeneration: an idle GPU shifts down, so only one in P0 that computes is judged."""
    now, most = look.gpu.values("pcie_generation") or (0, 0)
    if now < most and look.gpu.value("pstate") == 0 and (look.gpu.value("busy") or 0) >= 50:
        yield Code.PCIE_SLOW, f"PCIe generation {now} of {most} under load"


@check("replays", "pcie_width", finds=(Code.PCIE_REPLAYS,))
def pcie_replays(look: Look) -> Iterator[Found]:
    """nvml.h, NVML_FI_DEV_PCIE_REPLAY_COUNTER (94), against the replays a bit error rate of 1e-12 explains (as DCGM)."""
    lanes, _ = look.gpu.values("pcie_width") or (16, 16)
    generation, _ = look.gpu.values("pcie_generation") or (5, 5)
    allowed = GIGABITS_PER_LANE.get(generation, 32) * 1e9 * max(lanes, 1) * BIT_ERROR_RATE
    if look.track.counters["replays"].rate > max(allowed, 1 / 60):
        yield Code.PCIE_REPLAYS, "more PCIe replays than its bit error rate allows"


@check("pcie_fatal", finds=(Code.PCIE_FATAL,))
def pcie_fatal(look: Look) -> Iterator[Found]:
    """nvml.h, NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR (180)."""
    if look.track.risen_within("pcie_fatal", RECENT_SECONDS, look.at):
        yield Code.PCIE_FATAL, "a fatal PCIe error"


@check("links", finds=(Code.NVLINK_DOWN,))
def nvlink(look: Look) -> Iterator[Found]:
    """nvml.h, nvmlDeviceGetNvLinkState. Links that were never up on a card with bridges are no fault (NVSentinel PR#1481)."""
    states = look.gpu.values("links") or ()
    wanted = set(range(len(states))) if _WIRED.search(look.gpu.name) else look.track.links
    if down := [n for n in sorted(wanted) if n >= len(states) or not states[n]]:
        yield Code.NVLINK_DOWN, f"NVLink {', '.join(map(str, down))} of {len(states)} is down"


@check("link_failed", finds=(Code.NVLINK_FAILED,))
def nvlink_failed(look: Look) -> Iterator[Found]:
    """nvml.h, NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS (214)."""
    if look.track.risen_within("link_failed", RECENT_SECONDS, look.at):
        yield Code.NVLINK_FAILED, "an NVLink could not recover"


@check("links", finds=(Code.NVLINK_ERRORS,))
def nvlink_errors(look: Look) -> Iterator[Found]:
    """nvml.h, NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY and _RECOVERY, …LINK_RECOVERY_SUCCESSFUL_EVENTS (161, 162, 213)."""
    names = ("link_replays", "link_recoveries", "link_recovered")
    if any(look.track.risen_within(name, RECENT_SECONDS, look.at) for name in names):
        yield Code.NVLINK_ERRORS, "NVLink replays or recoveries"


@check("fabric", finds=(Code.FABRIC_STUCK, Code.FABRIC_FAILED, Code.FABRIC_LIMITED, Code.FABRIC_UNKNOWN))
def fabric(look: Look) -> Iterator[Found]:
    """nvml.h, nvmlGpuFabricInfo_v3_t. A dead fabric manager shows as "in progress" for ever (NVSentinel#889)."""
    state, status, mask, summary = look.gpu.values("fabric") or (NOT_SUPPORTED, 0, 0, 0)
    if state in WAITS:
        if look.track.held_for("fabric waits", look.at) > FABRIC_SECONDS:
            yield Code.FABRIC_STUCK, "the fabric does not come up"
    elif state == COMPLETED and summary <= LIMITED:
        if status or summary == UNHEALTHY:
            yield Code.FABRIC_FAILED, f"the fabric failed with code {status}" if status else "the fabric is unhealthy"
        elif summary == LIMITED or mask & 0b11 == DEGRADED_BANDWIDTH:
            yield Code.FABRIC_LIMITED, "the fabric works with less bandwidth or capacity"
    elif state != NOT_SUPPORTED:
        yield Code.FABRIC_UNKNOWN, f"fabric state {state}, health {summary}: unknown to this version"


CHECKS: tuple[Check, ...] = (
    pcie_width, pcie_generation, pcie_replays, pcie_fatal, nvlink, nvlink_failed, nvlink_errors, fabric,
)  # fmt: skip
