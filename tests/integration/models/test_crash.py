"""SIGKILL at every step of a commit, and in the middle of a download: the disk is valid and the next run continues."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.models.journal import read_journal
from agent.models.store import Store
from tests.bed.faultproxy import Rule
from tests.integration.models.conftest import SourceBucket, contents, noise

MIB = 1 << 20
STEPS = ["made-read-only", "manifest-written", "directories-synced", "renamed", "store-synced", "committed"]


def command(bucket: SourceBucket, root: Path, step: str) -> list[str]:
    return [sys.executable, "-m", "tests.integration.models.crash", str(root), str(bucket.uri()), step]


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_of_the_commit(bucket: SourceBucket, tmp_path: Path, step: str) -> None:
    model = {"a.bin": bucket.put("m/a.bin", noise(9 * MIB)), "sub/b": bucket.put("m/sub/b", b"b")}
    killed = subprocess.run(command(bucket, tmp_path, step), env=dict(os.environ), check=False, timeout=60)
    assert killed.returncode == -9
    fetched = len(bucket.proxy.ranges)
    store = Store(tmp_path)
    found = store.open()
    assert found.broken == ()
    if step in ("renamed", "store-synced", "committed"):
        assert [contents(store.directory(v.digest) / "files") for v in found.versions] == [model]
    else:
        assert found.versions == ()
        assert len(found.partial) == 1
        again = subprocess.run(
            command(bucket, tmp_path, "none"), check=True, capture_output=True, text=True, timeout=60
        )
        assert contents(tmp_path / "store" / again.stdout.strip() / "files") == model
    assert len(bucket.proxy.ranges) == fetched  # not a byte came twice
    assert list((tmp_path / "trash").iterdir()) == list((tmp_path / "staging").iterdir()) == []


def test_killed_in_the_middle_fetches_again_only_what_was_in_flight(bucket: SourceBucket, tmp_path: Path) -> None:
    content = bucket.put("m/a.bin", noise(40 * MIB))
    bucket.proxy.rules.append(Rule("slow", times=99, arg=15e6))
    child = subprocess.Popen(command(bucket, tmp_path, "none"), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any((j := read_journal(p)) and len(j.sums) >= 2 for p in tmp_path.glob("staging/*/journal")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    bucket.proxy.rules.clear()
    done = sum(len(j.sums) for p in tmp_path.glob("staging/*/journal") if (j := read_journal(p)))
    before = len(bucket.proxy.ranges)
    again = subprocess.run(command(bucket, tmp_path, "none"), check=True, capture_output=True, text=True, timeout=60)
    assert contents(tmp_path / "store" / again.stdout.strip() / "files") == {"a.bin": content}
    # The proxy may have taken in the last request of the one that was killed only now.
    assert len(set(bucket.proxy.ranges[before:])) == 5 - done


def test_two_agents_do_not_share_a_root(bucket: SourceBucket, tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.try_lock()
    other = subprocess.run(command(bucket, tmp_path, "none"), check=False, capture_output=True, text=True, timeout=60)
    assert (other.returncode, other.stderr.strip()) == (1, "the root is locked")
    store.unlock()
    assert Store(tmp_path).try_lock()
