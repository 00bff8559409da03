"""The tables of `bench.hydrate`, for the terminal and for docs/benchmarks.md: medians with ranges, and ratios by round."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.measure import Sample

FLOOR, OURS, OURS_BEGUN = "both at once", "prewarm", "prewarm, from the manifest"
HEADER = (
    "", "rounds", "GB/s", "GB/s durable", "to the limit", "lead over it", "CPU-s/GB", "PSS MiB",
)  # fmt: skip
HEAD = """# Benchmarks of downloads

Written by `make bench-hydrate`; what each row is, and how it is measured, says `python -m bench.hydrate --help`. Server and
client share the machine and its disk, so compare rows of one table, never of two. Each cell is the median (least-most) of
the rounds. `durable` counts until a `sync` after the command has ended. `to the limit` is this row's durable rate ÷ that of
`both at once` (a bare C program, `bench/floor.c`) in the same round; `lead over it` is prewarm's durable rate from the manifest ÷ this row's in the same
round. CPU is that of all the client's processes, PSS their peak together.

A load above the number of CPUs means that other work had a part of the machine, or that many threads waited for its disk, as
during `sync`. A peer's share of the limit bounds every lead over it: what is no faster than that program leads one that reaches
0.82 by at most 1.22. prewarm sums every byte and makes each file durable before it says so; `bare loop in Python` sums, and keeps no journal.
"""

Runs = Sequence[Sample | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One table: who ran, and the samples of each by round (None: not in that round, or failed)."""

    title: str
    total_bytes: int
    machine: str
    rows: Mapping[str, Runs]

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        rows = {name: [asdict(s) if s else None for s in runs] for name, runs in self.rows.items()}
        return {"title": self.title, "bytes": self.total_bytes, "machine": self.machine, "rows": rows}

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> Section:
        """Return the section that `to_json` described."""
        rows = {name: [Sample(**s) if s else None for s in runs] for name, runs in said["rows"].items()}
        return Section(title=said["title"], total_bytes=said["bytes"], machine=said["machine"], rows=rows)

    def lines(self) -> list[tuple[str, ...]]:
        """Return the cells, the header first."""
        rows: dict[str, Runs] = {}
        for name, runs in self.rows.items():
            rows[name] = runs
            if name == OURS:
                rows[OURS_BEGUN] = [s.since_begun() if s else None for s in runs]
        return [HEADER, *(self._row(name, rows) for name in rows if any(rows[name]))]

    def _row(self, name: str, rows: Mapping[str, Runs]) -> tuple[str, ...]:
        runs, gigabytes = rows[name], self.total_bytes / 1e9
        done = [s for s in runs if s]
        limit = ratios(runs, rows.get(FLOOR, ()))
        ours = [] if name in (OURS, OURS_BEGUN) else ratios(rows.get(OURS_BEGUN, ()), runs)
        return (
            name,
            str(len(done)),
            told([gigabytes / s.seconds for s in done]),
            told([gigabytes / s.durable_seconds for s in done]),
            told(limit),
            told(ours),
            told([s.cpu_seconds / gigabytes for s in done]),
            told([s.pss_bytes / (1 << 20) for s in done], "{:.0f}"),
        )

    def text(self) -> str:
        """Return the table for a terminal."""
        lines = self.lines()
        widths = [max(len(line[n]) for line in lines) for n in range(len(HEADER))]
        table = ("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
        return "\n".join([f"\n{self.title} ({self.machine})", *table])

    def markdown(self) -> str:
        """Return the table for the document."""
        header, *rows = self.lines()
        lines = [header, ("---",) * len(header), *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## {self.title}\n\n{self.machine}\n\n{table}\n"


def ratios(faster: Runs, slower: Runs) -> list[float]:
    """Return `slower`'s durable time ÷ `faster`'s for each round in which both ran."""
    pairs = zip(faster, slower, strict=False)
    return [b.durable_seconds / a.durable_seconds for a, b in pairs if a is not None and b is not None]


def told(values: Sequence[float], shown: str = "{:.2f}") -> str:
    """Return `1.23 (1.10-1.40)`, or nothing."""
    if not values:
        return ""
    form: Callable[[float], str] = shown.format
    return f"{form(statistics.median(values))} ({form(min(values))}-{form(max(values))})"


def machine() -> str:
    """Return what the numbers were measured on, and when; no name of it."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    kernel = platform.release().split("-")[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} x {model}, {memory:.0f} GiB, Linux {kernel}, "
        f"load {os.getloadavg()[1]:.1f} on average while it was measured"
    )


def write_document(path: Path, results: Sequence[Path], extra: Path) -> None:
    """Write the document from the sections that were measured so far, and the text in `extra` where there is one."""
    sections = [Section.from_json(json.loads(file.read_text())) for file in results if file.exists()]
    path.write_text(
        "\n".join(
            [HEAD, *(section.markdown() for section in sections), *([extra.read_text()] if extra.exists() else [])]
        )
    )
