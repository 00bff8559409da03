"""Durations and sizes as people write them."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal

from agent.core.errors import Invalid, cut

_DURATION = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?")
_MAX_DURATION = timedelta(days=366)
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([KMGTP]i?)?B?")
_FACTORS = {None: 1} | {f"{p}{i}": (1024 if i else 1000) ** n for n, p in enumerate("KMGTP", 1) for i in ("", "i")}


def parse_duration(text: str) -> timedelta:
    """Parse `1h30m`, `90s`, `2d` (units d, h, m, s in that order; at most 366 days).

    Raises:
        Invalid: quoting the text and what is accepted.
    """
    found = _DURATION.fullmatch(text.strip())
    if not found or not any(found.groups()) or any(len(g or "") > 8 for g in found.groups()):
        raise Invalid(f"{cut(text, 60)!r} is not a duration: write it like 1h30m, 5m or 90s")
    days, hours, minutes, seconds = (int(g or 0) for g in found.groups())
    length = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if length > _MAX_DURATION:
        raise Invalid(f"{cut(text, 60)!r} is longer than 366 days")
    return length


def format_duration(length: timedelta | float) -> str:
    """Write a duration (seconds or timedelta) as `1h30m`, `4m10s`, `0.8s`; negative ones with a leading `-`."""
    seconds = length.total_seconds() if isinstance(length, timedelta) else float(length)
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 10:
        return f"{seconds:.1f}".rstrip("0").rstrip(".") + "s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    parts = ((days, "d"), (hour, "h"), (minute, "m"), (second, "s"))
    return "".join(f"{n}{unit}" for n, unit in parts if n)


def parse_size(text: str) -> int:
    """Parse `500GB`, `1.5Ti`, `1073741824` into bytes.

    Raises:
        Invalid: quoting the text.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise Invalid(f"{cut(text, 60)!r} is not a size: write it like 500GB, 1.5Ti or a number of bytes")
    return int(Decimal(found[1]) * _FACTORS[found[2]])


def format_size(size_bytes: float) -> str:
    """Write bytes with decimal units and three digits: `1.34 GB`."""
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while abs(size_bytes) >= 999.5 and len(units) > 1:
        size_bytes /= 1000
        units.pop(0)
    digits = 0 if units[0] == "B" or size_bytes >= 99.95 else 1 if size_bytes >= 9.995 else 2
    return f"{size_bytes:.{digits}f} {units[0]}"
