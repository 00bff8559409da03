"""From what stands to what the node says: a verdict per GPU, one for the node, and those for endpoints of one and of several. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.core.inventory import GpuReason, GpuReport, GpuState, GpuVerdict
from agent.gpu.findings import NODE, Key, name_of
from agent.gpu.observation import Gpu
from agent.gpu.reasons import CATALOGUE, Code, Proof

_WORST_FIRST = (GpuVerdict.UNHEALTHY, GpuVerdict.UNKNOWN, GpuVerdict.DEGRADED, GpuVerdict.HEALTHY, None)
_COUNTS = (
    Code.GPUS_MISSING,
    Code.GPUS_WITHOUT_DRIVER,
    Code.GPUS_FEWER,
)  # a GPU that is not there is one that is not fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Settings of the verdict: `wanted` GPUs (None: auto), `quorum` that must be healthy (None: all), `test` to recover."""

    wanted: int | None = None
    quorum: int | None = None
    test: bool = True


def verdict_of(code: Code) -> GpuVerdict:
    """Return what a reason does to one GPU; information does nothing."""
    return CATALOGUE[code].verdict or GpuVerdict.HEALTHY


def worst(verdicts: Iterable[GpuVerdict]) -> GpuVerdict:
    """Return the worst of them, healthy if there are none."""
    return min(verdicts, key=_WORST_FIRST.index, default=GpuVerdict.HEALTHY)


def report(stands: Mapping[Key, str], notes: Mapping[Key, str], gpus: Sequence[Gpu], policy: Policy) -> GpuReport:
    """Return the report. `stands` are the reasons with a verdict, `notes` the information, each with its text."""
    states = tuple(_state(gpu, stands, notes) for gpu in gpus)
    apart = {key: text for key, text in stands.items() if not CATALOGUE[key[0]].links}
    linked = {key: text for key, text in stands.items() if CATALOGUE[key[0]].links}
    alone = worst(verdict_of(code) for code, _ in apart)
    healthy = sum(all(name != name_of(gpu) for _, name in apart) for gpu in gpus)
    tolerated = policy.quorum is not None and healthy >= max(1, policy.quorum) and _only_gpus(apart)
    base = GpuVerdict.HEALTHY if tolerated else alone
    together = worst([base, *(verdict_of(code) for code, _ in linked)])
    lowest = worst(
        [base, GpuVerdict.DEGRADED if tolerated and apart else base, *([GpuVerdict.DEGRADED] if linked else [])]
    )
    return GpuReport(
        verdict=lowest,
        reason=_reason(stands, notes, gpus, policy),
        count=len(gpus),
        alone=base if base is not lowest else None,
        together=together if together is not lowest else None,
        usable=healthy if tolerated and apart else None,
        gpus=states,
        reasons=_reasons(NODE, stands, notes),
    )


def _only_gpus(stands: Iterable[Key]) -> bool:
    """Say whether all that stands is about single GPUs, or about how many there are."""
    return all(name != NODE or code in _COUNTS for code, name in stands)


def _state(gpu: Gpu, stands: Mapping[Key, str], notes: Mapping[Key, str]) -> GpuState:
    name = name_of(gpu)
    verdict = worst(verdict_of(code) for code, whose in stands if whose == name)
    return GpuState(index=gpu.index, uuid=gpu.uuid, verdict=verdict, reasons=_reasons(name, stands, notes))


def _reasons(name: str, stands: Mapping[Key, str], notes: Mapping[Key, str]) -> tuple[GpuReason, ...]:
    found = [
        GpuReason(code=code, verdict=CATALOGUE[code].verdict, text=text)
        for (code, whose), text in (*stands.items(), *notes.items())
        if whose == name
    ]
    return tuple(sorted(found, key=lambda reason: (_WORST_FIRST.index(reason.verdict), reason.code)))


def _reason(stands: Mapping[Key, str], notes: Mapping[Key, str], gpus: Sequence[Gpu], policy: Policy) -> str:
    if not stands:
        return _healthy(notes, len(gpus))
    titles = {name_of(gpu): f"GPU {gpu.index}" + (f" ({gpu.uuid})" if gpu.uuid else "") for gpu in gpus}
    order = {name_of(gpu): gpu.index for gpu in gpus}

    def rank(key: Key) -> tuple[int, int, Code]:
        return _WORST_FIRST.index(verdict_of(key[0])), order.get(key[1], -1), key[0]

    (code, name), *others = sorted(stands, key=rank)
    subject = f"{titles.get(name, f'GPU at {name}')}: " if name != NODE else ""
    after = "; ready again once the active test passes on the idle GPU" if policy.test and _needs_test(code) else ""
    more = f" (and {len(others)} more)" if others else ""
    return f"{subject}{stands[code, name]}{after}{more}"


def _needs_test(code: Code) -> bool:
    return CATALOGUE[code].proof is not Proof.NONE


def _healthy(notes: Mapping[Key, str], count: int) -> str:
    blind = sum(code is Code.RECOVERY_BLIND for code, _ in notes)
    words = ["1 GPU answers" if count == 1 else f"{count} GPUs answer"]
    words += [notes[Code.GPUS_MORE, NODE]] if (Code.GPUS_MORE, NODE) in notes else []
    words.append(f"{blind} without a recovery action" if blind else "nothing stands against them")
    return "; ".join(words)
