"""One wrong answer, or a disk that refuses for a moment, costs nothing of what is here."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.inventory import ModelLevel
from agent.models import eviction, store
from agent.models.engine import Engine
from agent.models.fetch import fetch
from agent.models.paths import remove_tree
from agent.models.resolve import resolve
from agent.plan.decision import EvictStep
from tests.bed.faultproxy import Rule
from tests.integration.models.conftest import SourceBucket, contents, noise
from tests.integration.models.test_service import is_committed, only, room, want

MIB = 1 << 20
LAST = f"bytes={24 * MIB}-{24 * MIB + 4}"  # of four ranges


@pytest.mark.parametrize("fault", ["404", "wrong-etag"])
async def test_a_gateway_that_denies_an_object_once_does_not_cost_the_download(
    bucket: SourceBucket, tmp_path: Path, fault: str
) -> None:
    bucket.put("m/a", noise(24 * MIB + 5))
    bucket.proxy.rules.append(Rule(fault, match=lambda q: q.headers.get("range") == LAST))
    async with room(tmp_path, connections=1) as r:
        await r.bring(want(bucket.uri()))
        await r.until(lambda v: v.states and "replaced" in only(v).error)
        assert only(r.models.get()).level is ModelLevel.PARTIAL
        await r.until(is_committed)
    assert bucket.proxy.ranges.count(LAST) == 2
    assert len(bucket.proxy.ranges) == 4 + 1


async def test_nor_the_one_of_a_person(bucket: SourceBucket, tmp_path: Path) -> None:
    content = bucket.put("m/a", noise(24 * MIB + 5))
    bucket.proxy.rules.append(Rule("404", match=lambda q: q.headers.get("range") == LAST))
    await fetch(bucket.uri(), tmp_path, engine=Engine(connections=1))
    assert contents(tmp_path)["a"] == content
    assert len(bucket.proxy.ranges) == 4 + 1


async def test_an_object_that_was_replaced_is_thrown_away_as_ever(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("m/a", noise(24 * MIB + 5))
    before = (await resolve(bucket.uri())).digest
    done: list[bytes] = []

    def replaced(request: object) -> bool:
        if not done and getattr(request, "headers", {}).get("range") == LAST:
            done.append(bucket.put("m/a", noise(24 * MIB + 5, 2)))
        return False

    bucket.proxy.rules.append(Rule("none", match=replaced))
    async with room(tmp_path, connections=1) as r:
        await r.bring(want(bucket.uri()))
        view = await r.until(is_committed)
        digest = next(d for d, s in view.states.items() if s.level is ModelLevel.COMMITTED)
    assert digest != before
    assert contents(tmp_path / "store" / digest / "files") == {"a": done[0]}
    assert list((tmp_path / "staging").iterdir()) == []


async def test_a_removal_that_the_disk_refuses_is_no_removal(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "WAIT_SECONDS", 0.05)
    bucket.put("m/a", b"a")
    digest = (await resolve(bucket.uri())).digest
    refused = 0

    def refuse(_digest: object) -> None:
        nonlocal refused
        refused += 1
        raise OSError(errno.EIO, "Input/output error")

    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri(), digest))
        await r.until(is_committed)
        with monkeypatch.context() as patch:
            patch.setattr(r.service._shelf.views, "drop_version", refuse)
            r.plan.set(replace(r.plan.get(), hydrations=(), evictions=(EvictStep(digest=digest, reason="not wanted"),)))
            await r.until_disk(lambda: refused > 0)
            r.plan.set(replace(r.plan.get(), evictions=()))
            assert only(await r.until(is_committed)).reason == "kept: it is needed again"
        assert contents(tmp_path / "store" / digest / "files") == {"a": b"a"}


async def test_trash_that_cannot_be_emptied_is_in_nobodys_way(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("m/a", b"a")
    digest = (await resolve(bucket.uri())).digest
    stuck = tmp_path / "trash" / "stuck"
    stuck.mkdir(parents=True)

    def busy(path: Path) -> None:
        if path == stuck:
            raise OSError(errno.EBUSY, "Device or resource busy")  # something is mounted there
        remove_tree(path)

    monkeypatch.setattr(store, "remove_tree", busy)
    async with room(tmp_path) as r:
        await r.bring(want(bucket.uri(), digest))
        await r.until(is_committed)
    async with room(tmp_path) as r:
        await r.until(is_committed)
    assert len(bucket.proxy.ranges) == 1
