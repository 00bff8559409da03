"""Fifty images on ten base layers, by a whole agent: each layer comes once, and the agent stays small."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed.layers import Layer
from tests.bed.registry import Registry
from tests.contract.images_worlds import HOST, containerd_of, why_not_real
from tests.integration.agent.runtime import Containerd
from tests.integration.agent.standalone import Standalone
from tests.integration.images.hostile import Front, hostile_front

IMAGES, SHARED = 50, 10
BUDGET_BYTES = 200_000_000


@pytest.fixture(params=["2.2"])
def node(request: pytest.FixtureRequest, registry: Registry) -> Iterator[tuple[Containerd, Front]]:
    if reason := why_not_real(request.param):
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="ctd"))
    program = containerd_of(request.param)
    assert program is not None
    try:
        with hostile_front((registry.host, registry.port)) as (front, (host, port)):
            daemon = Containerd(directory, Registry(f"{host}:{port}"), program)
            daemon.start()
            try:
                yield daemon, front
            finally:
                daemon.kill()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def memory_bytes(pid: int) -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def test_fifty_images_on_ten_base_layers_fetch_each_layer_once(
    node: tuple[Containerd, Front], registry: Registry, tmp_path: Path
) -> None:
    daemon, front = node
    base = [Layer(size_bytes=20_000, seed=f"base/{n}") for n in range(SHARED)]
    registry.make_image("many/base", "1", base)
    names = [f"many/app{n}" for n in range(IMAGES)]
    for name in names:
        registry.make_image(name, "1", [Layer(size_bytes=10_000, seed=name)], base="many/base:1")
    agent = Standalone(tmp_path, {}, {"containerd": daemon.socket, "max-pulls": 4})
    agent.write_plan({"all": []}, images=[f"{HOST}/{name}:1" for name in names])
    agent.start()
    try:
        agent.wait_ready("all", seconds=180)
        assert agent.process is not None
        peak = memory_bytes(agent.process.pid)
    finally:
        agent.end()
    layers = front.asked
    print(f"{sum(layers.values())} bodies of {len(layers)} blobs; the agent's peak was {peak / 1e6:.0f} MB")
    assert len(layers) == SHARED + 2 * IMAGES  # each image has a layer and a config of its own
    assert set(layers.values()) == {1}
    assert peak < BUDGET_BYTES
