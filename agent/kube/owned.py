"""Who set which field: server-side apply's bookkeeping, `metadata.managedFields`."""

from __future__ import annotations

from datetime import datetime

from agent.kube.walk import Json, mapping, mappings, text, time


def applies(item: Json, manager: str, *path: str) -> bool:
    """Say whether `manager` has applied the field at `path` (keys from the top of the object)."""
    for entry in mappings(mapping(item, "metadata"), "managedFields"):
        if text(entry, "manager") == manager and text(entry, "operation") == "Apply":
            at = mapping(entry, "fieldsV1")
            for key in path[:-1]:
                at = mapping(at, f"f:{key}")
            if f"f:{path[-1]}" in at:
                return True
    return False


def written_at(item: Json) -> datetime | None:
    """Return when anything but the status was last changed, in whole seconds."""
    entries = mappings(mapping(item, "metadata"), "managedFields")
    times = [at for entry in entries if not text(entry, "subresource") and (at := time(entry, "time"))]
    return max(times, default=None)
