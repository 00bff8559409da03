"""What was seen of this node's GPUs: values parsed once from the children's JSON lines, from sysfs and from the kernel log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from agent.core.errors import PrewarmError, cut

MAX_GPUS = 256  # more is nonsense, and would be held in memory
MAX_ANSWERS, MAX_VALUES = 64, 64
NOT_APPLICABLE = (
    3,
    13,
    25,
)  # NOT_SUPPORTED, FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH: the product or driver has no such


class Answer(NamedTuple):
    """NVML's answer to one question of `agent.gpu.questions`: its code (0: the values hold) and the values."""

    code: int
    values: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU: `code` is the first call that failed (`call`) before any question could be asked, 0 if none."""

    index: int
    uuid: str = ""
    pci: str = ""  # as in sysfs: 0000:3b:00.0
    name: str = ""
    call: str = ""
    code: int = 0
    answers: Mapping[str, Answer] = field(default_factory=dict)

    def asked(self, question: str) -> bool:
        """Say whether there is a value: asked, answered, applicable."""
        answer = self.answers.get(question)
        return answer is not None and answer.code == 0

    def values(self, question: str) -> tuple[int, ...] | None:
        """Return the values, None if there are none (not asked, failed or not applicable)."""
        answer = self.answers.get(question)
        return answer.values if answer and answer.code == 0 and answer.values else None

    def value(self, question: str) -> int | None:
        """Return the first of the values."""
        values = self.values(question)
        return values[0] if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The prober has called nvmlInit; `watching` says whether it will tell of events; `library` is where the library lay.

    `library` is "" if the loader found it by itself.
    """

    init: int
    watching: bool = False
    library: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One round of questions, up to `depth`; codes are NVML's, 0 for success."""

    depth: int = 0
    driver: str = ""
    driver_code: int = 0
    count: int = 0
    count_code: int = 0
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """NVML told of something: `type` is one bit of nvmlEventType, `data` the Xid if that bit is 0x8."""

    uuid: str
    type: int
    data: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEvent:
    """The kernel log told of an Xid, or (0) that a GPU has fallen off the bus; `pci` is "" if it did not say which."""

    pci: str
    xid: int = 0
    nonfatal: bool = False  # the driver's own word in the line
    seq: int = 0  # of the record, rising


class Outcome(StrEnum):
    """How an active test ended."""

    PASSED = "passed"
    FAILED = "failed"  # the GPU computed, copied or remembered something wrong, or too slowly
    SKIPPED = "skipped"  # it could not be run: says nothing
    HUNG = "hung"


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """The end of one active test on one GPU, with what it found in words; `lasting` if a later try would be skipped too."""

    __test__ = False  # it is no test of pytest's

    outcome: Outcome
    text: str = ""
    lasting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Deaf:
    """Waiting for events failed with this code; the prober goes on trying."""

    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """nvmlInit failed, or the library could not be loaded."""

    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hung:
    """No answer within the deadline; `unkillable` if the process outlived SIGKILL."""

    pid: int
    seconds: float
    unkillable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """The prober ended by itself, `times` in a row, last with this exit status (negative: a signal)."""

    status: int
    times: int = 1


Message = Started | Sample | Event | Deaf | TestResult
Observation = Sample | Refused | Hung | Died


@dataclass(frozen=True, slots=True, kw_only=True)
class PciGpus:
    """NVIDIA GPUs on the PCI bus that are not handed to a guest; `bound` of them belong to the driver `nvidia`.

    `guests` is how many are handed to one. `driver` is the version of the kernel's module, "" if unknown; `readable` is False where there is a bus that cannot be read.
    """

    present: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()
    guests: int = 0
    driver: str = ""
    readable: bool = True


class Garbled(PrewarmError):
    """A child said something that is not a message of ours."""


def parse_message(line: bytes) -> Message:
    """Parse one line of a child.

    Raises:
        Garbled: quoting it.
    """
    try:
        given = json.loads(line)
        return _message(given)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Garbled(f"unexpected line from a GPU's child process: {cut(line[:200])}") from error


def _message(given: Mapping[str, Any]) -> Message:
    match given["kind"]:
        case "started":
            return Started(
                init=int(given["init"]), watching=bool(given["watching"]), library=cut(given["library"], 200)
            )
        case "sample":
            return Sample(
                depth=int(given["depth"]),
                driver=cut(given["driver"], 80),
                driver_code=int(given["driver_code"]),
                count=int(given["count"]),
                count_code=int(given["count_code"]),
                gpus=tuple(_gpu(gpu) for gpu in given["gpus"][:MAX_GPUS]),
            )
        case "event":
            return Event(uuid=cut(given["uuid"], 96), type=int(given["type"]), data=int(given["data"]))
        case "deaf":
            return Deaf(code=int(given["code"]))
        case "test":
            return TestResult(
                outcome=Outcome(given["outcome"]), text=cut(given["text"], 300), lasting=bool(given["lasting"])
            )
        case kind:
            raise ValueError(kind)


def _gpu(given: Mapping[str, Any]) -> Gpu:
    answers = list(given["answers"].items())[:MAX_ANSWERS]
    return Gpu(
        index=int(given["index"]),
        uuid=cut(given["uuid"], 96),
        pci=pci_address(cut(given["pci"], 32)),
        name=cut(given["name"], 96),
        call=cut(given["call"], 64),
        code=int(given["code"]),
        answers={
            str(name)[:32]: Answer(int(code), tuple(map(int, values[:MAX_VALUES]))) for name, (code, *values) in answers
        },
    )


def pci_address(text: str) -> str:
    """Return NVML's or the kernel log's address as sysfs spells it: 0000:3b:00.0."""
    domain, _, rest = text.lower().partition(":")
    if not rest:
        return ""
    return f"{domain[-4:].rjust(4, '0')}:{rest if '.' in rest else rest + '.0'}"
