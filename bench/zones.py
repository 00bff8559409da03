"""Declared windows against a second implementation: all IANA zones, every change of the clock of ten years.

Zones whose clocks go alike in these years are looked at once. Takes minutes; exit code 1 if any answer differs.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from datetime import timedelta
from zoneinfo import ZoneInfo

from tests.property.test_wallclock import CRONS, NOWS, differences
from tests.property.wallclock import MINUTE, changes, zones_with_changes


def main() -> int:
    """Compare, say what differs, and count."""
    began, alike = time.monotonic(), defaultdict(list)
    for name in zones_with_changes():
        alike[_clock(ZoneInfo(name))].append(name)
    found: list[str] = []
    for n, (clock, names) in enumerate(alike.items(), 1):
        found += differences(names[0])
        print(f"{n}/{len(alike)} {', '.join(names[:3])} …: {len(clock)} changes", flush=True)
    print("\n".join(found))
    answers = sum(map(len, alike)) * len(CRONS) * len(NOWS)
    print(
        f"{sum(map(len, alike.values()))} zones, {len(alike)} clocks, {answers} answers, {len(found)} differ, "
        f"{time.monotonic() - began:.0f} s"
    )
    return 1 if found else 0


def _clock(zone: ZoneInfo) -> tuple[tuple[object, timedelta | None, timedelta | None], ...]:
    return tuple((c, (c - MINUTE).astimezone(zone).utcoffset(), c.astimezone(zone).utcoffset()) for c in changes(zone))


if __name__ == "__main__":
    sys.exit(main())
