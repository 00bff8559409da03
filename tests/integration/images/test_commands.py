"""`prewarm image` and `prewarm doctor images` as a person runs them on a node."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.contract.images_worlds import HOST, RealWorld

PREWARM = str(Path(sys.executable).parent / "prewarm")


async def prewarm(world: RealWorld, *words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        PREWARM,
        *words,
        env=os.environ | {"PREWARM_CONTAINERD": world.node.socket},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate()
    return process.returncode or 0, out.decode(), error.decode()


@pytest.mark.parametrize("world", ["2.2"], indirect=True)
async def test_an_image_is_warmed_proved_pinned_and_unpinned_by_hand(world: RealWorld) -> None:
    digest = await world.push("hand:1", layers=2)
    ref = f"{HOST}/hand:1"
    code, out, _ = await prewarm(world, "image", "proof", ref)
    assert (code, out.partition(": containerd has no record of it")[0]) == (3, f"{ref}: absent")
    code, out, error = await prewarm(world, "image", "warm", ref)
    assert (code, out.split()[1]) == (0, "unpacked")
    assert "pulling, resumable" in error
    code, out, _ = await prewarm(world, "image", "pin", ref)
    assert (code, ", pinned" in out or await world.node.shielded(ref)) == (0, True)
    code, out, _ = await prewarm(world, "image", "status", ref, "--json")
    told = json.loads(out)
    assert (told["level"], told["digest"], told["pinned"]) == ("unpacked", digest, True)
    assert (await prewarm(world, "image", "unpin", ref))[0] == 0


@pytest.mark.parametrize("world", ["2.2"], indirect=True)
async def test_what_cannot_be_done_is_one_sentence(world: RealWorld) -> None:
    ref = f"{HOST}/nosuch:1"
    code, _, error = await prewarm(world, "image", "warm", ref)
    assert code == 1
    assert "the registry does not have it: check name and tag" in error.splitlines()[-1]
    code, _, error = await prewarm(world, "image", "pin", ref)
    assert (code, error) == (1, "prewarm image pin: there is no such image here: warm it first\n")


@pytest.mark.parametrize("world", ["1.6", "2.2"], indirect=True)
async def test_the_doctor_says_what_a_containerd_cannot_do(world: RealWorld) -> None:
    code, out, _ = await prewarm(world, "doctor", "images")
    if world.version == "2.2":
        assert code == 0, out
        assert out.startswith("images: nothing to mend\n")
        assert f"images of {HOST}: containerd asks http://{world.address} ({world.directory}/certs.d)" in out
    else:
        assert code == 3
        assert "it has no transfer service" in out
        assert "it ignores pins" in out


@pytest.mark.parametrize("world", ["2.2"], indirect=True)
async def test_the_doctor_says_of_an_image_what_will_become_of_it(world: RealWorld) -> None:
    await world.push("plain:1", index=True)
    ref = f"{HOST}/plain:1"
    code, out, _ = await prewarm(world, "doctor", "images", ref)
    assert code == 0, out
    assert f"images: {ref}: it will be fetched whole: it is in no lazy format\n" in out
    assert f"images: {ref}: now it is absent: containerd has no record of it" in out
    code, out, _ = await prewarm(world, "doctor", "images", f"{HOST}/nosuch:1")
    assert code == 1
    assert "does not exist: check name and tag" in out
