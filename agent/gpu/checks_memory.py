"""Checks of the GPU's memory: ECC, page retirement, row remapping, repair. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from agent.gpu.checks import Check, Found, Look, check
from agent.gpu.reasons import Code

CORRECTED_PER_SECOND = 1000  # our own judgement; a GPU at 17,657/s stalled its monitor (NVSentinel#1748)
RETIRED_PAGES = 63  # of at most 64: DCGM's limit
REMAPPED_ROWS = 512  # DCGM's warning


@check("ecc", finds=(Code.ECC_UNCORRECTED, Code.ECC_BEFORE))
def uncorrected(look: Look) -> Iterator[Found]:
    """nvml.h, NVML_FI_DEV_ECC_DBE_VOL_TOTAL (4): errors since the driver was loaded or the GPU was reset."""
    counter, accepted = look.track.counters["ecc"], look.track.accepted_ecc
    if counter.last > (counter.first if accepted is None else accepted):
        yield Code.ECC_UNCORRECTED, "uncorrectable memory errors since the agent first looked"
    elif counter.last and accepted is None:
        yield Code.ECC_BEFORE, "uncorrectable memory errors from before the agent looked"


@check("aggregate", finds=(Code.ECC_AGGREGATE,))
def aggregate(look: Look) -> Iterator[Found]:
    """nvml.h, NVML_FI_DEV_ECC_DBE_AGG_TOTAL (6): errors in the life of the GPU."""
    if look.gpu.value("aggregate"):
        yield Code.ECC_AGGREGATE, "uncorrectable memory errors in its life"


@check("corrected", finds=(Code.ECC_STORM,))
def corrected(look: Look) -> Iterator[Found]:
    """nvml.h, NVML_FI_DEV_ECC_SBE_VOL_TOTAL (3), as a rate."""
    if look.track.counters["corrected"].rate > CORRECTED_PER_SECOND:
        yield Code.ECC_STORM, f"more than {CORRECTED_PER_SECOND} corrected memory errors a second"


@check("sram", finds=(Code.SRAM_THRESHOLD,))
def sram(look: Look) -> Iterator[Found]:
    """nvml.h, nvmlEccSramErrorStatus_v1_t.bThresholdExceeded."""
    if look.gpu.value("sram"):
        yield Code.SRAM_THRESHOLD, "its threshold of SRAM errors is exceeded"


@check("retire_pending", finds=(Code.PAGES_PENDING,))
def pages_pending(look: Look) -> Iterator[Found]:
    """Before Ampere: nvml.h, NVML_FI_DEV_RETIRED_PENDING_DBE (93)."""
    if look.gpu.value("retire_pending"):
        yield Code.PAGES_PENDING, "pages with double-bit errors wait for their retirement"


@check("retired_dbe", finds=(Code.PAGES_RETIRED,))
def pages_retired(look: Look) -> Iterator[Found]:
    """Before Ampere: nvml.h, NVML_FI_DEV_RETIRED_SBE and _DBE (29, 30)."""
    if (look.gpu.value("retired_dbe") or 0) + (look.gpu.value("retired_sbe") or 0) >= RETIRED_PAGES:
        yield Code.PAGES_RETIRED, f"{RETIRED_PAGES} pages or more are retired"


@check("remap", finds=(Code.REMAP_FAILED, Code.REMAP_PENDING, Code.ROWS_REMAPPED))
def remap(look: Look) -> Iterator[Found]:
    """Ampere and newer: nvml.h, nvmlDeviceGetRemappedRows; with a remap pending new work may still start (NVIDIA)."""
    _, uncorrectable, pending, failed = look.gpu.values("remap") or (0, 0, 0, 0)
    if failed:
        yield Code.REMAP_FAILED, "a memory row could not be remapped"
    if pending:
        yield Code.REMAP_PENDING, "a memory row waits to be remapped at the next reset"
    if uncorrectable >= REMAPPED_ROWS:
        yield Code.ROWS_REMAPPED, f"{REMAPPED_ROWS} rows or more were remapped after uncorrectable errors"


@check("histogram", finds=(Code.ROWS_EXHAUSTED, Code.ROWS_LOW))
def spare_rows(look: Look) -> Iterator[Found]:
    """nvml.h, nvmlRowRemapperHistogramValues_t: banks by how many spare rows they have left."""
    *_, low, none = look.gpu.values("histogram") or (0, 0)
    if none:
        yield Code.ROWS_EXHAUSTED, "a memory bank has no spare row left"
    elif low:
        yield Code.ROWS_LOW, "a memory bank has few spare rows left"


@check("unrepairable", finds=(Code.UNREPAIRABLE,))
def unrepairable(look: Look) -> Iterator[Found]:
    """nvml.h, nvmlDeviceGetUnrepairableMemoryFlag_v1."""
    if look.gpu.value("unrepairable"):
        yield Code.UNREPAIRABLE, "its memory cannot be repaired"


@check("repair", finds=(Code.REPAIR_PENDING,))
def repair(look: Look) -> Iterator[Found]:
    """nvml.h, nvmlRepairStatus_t."""
    channel, tpc = look.gpu.values("repair") or (0, 0)
    if channel or tpc:
        yield Code.REPAIR_PENDING, f"a {'channel' if channel else 'TPC'} repair waits for a reset"


CHECKS: tuple[Check, ...] = (
    uncorrected, aggregate, corrected, sram, pages_pending, pages_retired, remap, spare_rows, unrepairable, repair,
)  # fmt: skip
