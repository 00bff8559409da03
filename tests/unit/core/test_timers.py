"""Threads started inside are imprecise, the one that starts them is not."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from agent.core.timers import coarse_timers


@pytest.mark.skipif(sys.platform != "linux", reason="timer slack is Linux's")
def test_only_threads_started_inside_are_late() -> None:
    before = slack()
    found: list[int] = []
    with coarse_timers():
        inside = threading.Thread(target=lambda: found.append(slack()))
        inside.start()
        inside.join()
    assert found == [200 * 10**6]
    assert slack() == before


def slack() -> int:
    return int(Path(f"/proc/{threading.get_native_id()}/timerslack_ns").read_text())
