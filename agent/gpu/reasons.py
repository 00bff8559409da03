"""Every reason a GPU verdict can have: one catalogue, from which verdicts, metrics and the table in docs/gpu.md are made. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from agent.core.inventory import GpuVerdict


class Code(StrEnum):
    """The name of a reason, as in metrics, in `prewarm gpu` and in the docs."""

    HUNG = "hung"
    UNKILLABLE = "unkillable"
    PROBER_DIED = "prober-died"
    PROBER_KEEPS_DYING = "prober-keeps-dying"
    DRIVER_MISSING = "driver-missing"
    DRIVER_MISMATCH = "driver-mismatch"
    NOT_INSTALLED_YET = "not-installed-yet"
    NVML_FAILED = "nvml-failed"
    NVML_REFUSED = "nvml-refused"
    BUS_UNREADABLE = "bus-unreadable"
    GPUS_MISSING = "gpus-missing"
    GPUS_WITHOUT_DRIVER = "gpus-without-driver"
    GPUS_FEWER = "gpus-fewer-than-set"
    GPUS_MORE = "gpus-more-than-set"
    NOT_ALL_ASKED = "not-all-asked"
    LOG_UNREADABLE = "kernel-log-unreadable"
    CALL_FAILED = "call-failed"
    LOST = "lost"
    RESET_REQUIRED = "reset-required"
    DRIVER_ERROR = "driver-error"
    RECOVERY_RESET = "recovery-reset"
    RECOVERY_REBOOT = "recovery-reboot"
    RECOVERY_DRAIN_P2P = "recovery-drain-p2p"
    RECOVERY_IMEX = "recovery-imex"
    RECOVERY_UNKNOWN = "recovery-unknown"
    RECOVERY_BLIND = "recovery-unsupported"
    XID_FATAL = "xid-fatal"
    XID_NVLINK = "xid-nvlink"
    XID_NVLINK_NONFATAL = "xid-nvlink-nonfatal"
    EVENT_FATAL = "event-fatal"
    OFF_THE_BUS = "off-the-bus"
    ECC_UNCORRECTED = "ecc-uncorrected"
    ECC_BEFORE = "ecc-uncorrected-before"
    ECC_AGGREGATE = "ecc-aggregate"
    ECC_STORM = "ecc-corrected-storm"
    SRAM_THRESHOLD = "sram-threshold"
    PAGES_PENDING = "pages-pending"
    PAGES_RETIRED = "pages-retired"
    REMAP_FAILED = "row-remap-failed"
    REMAP_PENDING = "row-remap-pending"
    ROWS_REMAPPED = "rows-remapped"
    ROWS_EXHAUSTED = "spare-rows-exhausted"
    ROWS_LOW = "spare-rows-low"
    UNREPAIRABLE = "memory-unrepairable"
    REPAIR_PENDING = "repair-pending"
    TOO_HOT = "too-hot"
    HOT = "hot"
    THROTTLED = "throttled"
    SLOWED = "slowed"
    PCIE_NARROW = "pcie-narrow"
    PCIE_SLOW = "pcie-slow"
    PCIE_REPLAYS = "pcie-replays"
    PCIE_FATAL = "pcie-fatal"
    NVLINK_DOWN = "nvlink-down"
    NVLINK_FAILED = "nvlink-failed"
    NVLINK_ERRORS = "nvlink-errors"
    FABRIC_STUCK = "fabric-stuck"
    FABRIC_FAILED = "fabric-failed"
    FABRIC_LIMITED = "fabric-limited"
    FABRIC_UNKNOWN = "fabric-unknown"
    COMPUTE_PROHIBITED = "compute-prohibited"
    COMPUTE_UNKNOWN = "compute-mode-unknown"
    MIG_PENDING = "mig-pending"
    PERSISTENCE_OFF = "persistence-off"
    MEMORY_LEAKED = "memory-leaked"
    TEST_AWAITED = "test-awaited"
    TEST_FAILED = "test-failed"
    TEST_HUNG = "test-hung"
    TEST_SKIPPED = "test-skipped"


class Proof(StrEnum):
    """What it takes, after three clean samples, before a GPU counts as recovered."""

    NONE = "none"  # the samples are the proof
    TEST = "test"  # the active test, on the idle GPU
    CLEARS = "clears"  # the active test is what clears the cause itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One row of the catalogue.

    `verdict` is what it does to the GPU (or the node), None for information. `at_once`: without a second sample. `links`: it
    matters only to endpoints of several GPUs; the node is then degraded, whatever `verdict` says for them.
    """

    verdict: GpuVerdict | None
    cause: str
    cure: str
    at_once: bool = False
    proof: Proof = Proof.NONE
    links: bool = False


_U, _D, _K, _I = GpuVerdict.UNHEALTHY, GpuVerdict.DEGRADED, GpuVerdict.UNKNOWN, None
_RESET = "drain the GPU, `nvidia-smi --gpu-reset`; reboot the node if that does not help"
_REBOOT = "drain and reboot the node"
_REPLACE = "drain the node and have the GPU replaced"


