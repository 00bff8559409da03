"""The contract of `agent.kube` on a real API server."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from agent.kube.api import KubeApi
from tests.bed import Bed
from tests.integration.kube.contract import KubeContract

pytestmark = pytest.mark.cluster


@pytest_asyncio.fixture
async def api(bed: Bed) -> AsyncIterator[KubeApi]:
    async with await KubeApi.connect(str(bed.kubeconfig)) as connected:
        yield connected


@pytest.fixture
def space(namespace: str) -> str:
    return namespace


@pytest.fixture
def node(bed: Bed) -> Iterator[str]:
    """A Node without a kubelet."""
    name = f"contract-{uuid.uuid4().hex[:8]}"
    bed.api.post("/api/v1/nodes", {"metadata": {"name": name}, "spec": {"unschedulable": True}})
    yield name
    bed.api.delete(f"/api/v1/nodes/{name}")


class TestReal(KubeContract):
    """The bed's API server."""
