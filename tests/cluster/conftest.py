"""One bed for the session, a namespace for each test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator, Iterator

import pytest

from tests.bed import Bed, needs
from tests.bed.bed import PROJECT
from tests.cluster.product import Product

_LAST_LINES = 25


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show of a test that failed what the nodes logged last: their logs go with the bed."""
    report = yield
    bed = getattr(item, "funcargs", {}).get("bed")
    if report.failed and isinstance(bed, Bed):
        for log in sorted((bed.work / "log").glob("node-*.log")):
            lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            report.sections.append((f"last of {log.name}", "\n".join(line[:300] for line in lines)))
    return report


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
