"""Which lines of the kernel log a proof has come after: kept on disk, so that a restarted agent does not hold them against a GPU again."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from agent.core.errors import cut
from agent.gpu.observation import MAX_GPUS, LogEvent


class Proofs:
    """For each GPU (by PCI address) the newest line of this boot's kernel log that it has since been proved against.

    Losing the file costs one more proof; one of another boot, or that cannot be read, counts for nothing.
    """

    def __init__(self, path: Path, boot_id: str) -> None:
        self._path = path
        self._boot_id = boot_id
        self._seqs: dict[str, int] = {}

    def load(self) -> None:
        """Read the file. Blocks on the disk."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            given = json.loads(self._path.read_text())
            if isinstance(given, Mapping) and given.get("bootId") == self._boot_id:
                self._seqs = {cut(pci, 32): int(seq) for pci, seq in list(given["gpus"].items())[:MAX_GPUS]}

    def covers(self, event: LogEvent) -> bool:
        """Say whether the GPU has been proved since."""
        return bool(event.pci) and event.seq <= self._seqs.get(event.pci, -1)

    def add(self, pci: str, seq: int) -> None:
        """Remember that a GPU was proved after the line `seq`; `save` writes it."""
        if pci:
            self._seqs[pci] = seq

    def save(self) -> None:
        """Write the file, whole or not at all. Blocks on the disk; a failure is no matter."""
        fresh = self._path.with_name(self._path.name + ".new")
        with contextlib.suppress(OSError):
            fresh.write_text(json.dumps({"bootId": self._boot_id, "gpus": self._seqs}))
            os.replace(fresh, self._path)
