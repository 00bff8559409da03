"""What one observation finds, without memory of earlier verdicts. Pure, total, and closed: what cannot be read is never fine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from agent.gpu import checks_links, checks_memory, checks_state
from agent.gpu.checks import Check, Look
from agent.gpu.observation import NOT_APPLICABLE, Died, Gpu, Hung, Observation, PciGpus, Refused, Sample
from agent.gpu.questions import SLOW
from agent.gpu.reasons import Code
from agent.gpu.tracks import Track

Key = tuple[Code, str]  # the reason, and whom it is about: a GPU by `name_of`, "" for the node
NODE = ""
NOT_LOADED, LIBRARY_NOT_FOUND, MISMATCH = 9, 12, 18
INSTALLING_SECONDS = 600.0  # after a boot: the driver's DaemonSet may still be at work
CODES = {
    1: "not initialised",
    4: "permission denied",
    9: "the driver is not loaded",
    10: "timeout",
    12: "libnvidia-ml.so.1 was not found",
    15: "the GPU is lost",
    16: "the GPU needs a reset",
    18: "library and kernel driver are of different versions",
    999: "unknown error of the driver",
}
_REFUSALS = {9: Code.DRIVER_MISSING, 12: Code.DRIVER_MISSING, 18: Code.DRIVER_MISMATCH}
_SICK = {15: Code.LOST, 16: Code.RESET_REQUIRED, 999: Code.DRIVER_ERROR}
CALL_CODES = (*_SICK.values(), Code.CALL_FAILED)
NODE_CODES = (
    Code.HUNG, Code.UNKILLABLE, Code.PROBER_DIED, Code.PROBER_KEEPS_DYING, Code.DRIVER_MISSING, Code.DRIVER_MISMATCH,
    Code.NOT_INSTALLED_YET, Code.NVML_FAILED, Code.NVML_REFUSED, Code.BUS_UNREADABLE, Code.GPUS_MISSING,
    Code.GPUS_WITHOUT_DRIVER, Code.GPUS_FEWER, Code.GPUS_MORE, Code.NOT_ALL_ASKED, Code.LOG_UNREADABLE,
)  # fmt: skip
CHECKS: tuple[Check, ...] = (*checks_state.CHECKS, *checks_memory.CHECKS, *checks_links.CHECKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What else is known at that moment: bus, the setting `gpus` (None: auto), seconds since the boot.

    `most` is the largest number of GPUs the bus has shown; `log` is False where the kernel log cannot be read. `tainted` tells
    whether the start-up taint stands: None is not known, and to be waited for; after a while it is `presumed` not to.
    """

    pci: PciGpus = field(default_factory=PciGpus)
    wanted: int | None = None
    uptime_seconds: float = INSTALLING_SECONDS
    most: int = 0
    log: bool = True
    tainted: bool | None = False
    presumed: bool = False

    @property
    def expects_gpus(self) -> bool:
        """Say whether this node must have GPUs: the bus shows or has shown one, or the setting names a number."""
        return bool(self.pci.present) or bool(self.wanted) or self.most > self.pci.guests


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Texts of what was found, by key, and the keys that were looked for."""

    found: Mapping[Key, str] = field(default_factory=dict)
    made: frozenset[Key] = frozenset()


def name_of(gpu: Gpu) -> str:
    """Return the key of a GPU: its UUID, or its index as long as that is not known."""
    return gpu.uuid or f"#{gpu.index}"


def told(code: int) -> str:
    """Return an NVML code in words."""
    return f"{CODES[code]} (code {code})" if code in CODES else f"code {code}"


def look_at(
    seen: Observation, gpus: tuple[Gpu, ...], tracks: Mapping[str, Track], around: Around, at: float
) -> Findings:
    """Return what is wrong. `gpus` are the sample's, with what is known of them from before; `tracks` are up to date."""
    found: dict[Key, str] = {}
    made: set[Key] = set()
    for code, text in _node(seen, around):
        found.setdefault((code, NODE), text)
    if isinstance(seen, Sample) and not seen.count_code:
        made |= {(code, NODE) for code in (*NODE_CODES, *CALL_CODES)}
        for gpu in gpus:
            _look_at_gpu(gpu, tracks[name_of(gpu)], at, found, made, depth=seen.depth)
    return Findings(found=found, made=frozenset(made))


def is_none(seen: Observation, around: Around) -> bool:
    """Say whether this node has no GPU and is not expected to have one."""
    if around.expects_gpus or not around.pci.readable:
        return False
    return (isinstance(seen, Refused) and seen.code in (NOT_LOADED, LIBRARY_NOT_FOUND)) or (
        isinstance(seen, Sample) and not seen.count_code and seen.count == 0
    )


