"""The journal: what a crash can leave is read as far as it is true, and no further."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.errors import Permanent
from agent.core.refs import Digest
from agent.models.checksum import RangeSums
from agent.models.journal import Journal, read_journal
from agent.models.ranges import Part

DIGEST = Digest("sha256:" + "a" * 64)


def entry(n: int) -> tuple[Part, RangeSums]:
    return Part(file=0, offset=n * 4096, length=4096), RangeSums(offset=n * 4096, length=4096, crc64=n + 1, other=n)


def written(path: Path, count: int) -> Path:
    journal = Journal(path, DIGEST, 4096, fresh=True)
    for n in range(count):
        journal.append(*entry(n))
    journal.close()
    return path


def test_it_is_read_back_as_written(tmp_path: Path) -> None:
    found = read_journal(written(tmp_path / "j", 3))
    assert found is not None
    assert (found.digest, found.part_bytes, found.done_bytes) == (DIGEST, 4096, 3 * 4096)
    assert found.sums == {(0, n * 4096): entry(n)[1] for n in range(3)}


def test_every_torn_end_loses_at_most_the_last_line_and_what_follows_counts(tmp_path: Path) -> None:
    whole = written(tmp_path / "j", 2).read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last, len(whole)):
        path = tmp_path / f"cut{cut}"
        path.write_bytes(whole[:cut])
        journal = Journal(path, DIGEST, 4096, fresh=False)
        journal.append(*entry(5))
        journal.close()
        found = read_journal(path)
        assert found is not None
        assert set(found.sums) - {(0, 4096)} == {(0, 0), (0, 5 * 4096)}


@pytest.mark.parametrize("content", [b"", b"garbage\n", b'{"format": 2} 00000000\n', b"\xff\xfe"])
def test_what_is_not_ours_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    assert read_journal(tmp_path / "j") is None
    assert read_journal(tmp_path / "absent") is None


def test_an_altered_line_is_not_believed(tmp_path: Path) -> None:
    path = written(tmp_path / "j", 1)
    path.write_bytes(path.read_bytes().replace(b"0000000000000001", b"0000000000000002"))
    found = read_journal(path)
    assert found is not None
    assert found.sums == {}


def test_a_full_disk_is_told_in_one_sentence() -> None:
    with pytest.raises(Permanent, match="cannot note what is on disk: no space left"):
        Journal(Path("/dev/full"), DIGEST, 4096, fresh=True)
