"""Where a node's assignment comes from: its NodeWarmup, the copy of it on disk, or a plan file."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path

import structlog

from agent.core.assignment import KEEP_ASSIGNMENT, Assignment
from agent.core.assignment_json import format_assignment, format_time, parse_assignment, parse_time
from agent.core.clock import Clock
from agent.core.documents import load_document
from agent.core.errors import Invalid, cut
from agent.core.latest import Latest, Signal

_PLAN_LOOK_SECONDS = 2.0  # a stat of one file

log = structlog.get_logger()


class KeptAssignment:
    """The copy on disk on which a node acts for 48 h with nobody to renew it. Written by rename, never half."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock

    def load(self) -> Assignment | None:
        """Return the copy, or None if there is none, it is older than 48 h, or it cannot be read (which is logged).

        It carries no uid: the NodeWarmup may be another by now, and a status written for an earlier one would stand in it for
        ever (its observedGeneration never goes back). So none is written before the API server has shown it.
        """
        try:
            kept = json.loads(self._path.read_bytes())
            at = parse_time(kept["at"], "at")
            found = parse_assignment(kept["spec"], node=str(kept["node"]), generation=int(kept["generation"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, OverflowError, RecursionError, KeyError, TypeError, Invalid) as error:
            log.warning("kept assignment cannot be read", path=str(self._path), error=cut(error))
            return None
        age = self._clock.now() - at
        if age > KEEP_ASSIGNMENT:
            log.warning("kept assignment is too old", path=str(self._path), written=format_time(at))
            return None
        return found

    def save(self, assignment: Assignment) -> None:
        """Write the copy; a full disk is logged, for the assignment in memory is as good until a restart."""
        content = {
            "at": format_time(self._clock.now()),
            "node": assignment.node,
            "generation": assignment.generation,
            "spec": format_assignment(assignment),
        }
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            with fresh.open("w") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(self._path)
        except OSError as error:
            log.warning("assignment cannot be kept on disk", path=str(self._path), error=cut(error))


class KeepingService:
    """Writes each new assignment to disk, and again each hour while somebody renews it (`current`)."""

    name = "keep assignment"
    _EVERY_SECONDS = 3600.0

    def __init__(self, *, assignment: Latest[Assignment | None], kept: KeptAssignment, current: Latest[bool]) -> None:
        self._assignment = assignment
        self._kept = kept
        self._current = current

    async def run(self) -> None:
        """Keep until cancelled."""
        signal = Signal()
        for cell in (self._assignment, self._current):
            cell.attach(signal)
        try:
            while True:
                assignment = self._assignment.get()
                if assignment is not None and self._current.get():
                    await asyncio.to_thread(self._kept.save, assignment)
                await signal.wait(self._EVERY_SECONDS)
        finally:
            for cell in (self._assignment, self._current):
                cell.detach(signal)


class PlanFileService:
    """Follows a plan file: its owner edits it, the next look takes it; a bad edit is logged and the old plan stands."""

    name = "plan file"

    def __init__(self, *, path: Path, assignment: Latest[Assignment | None], clock: Clock) -> None:
        self._path = path
        self._assignment = assignment
        self._clock = clock

    async def run(self) -> None:
        """Follow until cancelled.

        Raises:
            Invalid: the file cannot be read at the start.
        """
        seen = self._stamp()
        self._assignment.set(read_plan(self._path))
        while True:
            await self._clock.sleep(_PLAN_LOOK_SECONDS)
            if (now := self._stamp()) == seen:
                continue
            seen = now
            try:
                self._assignment.set(read_plan(self._path))
                log.info("plan file read again", path=str(self._path))
            except Invalid as error:
                log.warning("plan file is bad, the old plan stands", error=str(error))

    def _stamp(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_size


def read_plan(path: Path) -> Assignment:
    """Read a plan file: YAML with the spec of a NodeWarmup, or a whole NodeWarmup.

    Raises:
        Invalid: it cannot be read; with the path of the first bad value.
    """
    try:
        content = load_document(path.read_text())
    except (OSError, UnicodeDecodeError, Invalid) as error:
        raise Invalid(f"cannot read the plan {path}: {cut(error)}") from error
    if not isinstance(content, Mapping):
        raise Invalid(f"the plan {path} must be a mapping with the key endpoints")
    try:
        return parse_assignment(content.get("spec", content))
    except Invalid as error:
        raise Invalid(f"the plan {path}: {error}") from error