def _look_at_gpu(gpu: Gpu, track: Track, at: float, found: dict[Key, str], made: set[Key], *, depth: int) -> None:
    name = name_of(gpu)
    if gpu.code:
        found[_SICK.get(gpu.code, Code.CALL_FAILED), name] = f"{gpu.call}: {told(gpu.code)}"
        return
    for question, answer in gpu.answers.items():
        if answer.code and answer.code not in NOT_APPLICABLE:
            found.setdefault((_SICK.get(answer.code, Code.CALL_FAILED), name), f"{question}: {told(answer.code)}")
    if depth >= SLOW:  # only then was every question asked again
        made |= {(code, name) for code in CALL_CODES}
    if (recovery := gpu.answers.get("recovery")) and recovery.code in (0, *NOT_APPLICABLE):
        made.add((Code.RECOVERY_BLIND, name))
        if recovery.code:
            found[Code.RECOVERY_BLIND, name] = "the driver tells no recovery action"
    look = Look(gpu=gpu, track=track, at=at)
    for check in CHECKS:
        if check.made(gpu):
            made |= {(code, name) for code in check.finds}
            for code, text in check.judge(look):
                found.setdefault((code, name), text)


def _node(seen: Observation, around: Around) -> Iterator[tuple[Code, str]]:
    if not around.pci.readable:
        yield Code.BUS_UNREADABLE, "the PCI bus cannot be read"
    if not around.log and around.expects_gpus:
        yield Code.LOG_UNREADABLE, "the kernel log cannot be read"
    match seen:
        case Sample():
            yield from _sample(seen, around)
        case Refused(code=code):
            yield from _refused(code, around)
        case Hung(unkillable=True):
            yield Code.UNKILLABLE, f"hung: process {seen.pid} sits in the driver and cannot be killed"
        case Hung():
            yield Code.HUNG, f"hung: NVML has not answered for {seen.seconds:g} s"
        case Died():
            ending = f"signal {-seen.status}" if seen.status < 0 else f"exit status {seen.status}"
            reason = Code.PROBER_KEEPS_DYING if seen.times > 1 else Code.PROBER_DIED
            yield reason, f"the NVML prober {'keeps dying' if seen.times > 1 else 'died'} ({ending})"


def _refused(code: int, around: Around) -> Iterator[tuple[Code, str]]:
    if is_none(Refused(code=code), around):
        return
    text = f"NVML refused to start: {told(code)}"
    if code in (NOT_LOADED, LIBRARY_NOT_FOUND) and around.uptime_seconds < INSTALLING_SECONDS:
        yield Code.NOT_INSTALLED_YET, f"not installed yet: {told(code)}"
    elif code in _REFUSALS and around.expects_gpus:
        yield _REFUSALS[code], text
    elif code in _SICK and around.expects_gpus:
        yield Code.NVML_FAILED, text
    else:
        yield Code.NVML_REFUSED, text


def _sample(sample: Sample, around: Around) -> Iterator[tuple[Code, str]]:
    for code, what in ((sample.count_code, "cannot count the GPUs"), (sample.driver_code, "cannot tell its version")):
        if code and not (what != "cannot count the GPUs" and code in NOT_APPLICABLE):
            sick = code in _SICK or code in _REFUSALS
            yield Code.NVML_FAILED if sick else Code.NVML_REFUSED, f"NVML {what}: {told(code)}"
    if sample.count_code:
        return
    present, bound, shown = len(around.pci.present), len(around.pci.bound), len(around.pci.present) + around.pci.guests
    if sample.count < bound:
        yield Code.GPUS_MISSING, f"NVML shows {sample.count} of the {bound} GPUs that the PCI bus shows"
    elif sample.count < present:
        yield Code.GPUS_WITHOUT_DRIVER, f"{present - sample.count} of {present} GPUs on the PCI bus have no driver"
    elif around.pci.readable and shown < around.most:
        yield Code.GPUS_MISSING, f"the PCI bus shows {shown} of the {around.most} GPUs that it has shown"
    if around.wanted is not None and sample.count != around.wanted:
        few = sample.count < around.wanted
        text = f"NVML shows {sample.count} GPUs, the setting gpus wants {around.wanted}"
        yield Code.GPUS_FEWER if few else Code.GPUS_MORE, text
    if len(sample.gpus) != sample.count:
        yield Code.NOT_ALL_ASKED, f"only {len(sample.gpus)} of {sample.count} GPUs were asked"
