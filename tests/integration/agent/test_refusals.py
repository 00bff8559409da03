"""What a node refuses, and what it never lets out of its store: models that do not fit, and hostile object keys."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed.process import run
from tests.integration.agent.conftest import MakeAgent, Weights
from tests.integration.agent.hostile import HostileS3
from tests.integration.agent.standalone import Standalone, Status
from tests.integration.models.conftest import contents

DISK_BYTES = 64 << 20

HOSTILE = {
    "above": "m/../../../../x",
    "absolute": "m//etc/passwd",
    "empty part": "m/a//b",
    "dot": "m/./a",
    "only dots": "m/..",
    "long": "m/" + "n" * 1000,
    "long in parts": "m/" + "/".join(["d" * 200] * 6),
    "line end": "m/a\nb",
    "escape": "m/\x1b[2Jx",
    "nul": "m/a\x00b",
    "bidi": "m/a\u202eb",
    "directory with bytes": "m/a/",
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of DISK_BYTES."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("a loop device needs root and mkfs.ext4")
    image, at = tmp_path / "disk.img", tmp_path / "disk"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    run(["mkfs.ext4", "-q", "-m", "0", str(image)])
    mounted = subprocess.run(["mount", "-o", "loop", image, at], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no loop device here: {mounted.stderr.strip()}")
    yield at
    run(["umount", "--lazy", str(at)])


@pytest.fixture
def hostile() -> Iterator[HostileS3]:
    with HostileS3() as server:
        yield server


@pytest.mark.root
def test_a_model_that_does_not_fit_is_refused_with_numbers_while_its_sibling_goes_on(
    make_agent: MakeAgent, weights: Weights, small_disk: Path
) -> None:
    weights.put("big", 80_000_000, files=4)
    files = weights.put("small", 4_000_000)
    free_before = shutil.disk_usage(small_disk).free
    agent = make_agent(weights.environment, root=small_disk / "prewarm", high_watermark="0.85")
    agent.write_plan({"big": [weights.uri("big")], "small": [weights.uri("small")]})
    agent.start()

    agent.wait_ready("small")
    status = agent.wait(lambda s: s if s.endpoint("big")["stage"] == "failing" else None, 20, "the big one is refused")
    reason = status.endpoint("big")["reason"]
    assert "needs 80.0 MB but only" in reason
    assert "filled to 85% at most" in reason
    assert not status.ready("big")
    assert status.item("big")["level"] == "absent"
    assert [contents(version / "files") for version in agent.committed()] == [files]
    assert list((agent.root / "staging").iterdir()) == []
    assert free_before - shutil.disk_usage(small_disk).free < 5_000_000
    assert not [r for r in weights.proxy.requests if r.is_range and "/big/" in r.path]


@pytest.mark.root
def test_a_disk_that_others_fill_later_takes_nothing_from_a_model_once_admitted(
    make_agent: MakeAgent, weights: Weights, small_disk: Path
) -> None:
    files = weights.put("first", 24_000_000)
    weights.put("second", 4_000_000)
    agent = make_agent(weights.environment, root=small_disk / "prewarm", high_watermark="0.85")
    agent.write_plan({"first": [weights.uri("first")]})
    weights.slow_down(2e6)
    agent.start()
    agent.wait(lambda s: s.item().get("bytes", 0) > 0, 30, "a part of it")
    fill(small_disk)

    agent.wait_ready("first")
    assert [contents(version / "files") for version in agent.committed()] == [files]
    agent.write_plan({"first": [weights.uri("first")], "second": [weights.uri("second")]})
    status = agent.wait(lambda s: s if s.endpoint("second")["stage"] == "failing" else None, 20, "no room for another")
    assert "needs 4.00 MB but only 0 B may be used" in status.endpoint("second")["reason"]
    assert status.ready("first")
    assert "Traceback" not in agent.log()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_key_is_refused_by_name_and_nothing_is_fetched_or_written(
    make_agent: MakeAgent, hostile: HostileS3, tmp_path: Path, name: str
) -> None:
    hostile.objects = {"m/good.bin": b"good", HOSTILE[name]: b"evil", "n/fine.bin": b"fine"}
    agent = make_agent(hostile.environment, root=tmp_path / "deep" / "er" / "root")
    agent.write_plan({"chat": ["s3://weights/m/"], "sibling": ["s3://weights/n/"]})
    agent.start()

    def refused(status: Status) -> Status | None:
        return status if status.endpoint()["stage"] == "failing" else None

    status = agent.wait(refused, 20, "it is refused")
    reason = status.endpoint()["reason"]
    assert ascii(HOSTILE[name])[1:60] in reason
    assert reason.isprintable()
    agent.wait_ready("sibling")
    assert [contents(version / "files") for version in agent.committed()] == [{"fine.bin": b"fine"}]
    assert hostile.fetched == ["n/fine.bin"]
    assert outside(agent, tmp_path) == []
    assert all(line.isprintable() for line in agent.log().splitlines())


def test_ordinary_but_odd_keys_arrive_as_they_are(make_agent: MakeAgent, hostile: HostileS3) -> None:
    odd = {"a b+c%2F.bin": b"1", "ü/日本.bin": b"2", "x" * 255: b"3", "...": b"4", "-rf *": b"5", "a'\"&<>.bin": b"6"}
    hostile.objects = {f"m/{name}": data for name, data in odd.items()}
    agent = make_agent(hostile.environment)
    agent.write_plan({"chat": ["s3://weights/m/"]})
    agent.start().wait_ready()
    assert [contents(version / "files") for version in agent.committed()] == [odd]


def fill(disk: Path) -> None:
    """Take all room but a quarter of a megabyte."""
    filler = disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=64k", "conv=fsync"], capture_output=True, check=False)
    os.truncate(filler, filler.stat().st_size - (256 << 10))


def outside(agent: Standalone, parent: Path) -> list[Path]:
    """Files below `parent` that are not in the agent's root."""
    return [p for p in parent.rglob("*") if p.is_file() and not p.is_relative_to(agent.root)]
