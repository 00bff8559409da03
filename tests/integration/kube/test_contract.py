"""The contract on the fake, so that what is tested against the fake means something."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from agent.kube.api import KubeApi
from agent.kube.credentials import FixedServer
from tests.fakes.api_server import FakeApiServer
from tests.integration.kube.contract import KubeContract


@pytest_asyncio.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer().serving() as serving:
        yield serving


@pytest_asyncio.fixture
async def api(server: FakeApiServer) -> AsyncIterator[KubeApi]:
    async with KubeApi(FixedServer(server.url)) as connected:
        yield connected


@pytest.fixture
def space() -> str:
    return "contract"


@pytest_asyncio.fixture
async def node(server: FakeApiServer) -> str:
    await server.put("/api/v1/nodes/contract-node", {"spec": {}, "status": {}})
    return "contract-node"


class TestFake(KubeContract):
    """The fake API server."""
