"""Progress of long work for a person or a program: a bar on a terminal, else a line now and then, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from agent.cli import nobody_reads
from agent.core.errors import cut
from agent.core.units import format_duration, format_size

LINE_SECONDS = 5.0  # between two lines where no terminal watches
JSON_SECONDS = 1.0
_SHOWN_FILES = 5
_SMOOTHING_SECONDS = 5.0  # a rate follows a change within about this


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How far the work is. `moved_bytes` is what this run did, without what it found done; `files` are under way."""

    done_bytes: int
    total_bytes: int
    moved_bytes: int
    files_done: int = 0
    files_total: int = 0
    files: tuple[tuple[str, int, int], ...] = ()  # name, bytes done, size


Told = Callable[[Step], None]


class Meter:
    """A smoothed rate from steps, and when the work will be done."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._at, self._moved = now(), 0
        self.rate = 0.0  # bytes per second

    def take(self, step: Step) -> float | None:
        """Take a step in; return the seconds that are left at this rate, None if nothing can be said."""
        now = self._now()
        passed = now - self._at
        if passed > 0:
            fresh = max(0, step.moved_bytes - self._moved) / passed
            weight = min(1.0, passed / _SMOOTHING_SECONDS) if self.rate else 1.0
            self.rate += weight * (fresh - self.rate)
            self._at, self._moved = now, step.moved_bytes
        left = max(0, step.total_bytes - step.done_bytes)
        return left / self.rate if self.rate >= 1 and left / self.rate < 10 * 86400 else None


@contextmanager
def reporting(title: str, *, as_json: bool = False, quiet: bool = False) -> Iterator[Told]:
    """Yield what is to be told of each step; JSON goes to standard output, all else to standard error."""
    if as_json:
        yield json_lines()
    elif quiet:
        yield lambda _step: None
    elif sys.stderr.isatty():
        with _bar(title) as told:
            yield told
    else:
        yield lines()


def lines(now: Callable[[], float] = time.monotonic) -> Told:
    """Return a teller of one line every LINE_SECONDS."""
    meter, last = Meter(now), [now()]

    def told(step: Step) -> None:
        if now() - last[0] >= LINE_SECONDS:
            last[0] = now()
            print(line_of(step, meter.take(step), meter.rate), file=sys.stderr, flush=True)

    return told


def line_of(step: Step, left_seconds: float | None, rate: float) -> str:
    """Write one step for a person."""
    share = f" ({step.done_bytes / step.total_bytes:.0%})" if step.total_bytes else ""
    text = f"{format_size(step.done_bytes)} of {format_size(step.total_bytes)}{share}, {format_size(rate)}/s"
    if step.files_total > 1:
        text += f", {step.files_done} of {step.files_total} files"
    return text + (f", {format_duration(round(left_seconds))} left" if left_seconds is not None else "")


def json_lines(now: Callable[[], float] = time.monotonic) -> Told:
    """Return a teller of one JSON object a line, at most every JSON_SECONDS."""
    meter, last = Meter(now), [float("-inf")]

    def told(step: Step) -> None:
        if now() - last[0] >= JSON_SECONDS:
            last[0] = now()
            left = meter.take(step)
            say_json(
                "progress",
                bytes=step.done_bytes,
                total=step.total_bytes,
                bytesPerSecond=round(meter.rate),
                etaSeconds=None if left is None else round(left, 1),
                filesDone=step.files_done,
                files=step.files_total,
                underWay=[{"path": p, "bytes": d, "size": s} for p, d, s in step.files[:_SHOWN_FILES]],
            )

    return told


def say_json(event: str, **fields: object) -> None:
    """Print one event; the work goes on if nobody reads."""
    try:
        print(json.dumps({"event": event} | fields), flush=True)
    except BrokenPipeError:
        nobody_reads()


@contextmanager
def _bar(title: str) -> Iterator[Told]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

    meter = Meter()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[more]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        whole = bars.add_task(escape(cut(title, 60)), total=None, more="")
        shown: dict[str, TaskID] = {}

        def told(step: Step) -> None:
            left = meter.take(step)
            more = f"{format_size(meter.rate)}/s" + (
                f", {format_duration(round(left))} left" if left is not None else ""
            )
            if step.files_total > 1:
                more += f", {step.files_done} of {step.files_total} files"
            bars.update(whole, completed=step.done_bytes, total=step.total_bytes or None, more=more)
            largest = {p: (d, s) for p, d, s in sorted(step.files, key=lambda f: -f[2])[:_SHOWN_FILES]}
            for gone in shown.keys() - largest.keys() if step.files_total > 1 else ():
                bars.remove_task(shown.pop(gone))
            for path, (done, size) in largest.items() if step.files_total > 1 else ():
                if path not in shown:
                    shown[path] = bars.add_task(f"  {escape(cut(path, 58))}", total=size, more="")
                bars.update(shown[path], completed=done)

        yield told
