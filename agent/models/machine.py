"""The machine's memory as the kernel tells it: /proc/meminfo and, where it has it, /proc/pressure/memory."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from agent.core.errors import Transient
from agent.plan.memory_budget import Machine


def read_machine(proc: Path = Path("/proc")) -> Machine:
    """Read both.

    Raises:
        Transient: there is no /proc/meminfo, or it is none.
    """
    try:
        lines = dict(re.findall(r"^(\w+):\s+(\d+) kB$", (proc / "meminfo").read_text(), re.M))
        total, available = (int(lines[key]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise Transient(f"cannot read {proc / 'meminfo'}") from error
    stalled = None
    with contextlib.suppress(OSError, UnicodeDecodeError):  # a kernel without PSI, or booted with psi=0
        stalled = re.search(r"^some avg10=([\d.]+)", (proc / "pressure" / "memory").read_text(), re.M)
    return Machine(total_bytes=total, available_bytes=available, stalled_percent=float(stalled[1]) if stalled else 0.0)
