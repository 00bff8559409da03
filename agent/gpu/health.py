"""What the GPU verdict remembers: bad news counts at once or in two samples of three, recovery needs a cleared cause and a proof. Pure.

Three functions take a Health to the next one: `after_sample`, `after_event`, `after_test`. Nothing that stands goes away by
silence: only by three samples in which its question was answered and the answer was good, and, where the catalogue says so,
by a passed active test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from agent.core.inventory import GpuReport, GpuVerdict
from agent.gpu.events import meaning
from agent.gpu.findings import NODE, Around, Findings, Key, is_none, look_at, name_of
from agent.gpu.observation import NOT_APPLICABLE, Event, Gpu, LogEvent, Observation, Outcome, Sample, TestResult
from agent.gpu.reasons import CATALOGUE, Code, Proof
from agent.gpu.report import Policy, report
from agent.gpu.tracks import Track

CLEAN_SAMPLES = 3  # in a row, before a cause counts as cleared
DOUBTS, DOUBTED = 3, 2  # a reason that is not at once needs two samples of three
_TEST_FOUND = {Outcome.FAILED: Code.TEST_FAILED, Outcome.HUNG: Code.TEST_HUNG}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A reason that stands. `event`: no sample shows it again; it is clean while the driver asks for no recovery."""

    text: str
    event: bool = False
    clean: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Everything that stands, is doubted or noted, and the report made of it.

    `trusted` turns True with the first good verdict: until then a single bad sample counts. `settled` turns True when it is
    known that no start-up taint stands, or every GPU has passed its test (`passed`).
    """

    report: GpuReport = field(default_factory=GpuReport)
    faults: Mapping[Key, Fault] = field(default_factory=dict)
    doubts: Mapping[Key, tuple[bool, ...]] = field(default_factory=dict)
    notes: Mapping[Key, str] = field(default_factory=dict)
    tracks: Mapping[str, Track] = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = ()
    most: int = 0
    trusted: bool = False
    settled: bool = False
    passed: frozenset[str] = frozenset()

    @property
    def close_look(self) -> bool:
        """Say whether the next sample should ask everything: something is doubted, or on its way to be cleared."""
        return bool(self.doubts) or any(0 < f.clean < CLEAN_SAMPLES for f in self.faults.values())

    def due(self, policy: Policy) -> tuple[Gpu, ...]:
        """Return the GPUs for which an active test is all that is missing; it needs them idle."""
        if not policy.test or any(name == NODE and code is not Code.TEST_AWAITED for code, name in self.faults):
            return ()
        return tuple(gpu for gpu in self.gpus if not gpu.code and gpu.uuid and _only_test_missing(self, gpu))


def after_sample(health: Health, seen: Observation, around: Around, at: float, policy: Policy) -> Health:
    """Return the state after one observation at `at` (monotonic seconds)."""
    around = replace(around, wanted=policy.wanted, most=max(health.most, len(around.pci.present) + around.pci.guests))
    if is_none(seen, around) and not any(fault.event for fault in health.faults.values()):
        none = GpuReport(verdict=GpuVerdict.NONE, reason="no GPU on the PCI bus, and none that NVML shows")
        return Health(report=none, settled=True)
    health = replace(health, most=around.most)
    sampled = isinstance(seen, Sample) and not seen.count_code
    if isinstance(seen, Sample) and sampled:
        health = _recognised(health, seen, at)
        health = replace(health, settled=health.settled or not policy.test or around.tainted is False)
    found = look_at(seen, health.gpus, health.tracks, around, at)
    found = _awaiting_test(health, found, around) if sampled else found
    faults = {
        key: _again(key, fault, found, health.gpus, policy, sampled=sampled) for key, fault in health.faults.items()
    }
    faults = {key: fault for key, fault in faults.items() if not _over(key, fault, found, policy)}
    doubts = dict(health.doubts)
    for key in sorted(found.found.keys() | (health.doubts.keys() & found.made)):
        if CATALOGUE[key[0]].verdict is None or key in faults:
            continue
        if key in found.found and (CATALOGUE[key[0]].at_once or not health.trusted):
            faults[key] = Fault(text=found.found[key])
        else:
            _doubt(doubts, faults, key, found)
    doubts = {key: row for key, row in doubts.items() if key not in faults}
    return _told(replace(health, faults=faults, doubts=doubts, notes=_noted(health.notes, found)), policy)


def after_event(health: Health, event: Event | LogEvent, policy: Policy) -> Health:
    """Return the state after an event of NVML or a line of the kernel log: only one that gives a reason changes it."""
    found = meaning(event)
    if found is None:
        return health
    code, text = found
    whose = _whose(event, health.gpus)
    faults = dict(health.faults)
    twin = faults.get((Code.XID_NVLINK_NONFATAL, whose))
    if code is Code.XID_NVLINK and isinstance(event, Event) and twin and twin.text == text:
        return health  # the kernel log has told of the same, and knows better
    if code is Code.XID_NVLINK_NONFATAL and (twin := faults.get((Code.XID_NVLINK, whose))) and twin.text == text:
        del faults[Code.XID_NVLINK, whose]
    if code is Code.OFF_THE_BUS and (Code.XID_FATAL, whose) in faults:
        return health
    standing = faults.get((code, whose))
    faults[code, whose] = Fault(text=standing.text if standing else text, event=True)
    return _told(replace(health, faults=faults), policy)


def after_test(health: Health, uuid: str, result: TestResult, policy: Policy) -> Health:
    """Return the state after an active test of one GPU; one that was skipped is not passed."""
    faults, notes, tracks = dict(health.faults), dict(health.notes), dict(health.tracks)
    passed = health.passed
    notes.pop((Code.TEST_SKIPPED, uuid), None)
    if result.outcome is Outcome.PASSED:
        faults = {key: fault for key, fault in faults.items() if not (key[1] == uuid and _proved_by_test(key, fault))}
        tracks[uuid] = tracks.get(uuid, Track()).after_test()
        passed |= {uuid}
    elif result.outcome is Outcome.SKIPPED:
        if result.lasting:  # what can never be tested is judged by the passive checks alone, at the start
            notes[Code.TEST_SKIPPED, uuid] = f"the active test is skipped: {result.text}"
            faults.pop((Code.TEST_AWAITED, uuid), None)
            passed |= {uuid}
    else:
        code = _TEST_FOUND[result.outcome]
        faults[code, uuid] = Fault(text=f"the active test {result.outcome}: {result.text}", event=True)
    return _told(replace(health, faults=faults, notes=notes, tracks=tracks, passed=passed), policy)


def recovered(before: Health, after: Health) -> frozenset[str]:
    """Return the GPUs (by UUID) that events stood against, and none does any more."""
    stood, stands = ({name for (_, name), fault in h.faults.items() if fault.event} for h in (before, after))
    return frozenset(stood - stands - {NODE})


def outlives_the_agent(key: Key) -> bool:
    """Say whether a fault has to stand also for the next agent: it is a GPU's, by UUID, and only an active test ends it."""
    code, name = key
    return CATALOGUE[code].proof is Proof.TEST and name != NODE and "#" not in name and ":" not in name


