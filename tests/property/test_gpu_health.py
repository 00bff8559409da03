"""The GPU verdict over random faults and recoveries: never ready over a fatal cause, always ready again, and no write too many."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.inventory import GpuVerdict
from agent.gpu.findings import Around
from agent.gpu.health import CLEAN_SAMPLES, Health, after_event, after_sample, after_test
from agent.gpu.observation import (
    Answer,
    Died,
    Event,
    Gpu,
    Hung,
    LogEvent,
    Observation,
    Outcome,
    PciGpus,
    Refused,
    Sample,
    TestResult,
)
from agent.gpu.questions import QUICK, SLOW
from agent.gpu.report import Policy

GPUS = 2
PCI = tuple(f"0000:{0x10 + n:02x}:00.0" for n in range(GPUS))
AROUND = Around(pci=PciGpus(present=PCI, bound=PCI))
OBSERVATIONS: dict[str, Observation] = {
    "hang": Hung(pid=1, seconds=10),
    "stuck": Hung(pid=1, seconds=10, unkillable=True),
    "death": Died(status=-6),
    "refusal": Refused(code=999),
}
SICK = ("recovery", "lost", "remap", "ecc", "prohibited")  # conditions of one GPU, as the samples show them
AT_ONCE = ("recovery", "lost")
HEALS = CLEAN_SAMPLES + 2 + CLEAN_SAMPLES


@dataclass
class Card:
    """One GPU as it is, whatever is known of it."""

    sick: set[str] = field(default_factory=set)
    errors: int = 0
    busy: bool = False
    unproved: int = 0  # clean samples still missing since the last fatal event; 1: only the test is
    suspect: bool = False

    def seen(self, index: int, depth: int) -> Gpu:
        base = {"index": index, "uuid": f"GPU-{index}", "pci": PCI[index]}
        if "lost" in self.sick:
            return Gpu(**base, answers={"recovery": Answer(15), "ecc": Answer(15)})  # type: ignore[arg-type]
        answers: dict[str, tuple[int, ...]] = {
            "recovery": (2 if "recovery" in self.sick else 0,),
            "ecc": (self.errors,),
        }
        if depth >= SLOW:
            answers |= {
                "remap": (0, 0, 0, int("remap" in self.sick)),
                "compute_mode": (2 * ("prohibited" in self.sick),),
            }
        return Gpu(**base, answers={name: Answer(0, values) for name, values in answers.items()})  # type: ignore[arg-type]


class World:
    """Two GPUs, what befalls them, and the verdict that follows."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.cards = [Card() for _ in range(GPUS)]
        self.trouble = ""
        self.health = Health()
        self.at = 0.0
        self.changes = 0
        self.writes = -1  # the first verdict is no change

    def become(self, health: Health) -> None:
        before, now = self.health.report, health.report
        self.writes += (before.verdict, before.reason) != (now.verdict, now.reason)
        self.health = health

    def poll(self, depth: int = SLOW) -> None:
        self.at += 5
        gpus = tuple(card.seen(n, depth) for n, card in enumerate(self.cards))
        seen = OBSERVATIONS.get(self.trouble) or Sample(depth=depth, driver="580", count=GPUS, gpus=gpus)
        self.become(after_sample(self.health, seen, AROUND, self.at, self.policy))
        self.judge(sampled=not self.trouble)
        for gpu in self.health.due(self.policy):
            card = self.cards[gpu.index]
            if not card.busy:
                outcome = Outcome.FAILED if card.sick else Outcome.PASSED
                card.suspect = card.suspect and outcome is not Outcome.PASSED
                self.become(after_test(self.health, gpu.uuid, TestResult(outcome=outcome, text="tested"), self.policy))

    def judge(self, *, sampled: bool) -> None:
        """No fatal cause stands under a good verdict."""
        for card in self.cards:
            calm = sampled and not card.sick & set(AT_ONCE)
            card.unproved = max(0, card.unproved - 1) if calm else (CLEAN_SAMPLES if card.unproved else 0)
            if card.suspect and not self.policy.test and not card.unproved:
                card.suspect = False
        if self.health.report.verdict is GpuVerdict.HEALTHY:
            assert not self.trouble
            assert not any(card.sick & set(AT_ONCE) or card.suspect for card in self.cards)

    def event(self, index: int, event: Event | LogEvent) -> None:
        self.become(after_event(self.health, event, self.policy))
        self.cards[index].suspect = True
        self.cards[index].unproved = CLEAN_SAMPLES
        assert self.health.report.verdict is GpuVerdict.UNHEALTHY

    def befall(self, what: str, index: int) -> None:
        card = self.cards[index]
        self.changes += what not in ("quick", "poll")
        if what in SICK:
            card.sick ^= {what}
            card.errors = (
                card.errors + 1 if what == "ecc" and "ecc" in card.sick else 0 if what == "ecc" else card.errors
            )
        elif what == "busy":
            card.busy = not card.busy
        elif what == "xid":
            self.event(index, Event(uuid=f"GPU-{index}", type=0x8, data=79))
        elif what == "log":
            self.event(index, LogEvent(pci=PCI[index], xid=48))
        elif what in OBSERVATIONS:
            self.trouble = "" if self.trouble else what
        self.poll(QUICK if what == "quick" else SLOW)

    def heal(self) -> None:
        """All is well again: no cause, no trouble, idle."""
        self.trouble = ""
        for card in self.cards:
            card.sick.clear()
            card.busy = False
            card.errors = 0


EVENTS = [*SICK, *SICK, "busy", "xid", "log", *OBSERVATIONS, "quick", "poll"]
STORIES = st.binary(min_size=1, max_size=12)  # of one byte an event: drawing each by itself takes longer than living it


@settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(STORIES)
def test_never_ready_over_a_fatal_cause_and_always_ready_again(drawn: bytes) -> None:
    tested, trusted = bool(drawn[0] & 1), bool(drawn[0] & 2)
    story = [(EVENTS[byte // GPUS % len(EVENTS)], byte % GPUS) for byte in drawn[1:]]
    world = World(Policy(test=tested))
    if trusted:
        world.poll()
        assert world.health.report.verdict is GpuVerdict.HEALTHY
    for what, index in story:
        world.befall(what, index)
    assert world.writes <= 2 * world.changes + 1  # each change is told once, and its end once
    world.heal()
    for _ in range(HEALS):
        world.poll()
        if world.health.report.verdict is GpuVerdict.HEALTHY:
            break
    assert world.health.report.verdict is GpuVerdict.HEALTHY, world.health.report.reason
    settled = world.health.report
    world.poll()
    assert world.health.report == settled
