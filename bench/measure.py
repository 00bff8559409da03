"""Runs one command and says what it took: time until it returned and until its bytes were durable, CPU, memory."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.usage import cpu_seconds, memory

MEMORY_EVERY_SECONDS = 0.25
LOOK_EVERY_SECONDS = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run. Seconds count from the start of the command; `begun_*` is when it knew what to download (0: at once)."""

    seconds: float
    durable_seconds: float
    cpu_seconds: float
    pss_bytes: int
    begun_seconds: float = 0.0
    begun_cpu_seconds: float = 0.0

    def since_begun(self) -> Sample:
        """Return the same run, its clocks started when the manifest was known."""
        values = asdict(self)
        for name in ("seconds", "durable_seconds"):
            values[name] -= self.begun_seconds
        values["cpu_seconds"] -= self.begun_cpu_seconds
        return Sample(**values | {"begun_seconds": 0.0, "begun_cpu_seconds": 0.0})


class CommandFailed(RuntimeError):
    """It ended with an error; the text is the end of what it said."""


def measure(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdin: str = "",
    begun: Callable[[], bool] | None = None,
) -> Sample:
    """Run a command to its end, then make the disk durable; CPU is that of all its processes.

    Raises:
        CommandFailed: it did not end with 0.
    """
    os.sync()
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
        given.write(stdin.encode())
        given.seek(0)
        started = time.monotonic()
        process = subprocess.Popen(command, env=dict(environment), stdin=given, stdout=said, stderr=said)
        watch = _Watch(process.pid, started, begun)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.stop()
        os.sync()
        durable = time.monotonic() - started
        if process.returncode:
            said.seek(0)
            raise CommandFailed(
                f"{command[0]}: exit {process.returncode}: {said.read()[-500:].decode(errors='replace')}"
            )
    return Sample(
        seconds=seconds,
        durable_seconds=durable,
        cpu_seconds=used.ru_utime + used.ru_stime,
        pss_bytes=watch.peak,
        begun_seconds=watch.begun_seconds,
        begun_cpu_seconds=watch.begun_cpu_seconds,
    )


class _Watch:
    """Looks at a running command from outside: its memory now and then, and the moment that `begun` tells of."""

    def __init__(self, pid: int, started: float, begun: Callable[[], bool] | None) -> None:
        self.peak, self.begun_seconds, self.begun_cpu_seconds = 0, 0.0, 0.0
        self._pid, self._started, self._begun = pid, started, begun
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        while self._begun is not None and not self._stopped.wait(LOOK_EVERY_SECONDS):
            if self._begun():
                self.begun_seconds, self.begun_cpu_seconds = time.monotonic() - self._started, cpu_seconds(self._pid)
                break
        while not self._stopped.wait(MEMORY_EVERY_SECONDS):
            try:
                self.peak = max(self.peak, memory(self._pid).pss)
            except IndexError:  # gone
                return


def journal_below(directory: Path) -> Callable[[], bool]:
    """Whether prewarm has begun to download into a directory: it has opened a journal."""
    return lambda: any(directory.glob(".prewarm/*/journal"))
