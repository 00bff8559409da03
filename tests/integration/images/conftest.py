"""A registry for the session, and real containerds of every version in front of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.bed.registry import Registry
from tests.contract.images_worlds import RealWorld, real_registry, real_world, why_not_real
from tests.integration.images.hostile import Front, hostile_front


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    if reason := why_not_real():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as directory, real_registry(Path(directory)) as running:
        yield running


@pytest.fixture(params=["1.6", "1.7", "2.2"])
async def worlds(request: pytest.FixtureRequest, registry: Registry) -> AsyncIterator[tuple[RealWorld, Front]]:
    """A containerd whose registry is behind a front that can be told to misbehave."""
    if reason := why_not_real(request.param):
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="ctd"))
    try:
        with hostile_front((registry.host, registry.port)) as (front, address):
            async with real_world(directory, registry, request.param, front=address) as real:
                yield real, front
    finally:
        shutil.rmtree(directory)


@pytest.fixture
async def world(request: pytest.FixtureRequest, registry: Registry) -> AsyncIterator[RealWorld]:
    """A containerd of the version that the test is parametrized with (indirectly)."""
    if reason := why_not_real(request.param):
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="ctd"))
    try:
        async with real_world(directory, registry, request.param) as real:
            yield real
    finally:
        shutil.rmtree(directory)
