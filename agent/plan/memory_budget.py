"""How much memory weights may be kept in, and read into for a pod that starts: never what the machine is short of. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.units import format_size

LEAST_FREE_BYTES = 512 << 20
FREE_SHARE = 0.05  # of the machine: well above the kubelet's eviction threshold (memory.available < 100Mi by default)
STALL_PERCENT = 10.0  # of the last 10 s in which some process waited for memory: the machine is short of it
GRAIN_BYTES = 64 << 20  # budgets come in steps of this, rounded down, so that they do not change all the time


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the kernel says of the machine's memory. Page cache counts as available; `stalled_percent` is PSI's some avg10."""

    total_bytes: int
    available_bytes: int
    stalled_percent: float = 0.0

    @property
    def kept_free_bytes(self) -> int:
        """What is left to everybody else."""
        return max(LEAST_FREE_BYTES, int(FREE_SHARE * self.total_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """The Node's allocatable memory, and what the pods on it request."""

    allocatable_bytes: int
    requested_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much may be held, and the numbers it comes from."""

    size_bytes: int
    basis: str


def start_room(machine: Machine, *, setting: int | None, others_bytes: int) -> Budget:
    """Return how much may be read ahead for a pod that starts; `others_bytes` is what is in memory for others.

    What pods request does not count, least of all the pod's own: nothing is held, and the kernel gives clean pages that no
    process has mapped to whoever asks for memory.
    """
    if machine.stalled_percent >= STALL_PERCENT:
        return Budget(size_bytes=0, basis=_stalled(machine))
    kept, others = machine.kept_free_bytes, format_size(others_bytes)
    available = f"{format_size(machine.available_bytes)} are available here"
    bounds = [
        (
            machine.available_bytes - kept,
            f"{available}, of which {format_size(kept)} stay free and {others} are others'",
        )
    ]
    if setting is not None:
        bounds.append((setting, f"the setting memory_budget is {format_size(setting)}, and {others} are others'"))
    size, basis = min(bounds)
    return Budget(size_bytes=max(0, size - others_bytes), basis=basis)


def _stalled(machine: Machine) -> str:
    return f"processes here wait for memory {machine.stalled_percent:.0f} % of the time"


def memory_budget(*, setting: int | None, requests: Requests | None, machine: Machine) -> Budget:
    """Return the smallest of what is allowed. `setting` None: automatic; `requests` None: not known (no Kubernetes)."""
    if machine.stalled_percent >= STALL_PERCENT:
        return Budget(size_bytes=0, basis=_stalled(machine))
    bounds = list(_bounds(setting, requests, machine))
    size, basis = min(bounds)
    return Budget(size_bytes=max(0, size) // GRAIN_BYTES * GRAIN_BYTES, basis=basis)


def _bounds(setting: int | None, requests: Requests | None, machine: Machine) -> list[tuple[int, str]]:
    free, kept = machine.available_bytes, machine.kept_free_bytes
    coarse = free // (GRAIN_BYTES * 4) * GRAIN_BYTES * 4
    bounds = [(free - kept, f"{format_size(coarse)} are available here and {format_size(kept)} of it stay free")]
    if setting is not None:
        bounds.append((setting, f"the setting memory_budget is {format_size(setting)}"))
    if requests is not None:
        asked, has = requests.requested_bytes, requests.allocatable_bytes
        bounds.append((has - asked, f"pods request {format_size(asked)} of {format_size(has)} allocatable"))
    elif setting is None:
        bounds.append((free // 2, f"half of the {format_size(coarse)} available here"))
    return bounds
