"""What only an active test ends, kept on disk: an agent that starts anew must not call a GPU healthy because it has forgotten why not."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from agent.core.errors import cut
from agent.gpu.findings import Key
from agent.gpu.health import Fault, outlives_the_agent
from agent.gpu.observation import MAX_GPUS
from agent.gpu.reasons import Code

_MOST = 4 * MAX_GPUS


class KeptFaults:
    """The faults that stood against GPUs in this boot. A file of another boot, and what of it cannot be read, count for nothing."""

    def __init__(self, path: Path, boot_id: str) -> None:
        self._path = path
        self._boot_id = boot_id

    def load(self) -> Mapping[Key, Fault]:
        """Return what stood when the last agent ended. Blocks on the disk."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            given = json.loads(self._path.read_text())
            if isinstance(given, Mapping) and given.get("bootId") == self._boot_id:
                faults = given.get("faults")
                return dict(filter(None, map(_parse, faults[:_MOST] if isinstance(faults, list) else ())))
        return {}

    def save(self, faults: Mapping[Key, Fault]) -> bool:
        """Write the file, whole or not at all; False where that failed. Blocks on the disk.

        It is not flushed: what a power cut takes is of a boot that is over.
        """
        rows = [{"gpu": k[1], "code": k[0], "text": f.text, "event": f.event} for k, f in list(faults.items())[:_MOST]]
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            fresh.write_text(json.dumps({"bootId": self._boot_id, "faults": rows}))
            os.replace(fresh, self._path)
        except OSError:
            return False
        return True


def _parse(row: object) -> tuple[Key, Fault] | None:
    if not isinstance(row, Mapping):
        return None
    try:
        key = Code(str(row.get("code"))), cut(row["gpu"], 96)
    except (ValueError, KeyError):
        return None
    if not outlives_the_agent(key):
        return None
    return key, Fault(text=cut(row.get("text"), 300), event=row.get("event") is True)
