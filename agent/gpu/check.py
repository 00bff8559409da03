"""One look at this machine's GPUs, without an agent: what `prewarm gpu check` does."""

from __future__ import annotations

import random
import time

from agent.config import Settings
from agent.core.clock import SystemClock
from agent.core.inventory import GpuReport, GpuVerdict
from agent.gpu.findings import Around
from agent.gpu.health import CLEAN_SAMPLES, Health, after_event, after_sample, after_test
from agent.gpu.kept import KeptFaults
from agent.gpu.kernel_log import KernelLog
from agent.gpu.observation import LogEvent, Sample
from agent.gpu.pci import PciBus
from agent.gpu.probe import start_prober
from agent.gpu.proofs import Proofs
from agent.gpu.questions import SLOW
from agent.gpu.service import policy_of
from agent.gpu.standing import StandingProbe
from agent.gpu.tester import CudaTest, why_never, why_not_now

AGAIN_SECONDS = 1.0  # until the next look at what may have been cleared


async def check_gpus(settings: Settings, boot_id: str, *, test: bool) -> tuple[GpuReport, dict[int, str]]:
    """Look once and return the report; with `test` also run the active test on every idle GPU, and return what each said.

    A single bad sample counts, an Xid of this boot whose GPU has not been proved since, and what an agent has left standing in
    this boot; with `test` it is looked twice more where something stands, so that a GPU that is well again can prove it. Errors that show as a rate need the agent, which
    looks again and again.
    """
    clock, policy = SystemClock(), policy_of(settings)
    proofs, lines = Proofs(settings.root / "gpu-proofs.json", boot_id), list[LogEvent]()
    proofs.load()
    log = KernelLog(settings.kernel_log, lines.append, clock=clock)
    probe = StandingProbe(
        lambda heard: start_prober(heard, libraries=settings.nvidia_libraries),
        lambda event: None,
        timeout_seconds=settings.gpu_timeout_seconds,
        clock=clock,
        rng=random.Random(),  # noqa: S311 (jitter, no secret)
    )
    await log.open()
    log.close()
    health = Health(faults=KeptFaults(settings.root / "gpu-faults.json", boot_id).load())
    for line in lines:
        health = health if proofs.covers(line) else after_event(health, line, policy)
    pci = PciBus(settings.pci_devices).gpus()
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    around = Around(pci=pci, wanted=policy.wanted, uptime_seconds=uptime, log=log.readable)
    told: dict[int, str] = {}
    try:
        seen = await probe.observe(SLOW, pci.driver)
        if seen is not None:
            health = after_sample(health, seen, around, clock.monotonic(), policy)
        for _ in range(CLEAN_SAMPLES - 1 if test and health.faults else 0):
            await clock.sleep(AGAIN_SECONDS)
            if (seen := await probe.observe(SLOW, pci.driver)) is not None:
                health = after_sample(health, seen, around, clock.monotonic(), policy)
        if test and isinstance(seen, Sample):
            run = CudaTest(libraries=lambda: ":".join(p for p in (probe.library, settings.nvidia_libraries) if p))
            for gpu in health.gpus:
                if reason := why_never(gpu) or why_not_now(gpu):
                    told[gpu.index] = f"skipped: {reason}"
                    continue
                result = await run(gpu)
                told[gpu.index] = f"{result.outcome}: {result.text}"
                health = after_test(health, gpu.uuid, result, policy)
    finally:
        await probe.drop()
    return health.report, told


def exit_code(verdict: GpuVerdict) -> int:
    """Return what `prewarm gpu` ends with: 0 healthy, 3 degraded, 4 unhealthy, 5 unknown, 6 no GPU."""
    order = (GpuVerdict.DEGRADED, GpuVerdict.UNHEALTHY, GpuVerdict.UNKNOWN, GpuVerdict.NONE)
    return 0 if verdict is GpuVerdict.HEALTHY else 3 + order.index(verdict)
