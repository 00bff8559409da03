"""A pod's sandbox as the container runtime of this node tells it: the witness for who uses or waits for what here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from agent.core.refs import EndpointKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One pod sandbox. `ready` is False once its pod has stopped; `created` is aware, UTC.

    `endpoint` is the one its pod's label names, None where there is no such label.
    """

    namespace: str
    name: str
    uid: str
    created: datetime
    ready: bool
    endpoint: EndpointKey | None = None
