"""One bed for the session, a namespace for each test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.bed import Bed, needs
from tests.bed.bed import PROJECT
from tests.cluster.product import Product


@pytest.fixture(scope="session")
def bed() -> Iterator[Bed]:
    """Two nodes, registry and S3. It ends with the session; if that is killed, the next one ends it."""
    if reason := needs.why_not("cluster"):
        pytest.skip(f"no cluster: {reason}")
    Bed.sweep(PROJECT / ".cache")
    with Bed(PROJECT / ".cache" / f"bed-pytest-{os.getpid()}") as bed:
        yield bed


@pytest.fixture
def namespace(bed: Bed) -> Iterator[str]:
    """A fresh namespace in which pods can be created; deleted afterwards, without waiting for it."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    bed.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    bed.api.until(
        f"/api/v1/namespaces/{name}/serviceaccounts", lambda event: event.object["metadata"]["name"] == "default"
    )
    yield name
    bed.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="session")
def product(bed: Bed) -> Product:
    """Prewarm installed on the bed from deploy/, its nodes having two GPUs each by the NVML stub."""
    installed = Product(bed)
    installed.install()
    return installed