def unproved(health: Health) -> Mapping[Key, Fault]:
    """Return the faults that outlive the agent, without the clean samples that it has seen: the next one starts with them."""
    return {key: replace(fault, clean=0) for key, fault in health.faults.items() if outlives_the_agent(key)}


def _recognised(health: Health, sample: Sample, at: float) -> Health:
    """Take in who the GPUs are: one that cannot be asked keeps the name it had; what was said of a place is said of its GPU."""
    known = {gpu.index: gpu for gpu in health.gpus}
    gpus = tuple(
        replace(gpu, uuid=known[gpu.index].uuid, pci=known[gpu.index].pci)
        if not gpu.uuid and gpu.index in known and len(known) == sample.count
        else gpu
        for gpu in sample.gpus
    )
    names = {f"#{gpu.index}": name_of(gpu) for gpu in gpus} | {gpu.pci: name_of(gpu) for gpu in gpus if gpu.pci}

    shown = {NODE, *names.values()}

    def renamed(key: Key) -> Key:
        return key[0], names.get(key[1], key[1])

    return replace(
        health,
        gpus=gpus,
        tracks={name_of(gpu): health.tracks.get(name_of(gpu), Track()).after(gpu, at) for gpu in gpus},
        faults={renamed(key): fault for key, fault in health.faults.items()},
        doubts={key: row for key, row in health.doubts.items() if key[1] in shown},
        notes={key: text for key, text in health.notes.items() if key[1] in shown},
    )


