"""For every test: no leaked task, no inherited credentials, and time passed in rather than slept."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import hypothesis
import pytest
import pytest_asyncio

# How long one example takes says more about the machine's other work than about the code.
hypothesis.settings.register_profile("prewarm", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("prewarm")

# A shell that runs the tests in the background has SIGINT ignored, which the commands under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear what SDKs would find on the developer's machine."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "PREWARM_", "KUBE")) and name not in ("AWS_CA_BUNDLE", "PREWARM_PREBUILT"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest_asyncio.fixture(autouse=True)
async def no_leaked_tasks(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Fail a test that leaves tasks behind."""
    before = asyncio.all_tasks()
    yield
    leaked = [t for t in asyncio.all_tasks() - before if not t.done() and t is not asyncio.current_task()]
    if leaked:
        pytest.fail(f"leaked tasks: {leaked}")
