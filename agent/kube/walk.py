"""Reading decoded JSON: a field of an unexpected type counts as absent, so that one odd object never stops the reading of others."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

Json = Mapping[str, Any]


def mapping(item: Json, key: str) -> Json:
    """Return the mapping there, or an empty one."""
    value = item.get(key)
    return value if isinstance(value, dict) else {}


def mappings(item: Json, key: str) -> list[Json]:
    """Return the mappings of the list there."""
    value = item.get(key)
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def text(item: Json, key: str) -> str:
    """Return the text there, or ""."""
    value = item.get(key)
    return value if isinstance(value, str) else ""


def texts(item: Json, key: str) -> Mapping[str, str]:
    """Return the mapping there with keys and values as text."""
    return {str(k): str(v) for k, v in mapping(item, key).items()}


def whole(item: Json, key: str) -> int:
    """Return the whole number there, or 0."""
    value = item.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def time(item: Json, key: str) -> datetime | None:
    """Return the RFC 3339 time there in UTC, or None."""
    try:
        found = datetime.fromisoformat(text(item, key))
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
