"""What was seen of this node's GPUs: values parsed once from the prober's JSON lines and from sysfs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.core.errors import PrewarmError, cut

MAX_GPUS = 256  # more is nonsense, and would be held in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU: `code` is the first call that failed (`call`), 0 if none; `recovery` is None where it could not be read."""

    index: int
    uuid: str = ""
    pci: str = ""
    call: str = ""
    code: int = 0
    recovery: int | None = None
    recovery_code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The prober has called nvmlInit; `watching` says whether it will tell of events."""

    init: int
    watching: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One round of questions; codes are NVML's, 0 for success."""

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


Message = Started | Sample | Event | Deaf
Observation = Sample | Refused | Hung | Died


@dataclass(frozen=True, slots=True, kw_only=True)
class PciGpus:
    """NVIDIA GPUs on the PCI bus that are not handed to a guest; `bound` of them belong to the driver `nvidia`."""

    present: tuple[str, ...] = field(default=())
    bound: tuple[str, ...] = field(default=())


class Garbled(PrewarmError):
    """The prober said something that is not a message of ours."""


def parse_message(line: bytes) -> Message:
    """Parse one line of the prober.

    Raises:
        Garbled: quoting it.
    """
    try:
        given = json.loads(line)
        return _message(given)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Garbled(f"unexpected line from the NVML prober: {cut(line[:200])}") from error


def _message(given: Mapping[str, Any]) -> Message:
    match given["kind"]:
        case "started":
            return Started(init=int(given["init"]), watching=bool(given["watching"]))
        case "sample":
            return Sample(
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
        case kind:
            raise ValueError(kind)


def _gpu(given: Mapping[str, Any]) -> Gpu:
    recovery = given["recovery"]
    return Gpu(
        index=int(given["index"]),
        uuid=cut(given["uuid"], 96),
        pci=cut(given["pci"], 32),
        call=cut(given["call"], 64),
        code=int(given["code"]),
        recovery=None if recovery is None else int(recovery),
        recovery_code=int(given["recovery_code"]),
    )