def _fatal(cause: str, cure: str, proof: Proof = Proof.NONE, *, links: bool = False) -> Reason:
    return Reason(verdict=_U, cause=cause, cure=cure, at_once=True, proof=proof, links=links)


def _reason(
    verdict: GpuVerdict | None, cause: str, cure: str, proof: Proof = Proof.NONE, *, links: bool = False
) -> Reason:
    return Reason(verdict=verdict, cause=cause, cure=cure, proof=proof, links=links)


def _unknown(cause: str, cure: str) -> Reason:
    return Reason(verdict=_K, cause=cause, cure=cure, at_once=True)


CATALOGUE: Mapping[Code, Reason] = {
    Code.HUNG: _fatal(
        "NVML did not answer within `gpu_timeout_seconds`; the prober was killed and is started anew",
        "look for Xid 119 and blocked tasks in the kernel log; reboot the node if it happens again",
    ),
    Code.UNKILLABLE: _fatal("a prober sits in the driver and outlives SIGKILL; no other is started", _REBOOT),
    Code.PROBER_DIED: _unknown(
        "the prober ended by itself: a crash in the driver's library", "look at the agent's log"
    ),
    Code.PROBER_KEEPS_DYING: _fatal("it ended twice in a row", "look at the agent's log; reinstall the driver"),
    Code.DRIVER_MISSING: _fatal(
        "the node has GPUs (on the bus, or by the setting `gpus`) and no driver is loaded, or its library is found nowhere",
        "install the driver; a library in another place: setting `nvidia_libraries`",
    ),
    Code.DRIVER_MISMATCH: _fatal(
        "library and kernel module are of different versions, as after an upgrade without a reboot",
        "unload the old module or reboot the node",
    ),
    Code.NOT_INSTALLED_YET: _unknown(
        "the driver is not installed, in the first ten minutes of a boot", "wait: the driver's DaemonSet installs it"
    ),
    Code.NVML_FAILED: _fatal("NVML cannot be initialised, or cannot count GPUs: it says lost, reset or error", _REBOOT),
    Code.NVML_REFUSED: _unknown(
        "NVML refuses with a code that says nothing of the hardware", "is the agent privileged?"
    ),
    Code.BUS_UNREADABLE: _unknown(
        "the PCI bus cannot be read in sysfs", "is the agent privileged? setting `pci_devices`"
    ),
    Code.GPUS_MISSING: _fatal("NVML shows fewer GPUs than the PCI bus", _REBOOT),
    Code.GPUS_WITHOUT_DRIVER: _fatal(
        "a GPU on the PCI bus has no driver bound to it", "load the driver, or reboot the node"
    ),
    Code.GPUS_FEWER: _fatal(
        "NVML shows fewer GPUs than the setting `gpus` demands", "reseat or replace the GPU; reboot"
    ),
    Code.GPUS_MORE: _reason(_I, "NVML shows more GPUs than the setting `gpus` names", "correct the setting"),
    Code.NOT_ALL_ASKED: _unknown("a sample does not hold every GPU", "report it"),
    Code.LOG_UNREADABLE: _reason(
        _I, "the kernel log cannot be read: Xids from before the agent's start are not seen", "is the agent privileged?"
    ),
    Code.CALL_FAILED: _unknown(
        "a call failed with a code that is not in our tables, or was not permitted", "report it"
    ),
    Code.LOST: _fatal("a call said GPU_IS_LOST (15): it has fallen off the bus", _REBOOT, Proof.TEST),
    Code.RESET_REQUIRED: _fatal("a call said RESET_REQUIRED (16)", _RESET, Proof.TEST),
    Code.DRIVER_ERROR: _fatal("a call said UNKNOWN (999): an internal error of the driver", _RESET, Proof.TEST),
    Code.RECOVERY_RESET: _fatal("the driver asks for a reset of the GPU or its bus", _RESET, Proof.TEST),
    Code.RECOVERY_REBOOT: _fatal("the driver asks for a reboot", _REBOOT, Proof.TEST),
    Code.RECOVERY_DRAIN_P2P: _fatal(
        "the driver asks to drain peer-to-peer traffic", "drain pods of several GPUs", links=True
    ),
    Code.RECOVERY_IMEX: Reason(
        verdict=_D, cause="the driver asks to recover the IMEX domain", cure="restart IMEX", at_once=True, links=True
    ),
    Code.RECOVERY_UNKNOWN: _fatal("the driver asks for an action this version does not know", _REBOOT, Proof.TEST),
    Code.RECOVERY_BLIND: _reason(_I, "the driver tells no recovery action (older than R565)", "update the driver"),
    Code.XID_FATAL: _fatal("an Xid that asks for a reset, a reboot or a repair", _RESET, Proof.TEST),
    Code.XID_NVLINK: _fatal("an Xid of NVLink that the driver does not call nonfatal", _RESET, Proof.TEST),
    Code.XID_NVLINK_NONFATAL: Reason(
        verdict=_D, cause="an Xid of NVLink that the driver calls nonfatal", cure="watch it", at_once=True, links=True
    ),
    Code.EVENT_FATAL: _fatal(
        "NVML told of fatal poison, a failed row retirement or an unavailable GPU", _RESET, Proof.TEST
    ),
    Code.OFF_THE_BUS: _fatal("the kernel log says that the GPU has fallen off the bus", _REBOOT, Proof.TEST),
    Code.ECC_UNCORRECTED: _reason(_U, "uncorrectable memory errors since the agent first looked", _RESET, Proof.CLEARS),
    Code.ECC_BEFORE: _reason(
        _D, "uncorrectable memory errors since the driver was loaded, before the agent looked", _RESET, Proof.CLEARS
    ),
    Code.ECC_AGGREGATE: _reason(_I, "uncorrectable memory errors in the life of the GPU", "nothing"),
    Code.ECC_STORM: _reason(_D, "more than 1000 corrected memory errors a second", _REPLACE),
    Code.SRAM_THRESHOLD: _reason(_U, "the GPU's own threshold of SRAM errors is exceeded", _REPLACE),
    Code.PAGES_PENDING: _reason(_U, "pages with double-bit errors wait for their retirement", _RESET),
    Code.PAGES_RETIRED: _reason(_U, "63 pages or more are retired", _REPLACE),
    Code.REMAP_FAILED: _reason(_U, "a memory row could not be remapped", _REPLACE),
    Code.REMAP_PENDING: _reason(_D, "a row waits to be remapped; what runs is not affected", _RESET),
    Code.ROWS_REMAPPED: _reason(_D, "512 rows or more were remapped after uncorrectable errors", _REPLACE),
    Code.ROWS_EXHAUSTED: _reason(_D, "a memory bank has no spare row left", _REPLACE),
    Code.ROWS_LOW: _reason(_I, "a memory bank has few spare rows left", "nothing yet"),
    Code.UNREPAIRABLE: _reason(_U, "the memory cannot be repaired", _REPLACE),
    Code.REPAIR_PENDING: _reason(_D, "a channel or TPC repair waits for a reset", _RESET),
    Code.TOO_HOT: _reason(_U, "at its shutdown temperature", "look at fans, air flow and power"),
    Code.HOT: _reason(_D, "at its slowdown temperature", "look at fans and air flow"),
    Code.THROTTLED: _reason(
        _D, "slowed down by heat or power brake in at least six of the last ten minutes", "look at cooling and power"
    ),
    Code.SLOWED: _reason(_I, "a hardware slowdown without heat or power brake", "nothing, if it passes"),
    Code.PCIE_NARROW: _reason(_D, "fewer PCIe lanes than GPU and slot have", "reseat the GPU; look at the riser"),
    Code.PCIE_SLOW: _reason(
        _D, "a lower PCIe generation than possible, under load", "reseat the GPU; look at the riser"
    ),
    Code.PCIE_REPLAYS: _reason(_D, "more PCIe replays than a bit error rate of 1e-12 explains", "reseat the GPU"),
    Code.PCIE_FATAL: _reason(_U, "a fatal PCIe error in the last ten minutes", _REBOOT, Proof.TEST),
    Code.NVLINK_DOWN: _reason(_U, "an NVLink is down that was up, or that this product needs", _RESET, links=True),
    Code.NVLINK_FAILED: _reason(_U, "an NVLink could not recover, in the last ten minutes", _RESET, links=True),
    Code.NVLINK_ERRORS: _reason(_D, "NVLink replays or recoveries in the last ten minutes", "watch it", links=True),
    Code.FABRIC_STUCK: _reason(
        _U, "the fabric has not come up for five minutes", "is the fabric manager running?", links=True
    ),
    Code.FABRIC_FAILED: _reason(
        _U, "the fabric could not be set up, or is unhealthy", "restart the fabric manager", links=True
    ),
    Code.FABRIC_LIMITED: _reason(
        _D, "the fabric works with less bandwidth or capacity", "look at switches", links=True
    ),
    Code.FABRIC_UNKNOWN: Reason(
        verdict=_K, cause="a fabric state that this version does not know", cure="report it", at_once=True, links=True
    ),
    Code.COMPUTE_PROHIBITED: _reason(_U, "the compute mode forbids every context", "`nvidia-smi -c 0`"),
    Code.COMPUTE_UNKNOWN: _unknown("a compute mode that this version does not know", "report it"),
    Code.MIG_PENDING: _reason(_D, "MIG is about to be switched at the next reset", _RESET),
    Code.PERSISTENCE_OFF: _reason(_I, "persistence mode is off: the first context is slow", "`nvidia-smi -pm 1`"),
    Code.MEMORY_LEAKED: _reason(_D, "over 500 MiB of its memory are in use for two minutes, and by no process", _RESET),
    Code.TEST_AWAITED: _unknown(
        "the start-up taint stands, and the active test has not passed", "wait until the GPU is idle"
    ),
    Code.TEST_FAILED: _fatal("the active test found a wrong result or a slow copy", _REPLACE, Proof.TEST),
    Code.TEST_HUNG: _fatal("the active test did not end in time", _REBOOT, Proof.TEST),
    Code.TEST_SKIPPED: _reason(_I, "the active test cannot be run here", "see the reason it tells"),
}
