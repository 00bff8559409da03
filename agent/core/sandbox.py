"""A pod's sandbox as the container runtime of this node tells it: the witness for who uses or waits for what here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One pod sandbox. `ready` is False once its pod has stopped; `created` is aware, UTC."""

    namespace: str
    name: str
    uid: str
    created: datetime
    ready: bool
