"""What a process and everything it started have used, from /proc: CPU time and memory."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.bed.process import descendants

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_SCHED = 2  # CPUCLOCK_SCHED of linux/posix-timers.h: a process's clock id is (~pid << 3) | 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes. `alone` is what PSS would be if nothing else on the machine used the same libraries, as on a node."""

    pss: int
    alone: int
    processes: int


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, its living descendants and all that they have waited for."""
    return sum(_own_seconds(each) + _waited_seconds(each) for each in descendants(pid))


def _own_seconds(pid: int) -> float:
    with suppress(OSError):  # it ended a moment ago: its parent's account has it
        return time.clock_gettime(((~pid) << 3) | _SCHED)  # all its threads, in nanoseconds; utime + stime has 10 ms
    return 0.0


def _waited_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[13]) + int(fields[14])) / _TICKS_PER_SECOND


def memory(pid: int) -> Memory:
    """Memory of a process and its living descendants, shared pages counted once."""
    rows = sorted((row for each in descendants(pid) if (row := _rollup(each))), key=lambda row: row["Rss"])
    # What a child shares it shares with its parent, the largest; its private pages come on top of all the parent holds.
    private = sum(row["Private_Clean"] + row["Private_Dirty"] for row in rows[:-1])
    return Memory(pss=sum(row["Pss"] for row in rows), alone=rows[-1]["Rss"] + private, processes=len(rows))


def _rollup(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}


def threads_seconds(pid: int) -> dict[str, float]:
    """CPU time by thread (`name tid`) of one process, to see who uses it."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            name = (task / "comm").read_text().strip()
            found[f"{name} {task.name}"] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found
