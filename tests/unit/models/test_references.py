"""Who uses what: a reference lasts until its pod was twice not seen; an unreadable one keeps everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.errors import Invalid
from agent.core.refs import Digest
from agent.models.references import References

ONE, TWO = Digest("sha256:" + "1" * 64), Digest("sha256:" + "2" * 64)


def test_references_outlive_the_process(tmp_path: Path) -> None:
    References(tmp_path).add("pod-1", [ONE])
    References(tmp_path).add("pod-1", [TWO])
    assert References(tmp_path).users(ONE) == References(tmp_path).users(TWO) == ["pod-1"]


def test_a_pod_is_forgotten_when_it_was_twice_not_seen_in_a_row(tmp_path: Path) -> None:
    references = References(tmp_path)
    references.add("pod-1", [ONE])
    for live in ([], ["pod-1"], []):
        references.seen(live)
        assert references.users(ONE) == ["pod-1"]
    references.seen([])
    assert references.users(ONE) == []


def test_a_reference_that_cannot_be_read_keeps_every_version(tmp_path: Path) -> None:
    (tmp_path / "pod-1.json").write_text("{torn")
    assert References(tmp_path).users(ONE) == ["pod-1"]


@pytest.mark.parametrize("uid", ["", "../x", "a/b", ".hidden", "x" * 65])
def test_a_uid_that_is_none_is_refused(tmp_path: Path, uid: str) -> None:
    with pytest.raises(Invalid, match="is not the uid of a pod"):
        References(tmp_path).add(uid, [ONE])
    assert list(tmp_path.iterdir()) == []


def test_a_reference_that_cannot_be_read_goes_on_keeping_what_it_kept(tmp_path: Path) -> None:
    (tmp_path / "pod-1.json").write_text("{torn")
    References(tmp_path).add("pod-1", [ONE])
    assert References(tmp_path).users(TWO) == ["pod-1"]


def test_what_could_not_be_read_back_is_not_noted(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="is not sha256"):
        References(tmp_path).add("pod-1", [ONE, Digest("cache")])
    assert References(tmp_path).users(TWO) == []
