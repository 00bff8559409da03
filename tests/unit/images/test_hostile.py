"""What registries, images and their owners may say without taking an agent or planner down."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from agent.images.faults import PermanentFault
from agent.images.hosts import RegistryHost
from agent.images.lazy import served_layers
from agent.images.reading import read_layers
from agent.images.registry import _check_secret_goes_to, _seconds
from agent.images.sockets import Connections
from agent.images.sources import Sources


@pytest.mark.parametrize(
    "header", ["", "soon", "-1", "9" * 400, "Fri, 01 Jan 99999999999999999999 00:00:00 GMT", "Fri, 99 Foo 1 1:1:1 GMT"]
)
def test_a_retry_after_that_says_nothing_is_no_wait(header: str) -> None:
    assert _seconds(header) == 0.0


@pytest.mark.parametrize("realm", ["https://[x", "https://x:99999/"])
def test_a_realm_that_is_no_url_is_left_to_who_asks_it(realm: str) -> None:
    _check_secret_goes_to(realm, "https://r.test/v2")


@pytest.mark.parametrize("realm", ["http://r.test/token", "ftp://r.test", "[x", ""])
def test_no_secret_goes_to_a_realm_in_the_clear(realm: str) -> None:
    with pytest.raises(PermanentFault, match="not over https"):
        _check_secret_goes_to(realm, "https://r.test/v2")


def test_mounts_of_others_are_not_looked_into(tmp_path: Path) -> None:
    line = "36 35 0:5 / {} rw - fuse{} {} rw\n"
    mounts = [("/a", ".gcsfuse", "bucket"), ("/b", ".rawBridge", "stargz")]
    (tmp_path / "mountinfo").write_text("".join(line.format(*mount) for mount in mounts))
    for name in ("a", "b"):
        state = tmp_path / "root" / name / ".stargz-snapshotter"
        state.mkdir(parents=True)
        (state / "x.json").write_text(f'{{"digest": "{name}", "fetchedPercent": 100}}')
    assert set(served_layers(tmp_path)) == {"b"}


def test_an_entry_point_behind_a_link_is_not_read(tmp_path: Path) -> None:
    layer, outside = tmp_path / "layer", tmp_path / "outside"
    outside.mkdir()
    (outside / "big").write_bytes(b"x" * 1000)
    layer.mkdir()
    (layer / "x").symlink_to(outside)
    (layer / "own").write_bytes(b"y" * 10)
    assert read_layers([layer], ["/x/big", "/own"], lambda: False) == 20  # its own file twice: first, and in order


def test_connections_that_are_closed_have_nothing_more_to_tell() -> None:
    connections = Connections()
    connections.close()
    assert connections.ended() == []


async def test_counting_that_is_cancelled_again_and_again_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    sources, never = Sources(), asyncio.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])

    async def pull() -> None:
        async with sources.counting(Path("/proc/self"), [RegistryHost(base="https://r.test/v2", name="r.test")]):
            await never.wait()

    for _ in range(3):
        task = asyncio.create_task(pull())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sources._pulls == 0
        assert sources._connections is None


def test_mounts_and_states_in_no_known_form_hide_no_other(tmp_path: Path) -> None:
    strange, good = tmp_path / "root" / os.fsdecode(b"\xff a\xe2\x80\xa8"), tmp_path / "root" / "b"
    for name, mount in (("strange", strange), ("good", good)):
        state = mount / ".stargz-snapshotter"
        state.mkdir(parents=True)
        (state / "x.json").write_text(f'{{"digest": "{name}", "fetchedPercent": 100}}')
    (good / ".stargz-snapshotter" / "deep.json").write_text("[" * 60_000)
    (good / ".stargz-snapshotter" / "huge.json").write_text('{"digest": "h", "fetchedPercent": 1' + "0" * 400 + "}")
    (tmp_path / "mountinfo").write_bytes(
        b"36 35 0:5 / /\xff\\040a\xe2\x80\xa8 rw - fuse.rawBridge stargz rw\n"
        b"half - fuse.rawBridge stargz rw\n"
        b"36 35 0:5 / /b rw - fuse.rawBridge stargz rw\n"
    )
    assert set(served_layers(tmp_path)) == {"strange", "good"}