def _awaiting_test(health: Health, found: Findings, around: Around) -> Findings:
    """Add what the start-up taint demands: every GPU's test before the first pod."""
    names = [name_of(gpu) for gpu in health.gpus]
    awaited: dict[Key, str] = {}
    if not health.settled and around.tainted is None and not around.presumed:
        awaited[Code.TEST_AWAITED, NODE] = "it is not known yet whether the start-up taint stands"
    elif not health.settled and around.tainted:
        awaited = {
            (Code.TEST_AWAITED, name): "the active test has to pass before the start-up taint is lifted"
            for name in names
            if name not in health.passed
        }
    made = found.made | {(Code.TEST_AWAITED, name) for name in (NODE, *names)}
    return replace(found, found={**found.found, **awaited}, made=made)


def _again(key: Key, fault: Fault, found: Findings, gpus: tuple[Gpu, ...], policy: Policy, *, sampled: bool) -> Fault:
    """Return a standing fault after one more observation."""
    clean = 0  # an observation that answers nothing breaks the row
    if key in found.found:
        return Fault(text=found.found[key], event=fault.event)
    if sampled and fault.event:
        clean = fault.clean + 1 if _asks_nothing(key[1], gpus, policy) else 0
    elif sampled:
        clean = fault.clean + 1 if key in found.made else fault.clean
    return Fault(text=fault.text, event=fault.event, clean=clean)


def _asks_nothing(name: str, gpus: Iterable[Gpu], policy: Policy) -> bool:
    """Say whether the driver asks for no recovery of that GPU (of any, if none was named), and says so."""
    suspects = [gpu for gpu in gpus if name in (NODE, name_of(gpu))]
    return bool(suspects) and all(_quiet(gpu, policy) for gpu in suspects)


def _quiet(gpu: Gpu, policy: Policy) -> bool:
    answer = gpu.answers.get("recovery")
    if gpu.code or answer is None:
        return False
    return answer.values == (0,) if answer.code == 0 else policy.test and answer.code in NOT_APPLICABLE


def _over(key: Key, fault: Fault, found: Findings, policy: Policy) -> bool:
    """Say whether a fault has ended, by the samples alone."""
    if key[0] is Code.TEST_AWAITED:
        return key in found.made and key not in found.found
    tested = policy.test and CATALOGUE[key[0]].proof is Proof.TEST and key[1] != NODE
    return fault.clean >= CLEAN_SAMPLES and not tested


def _proved_by_test(key: Key, fault: Fault) -> bool:
    proof = CATALOGUE[key[0]].proof
    return (
        key[0] is Code.TEST_AWAITED or (proof is Proof.TEST and fault.clean >= CLEAN_SAMPLES) or proof is Proof.CLEARS
    )


def _only_test_missing(health: Health, gpu: Gpu) -> bool:
    name = name_of(gpu)
    missing = [_proved_by_test(key, fault) for key, fault in health.faults.items() if key[1] == name]
    others = [
        key
        for key, fault in health.faults.items()
        if key[1] == name and not _proved_by_test(key, fault) and _keeps_from_test(key[0])
    ]
    return any(missing) and not others and _quiet(gpu, Policy())


def _keeps_from_test(code: Code) -> bool:
    reason = CATALOGUE[code]
    return not reason.links and reason.verdict in (GpuVerdict.UNHEALTHY, GpuVerdict.UNKNOWN)


def _doubt(doubts: dict[Key, tuple[bool, ...]], faults: dict[Key, Fault], key: Key, found: Findings) -> None:
    """Remember one more sample of a reason that is not at once; the second of three makes it stand."""
    row = (*doubts.get(key, ()), key in found.found)[-DOUBTS:]
    if sum(row) >= DOUBTED:
        faults[key] = Fault(text=found.found.get(key, "seen twice"))
    elif any(row):
        doubts[key] = row
    else:
        doubts.pop(key, None)


def _noted(notes: Mapping[Key, str], found: Findings) -> Mapping[Key, str]:
    kept = {key: text for key, text in notes.items() if key not in found.made}
    return kept | {key: text for key, text in found.found.items() if CATALOGUE[key[0]].verdict is None}


def _whose(event: Event | LogEvent, gpus: Iterable[Gpu]) -> str:
    if isinstance(event, Event):
        return event.uuid or NODE
    return next((name_of(gpu) for gpu in gpus if gpu.pci == event.pci), event.pci or NODE)


def _told(health: Health, policy: Policy) -> Health:
    stands = {key: fault.text for key, fault in health.faults.items()}
    now = report(stands, health.notes, health.gpus, policy)
    if not health.gpus and not stands:
        now = GpuReport()
    return replace(health, report=now, trusted=health.trusted or now.verdict is GpuVerdict.HEALTHY)
