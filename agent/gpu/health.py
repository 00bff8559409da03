"""What the GPU verdict remembers: bad news counts at once, recovery needs proof. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from agent.core.inventory import GpuReport, GpuVerdict
from agent.gpu.events import fatal
from agent.gpu.observation import Event, Observation, PciGpus, Sample
from agent.gpu.rules import judge

CLEAN_SAMPLES = 3  # in a row, before an unhealthy node counts as recovered


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The published report and what must be proved before a better one.

    `suspects` are UUIDs of GPUs with a fatal event ("" if it named none): each must show a readable recovery action of 0 in
    every clean sample. A GPU whose driver has no such field therefore stays unhealthy until the agent starts anew.
    """

    report: GpuReport = field(default_factory=GpuReport)
    sick: bool = False
    cause: str = ""
    clean: int = 0
    suspects: frozenset[str] = frozenset()


def after_sample(health: Health, seen: Observation, pci: PciGpus, wanted: int | None) -> Health:
    """Return the state after one observation."""
    now = judge(seen, pci, wanted)
    if now.verdict is GpuVerdict.UNHEALTHY:
        return Health(report=now, sick=True, cause=now.reason, suspects=health.suspects)
    if not health.sick:
        return Health(report=now)
    if now.verdict is GpuVerdict.UNKNOWN or not _cleared(health.suspects, seen):
        return replace(health, clean=0, report=_waiting(health, now))
    clean = health.clean + 1
    return Health(report=now) if clean >= CLEAN_SAMPLES else replace(health, clean=clean, report=_waiting(health, now))


def after_event(health: Health, event: Event) -> Health:
    """Return the state after an event of NVML: only a fatal one changes it."""
    why = fatal(event)
    if not why:
        return health
    return Health(
        report=GpuReport(verdict=GpuVerdict.UNHEALTHY, reason=why, count=health.report.count),
        sick=True,
        cause=why,
        suspects=health.suspects | {event.uuid},
    )


def _cleared(suspects: frozenset[str], seen: Observation) -> bool:
    gpus = seen.gpus if isinstance(seen, Sample) else ()
    suspected = [gpu for gpu in gpus if "" in suspects or gpu.uuid in suspects]
    found = {gpu.uuid for gpu in suspected} >= suspects - {""}
    return found and all(gpu.recovery == 0 for gpu in suspected)


def _waiting(health: Health, now: GpuReport) -> GpuReport:
    # the text does not count the samples: each change of it would be a write to the API server
    reason = f"{health.cause}; healthy again after {CLEAN_SAMPLES} clean samples"
    return GpuReport(verdict=GpuVerdict.UNHEALTHY, reason=reason, count=now.count)
