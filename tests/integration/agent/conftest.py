"""One S3 server for this folder, reached through a proxy that can be slow; agents that a test starts end with it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bed import needs
from tests.bed.faultproxy import FaultProxy, Rule
from tests.bed.s3 import S3Server
from tests.integration.agent.standalone import Standalone
from tests.integration.models.conftest import environment, noise

_NUMBERS = itertools.count()
MakeAgent = Callable[..., Standalone]


@dataclass(frozen=True, slots=True)
class Weights:
    """A bucket of its own behind a proxy."""

    server: S3Server
    proxy: FaultProxy
    bucket: str

    def put(self, prefix: str, size_bytes: int, *, files: int = 2) -> dict[str, bytes]:
        """Upload a model below `prefix/`; returns its files."""
        content = {f"part-{n}.bin": noise(size_bytes // files, seed=n) for n in range(files)}
        content["config.json"] = b"{}"
        for name, data in content.items():
            self.server.put(self.bucket, f"{prefix}/{name}", data)
        return content

    def uri(self, prefix: str) -> str:
        return f"s3://{self.bucket}/{prefix}/"

    def slow_down(self, bytes_per_second: float) -> None:
        """Let each connection have this much from now on."""
        self.proxy.rules.append(Rule("slow", times=1_000_000, arg=bytes_per_second))

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.server, self.proxy.url)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if reason := needs.why_not("s3"):
        pytest.skip(reason)
    with S3Server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def weights(server: S3Server) -> Iterator[Weights]:
    name = f"weights-{os.getpid()}-{next(_NUMBERS)}"
    server.make_bucket(name)
    with FaultProxy(server.address) as proxy:
        yield Weights(server, proxy, name)


@pytest.fixture
def make_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeAgent]:
    """Makes agents; those that still run at the end of the test are killed."""
    made: list[Standalone] = []

    def make(environment: dict[str, str], directory: Path | None = None, **settings: object) -> Standalone:
        given = {name.replace("_", "-"): value for name, value in settings.items()}
        made.append(Standalone(directory or tmp_path_factory.mktemp("agent"), environment, given))
        return made[-1]

    yield make
    for agent in made:
        if not agent.ended:
            agent.end()


@pytest.fixture
def agent(make_agent: MakeAgent, weights: Weights) -> Standalone:
    return make_agent(weights.environment)
