"""Processes that outlive the Python that starts them, ended by pid.

A pid alone may name a stranger after a crash and a wrap-around, so a process is remembered together with the kernel's
start time of it: nothing is ever ended that this module did not start.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# What started processes see: nothing of the test's environment (proxies, credentials, KUBECONFIG, a virtual environment).
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}


class BedError(RuntimeError):
    """The bed, or something on it, did not do what was asked; the text says what and where to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that we started: its pid, and its start time in clock ticks since boot."""

    pid: int
    started: int

    @staticmethod
    def of(pid: int) -> Process:
        """The running process with this pid.

        Raises:
            ProcessLookupError: there is none (a zombie counts as none).
        """
        fields = _stat(pid)
        if fields is None or fields[0] == "Z":
            raise ProcessLookupError(pid)
        return Process(pid=pid, started=int(fields[19]))

    @staticmethod
    def parse(text: str) -> Process:
        """What `str` made of one."""
        pid, started = text.split()
        return Process(pid=int(pid), started=int(started))

    def __str__(self) -> str:
        return f"{self.pid} {self.started}"

    @staticmethod
    def load(file: Path) -> Process | None:
        """What `save` wrote there, or None."""
        try:
            return Process.parse(file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def save(self, file: Path) -> None:
        """Remember it for a later command."""
        file.write_text(str(self))

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not, unless threads of it still hold its files and sockets."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[19]) == self.started and (fields[0] != "Z" or int(fields[17]) > 1)

    def send(self, what: signal.Signals) -> None:
        """Signal it, unless it is gone."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, what)


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def start(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Process:
    """Start a command in its own session, detached, output appended to `log`.

    `os.posix_spawn` and not `subprocess`: there is no object whose end would complain that the process still runs.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        pid = os.posix_spawnp(
            command[0],
            list(command),
            dict(ENVIRONMENT if environment is None else environment),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(output)
    try:
        return Process.of(pid)
    except ProcessLookupError:
        _reap(pid)
        raise BedError(f"{command[0]} ended at once: see {log}") from None


def end(processes: Iterable[Process], *, at_once: bool = False, patience_seconds: float = 10) -> None:
    """End these and wait until they are gone: SIGKILL when `at_once`, else SIGTERM first and SIGKILL after patience."""
    left = list(processes)
    for process in left:
        process.send(signal.SIGKILL if at_once else signal.SIGTERM)
    deadline = time.monotonic() + patience_seconds
    while left:
        for process in left:
            _reap(process.pid)
        left = [process for process in left if process.alive]
        if time.monotonic() > deadline:
            for process in left:
                process.send(signal.SIGKILL)
        time.sleep(0.01 if left else 0)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):  # not our child: another command of ours started it
        os.waitpid(pid, os.WNOHANG)


def descendants(pid: int) -> list[int]:
    """This pid and all that came from it, parents first.

    By everybody's parent: the kernel's lists of children (/proc/PID/task/*/children) skip some while others exit.
    """
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def words(pid: int, file: str) -> list[str]:
    """The zero-separated words of a file of a process (`cmdline`, `environ`); none where it is gone."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def names(pid: int) -> list[str]:
    """The base names of the first two words of a process's command line, and its own name."""
    own = "".join(words(pid, "comm")).strip()
    called = [os.path.basename(word) for word in words(pid, "cmdline")[:2] if word]
    return list(dict.fromkeys([*called, own])) if own else []


def rss_bytes(pid: int) -> int:
    """Its resident memory; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0


def run(command: Sequence[str], *, data: str | None = None, directory: Path | None = None, seconds: float = 120) -> str:
    """Run a command to its end and return what it printed.

    Raises:
        BedError: it failed or took too long; the text carries its stderr.
    """
    try:
        result = subprocess.run(
            command, input=data, cwd=directory, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired as late:
        raise BedError(f"{' '.join(command)}: not done after {seconds} s") from late
    if result.returncode:
        said = (result.stderr.strip() or result.stdout.strip())[-2000:]
        raise BedError(f"{' '.join(command)}: exit {result.returncode}: {said}")
    return result.stdout


def wait_until(condition: Callable[[], bool], seconds: float, what: str, every: float = 0.05) -> None:
    """Ask again and again until `condition` holds.

    Raises:
        BedError: it did not within `seconds`; the text is `what`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BedError(f"not within {seconds:g} s: {what}")
        time.sleep(every)
