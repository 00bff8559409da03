"""`prewarm hydrate` and `fetch`: verified files in a directory, by rename, resumable; and what the source refuses."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.cli import hydrate
from agent.core.errors import Permanent, Transient
from agent.models.fetch import HIDDEN, fetch
from agent.models.journal import read_journal
from agent.models.resolve import resolve
from agent.models.source import open_source
from tests.bed.faultproxy import Rule
from tests.integration.models.conftest import SourceBucket, contents, noise

MIB = 1 << 20


def visible(directory: Path) -> dict[str, bytes]:
    return {path: content for path, content in contents(directory).items() if not path.startswith(HIDDEN)}


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    hydrate.add_parser(parser.add_subparsers())
    options = parser.parse_args(["hydrate", *words])
    code: int = options.run(options)
    return code


def test_hydrate_brings_a_model_and_a_second_call_fetches_nothing(
    bucket: SourceBucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"a.bin": bucket.put("m/a.bin", noise(9 * MIB)), "sub/b": bucket.put("m/sub/b", b"b")}
    assert run(str(bucket.uri()), "--to", str(tmp_path / "to"), "--json") == 0
    *steps, told = map(json.loads, capsys.readouterr().out.splitlines())
    assert {s["event"] for s in steps} <= {"progress"}
    assert (told["event"], told["files"], told["bytes"], told["fetchedBytes"], told["proof"]) == (
        "result",
        2,
        9 * MIB + 1,
        9 * MIB + 1,
        "crc64nvme",
    )
    assert visible(tmp_path / "to") == model
    assert run(str(bucket.uri()), "--to", str(tmp_path / "to")) == 0
    assert "already there, proved by crc64nvme" in capsys.readouterr().out
    (tmp_path / "to/sub/b").write_bytes(b"x")
    assert run(str(bucket.uri()), "--to", str(tmp_path / "to")) == 0
    assert visible(tmp_path / "to") == model


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["http://x/y"], 2, "does not start with s3://"),
        (["s3://BUCKET/none/"], 1, "nothing under s3://"),
        (["s3://BUCKET/none"], 1, "no such key"),
        (["s3://no-such-bucket-here/m/"], 1, "no such bucket"),
        (["s3://BUCKET/m/", "--connections", "0"], 2, "--connections must be between 1 and 256"),
    ],
)
def test_hydrate_says_what_is_wrong(
    bucket: SourceBucket, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    words = [w.replace("BUCKET", bucket.name) for w in words]
    assert run(*words, "--to", str(tmp_path)) == code
    assert said in capsys.readouterr().err


def test_interrupted_it_exits_130_and_shows_no_file_and_the_next_call_resumes(
    bucket: SourceBucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bucket.put("m/a.bin", noise(40 * MIB))
    bucket.proxy.rules.append(Rule("slow", times=99, arg=10e6))
    code = "import sys; from tests.integration.models.test_fetch import run; sys.exit(run(*sys.argv[1:]))"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(bucket.uri()), "--to", str(tmp_path), "--connections", "2", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not any((j := read_journal(p)) and j.sums for p in tmp_path.glob(f"{HIDDEN}/*/journal")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "MB here; the same command goes on from there" in err
    assert json.loads(out.splitlines()[-1])["event"] == "error"
    assert visible(tmp_path) == {}
    bucket.proxy.rules.clear()
    assert run(str(bucket.uri()), "--to", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["fetchedBytes"] < 40 * MIB
    assert visible(tmp_path) == {"a.bin": content}


def test_a_terminal_gets_a_bar_with_rate_and_files_and_the_result_stays(bucket: SourceBucket, tmp_path: Path) -> None:
    for name in ("first.bin", "second.bin"):
        bucket.put(f"m/{name}", noise(12 * MIB))
    bucket.proxy.rules.append(Rule("slow", times=99, arg=8e6))
    code = "import sys; from tests.integration.models.test_fetch import run; sys.exit(run(*sys.argv[1:]))"
    ours, theirs = os.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(bucket.uri()), "--to", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "150"},
    )
    os.close(theirs)
    shown = b""
    try:
        while some := os.read(ours, 65536):
            shown += some
    except OSError:
        pass  # the other end is closed
    out, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    assert b"/s, " in shown
    assert b" of 2 files" in shown
    assert b"first.bin" in shown
    assert out.startswith("2 files, 25.2 MB, fetched in ")


def test_s3_that_is_away_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": "x", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    assert run("s3://bucket/m/", "--to", str(tmp_path)) == 75


MOVES = """
import os, signal, sys
from pathlib import Path
from tests.integration.models.test_fetch import run

left, rename, replace = int(sys.argv[1]), os.rename, Path.replace

def killed_at(end):
    if end:
        os.kill(os.getpid(), signal.SIGKILL)

def move(source, target, *, src_dir_fd=None, dst_dir_fd=None):
    global left
    killed_at(src_dir_fd is not None and not left)
    left -= src_dir_fd is not None
    rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

def put(self, target):
    killed_at(self.name == "manifest.json")
    return replace(self, target)

os.rename, Path.replace = move, put
run(*sys.argv[2:])
"""


def killed_after(moves: int, bucket: SourceBucket, to: Path) -> None:
    """Fetch, and be killed when so many files have moved to their places, and the record of that is not written."""
    words = [sys.executable, "-c", MOVES, str(moves), str(bucket.uri()), "--to", str(to)]
    assert subprocess.run(words, check=False, timeout=60).returncode == -signal.SIGKILL
    assert len(visible(to)) == moves


@pytest.mark.parametrize("moves", range(4))
def test_killed_while_the_files_move_to_their_places_the_next_call_moves_the_rest_and_fetches_nothing(
    bucket: SourceBucket, tmp_path: Path, capsys: pytest.CaptureFixture[str], moves: int
) -> None:
    model = {path: bucket.put(f"m/{path}", noise(MIB, seed)) for seed, path in enumerate(("a", "b", "sub/c"))}
    killed_after(moves, bucket, tmp_path)
    before = len(bucket.proxy.ranges)
    assert run(str(bucket.uri()), "--to", str(tmp_path), "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["fetchedBytes"], told["proof"]) == (0, "crc64nvme")
    assert visible(tmp_path) == model
    assert {p.name for p in (tmp_path / HIDDEN).iterdir()} == {"lock", "manifest.json"}
    assert run(str(bucket.uri()), "--to", str(tmp_path)) == 0
    assert len(bucket.proxy.ranges) == before


def test_a_file_that_was_changed_after_the_kill_is_the_only_one_to_come_again(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    model = {path: bucket.put(f"m/{path}", noise(MIB, seed)) for seed, path in enumerate(("a", "b", "sub/c"))}
    killed_after(2, bucket, tmp_path)
    (tmp_path / "b").write_bytes(b"not what was brought")
    before = len(bucket.proxy.requests)
    assert run(str(bucket.uri()), "--to", str(tmp_path)) == 0
    assert visible(tmp_path) == model
    assert [q.path.partition("?")[0] for q in bucket.proxy.requests[before:] if q.is_range] == [f"/{bucket.name}/m/b"]


def test_another_version_after_the_kill_takes_nothing_from_the_first(bucket: SourceBucket, tmp_path: Path) -> None:
    for seed, path in enumerate(("a", "b", "sub/c")):
        bucket.put(f"m/{path}", noise(MIB, seed))
    killed_after(1, bucket, tmp_path)
    model = {path: bucket.put(f"m/{path}", noise(MIB, seed)) for seed, path in enumerate(("a", "b", "sub/c"), 10)}
    assert run(str(bucket.uri()), "--to", str(tmp_path)) == 0
    assert visible(tmp_path) == model


@pytest.mark.parametrize(
    ("key", "in_the_way"), [("m/a", "a/"), ("m/sub/b", "sub"), ("m/sub/deep/b", "sub/deep"), ("m/sub/b", "sub/b/c/")]
)
async def test_what_is_in_a_file_s_way_is_named_before_a_byte_is_fetched(
    bucket: SourceBucket, tmp_path: Path, key: str, in_the_way: str
) -> None:
    bucket.put(key, b"x")
    there = tmp_path / in_the_way
    there.parent.mkdir(parents=True, exist_ok=True)
    there.mkdir() if in_the_way.endswith("/") else there.write_bytes(b"theirs")
    path = key.removeprefix("m/")
    with pytest.raises(Permanent, match=rf"in the way of the model's files: '{path}'"):
        await fetch(bucket.uri(), tmp_path)
    assert bucket.proxy.ranges == []
    assert there.exists()


async def test_a_key_that_would_lie_among_partial_files_is_refused_before_a_byte_is_fetched(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    bucket.put(f"m/{HIDDEN}/manifest.json", b"{}")
    with pytest.raises(Permanent, match=f"would lie in {HIDDEN}"):
        await fetch(bucket.uri(), tmp_path)
    assert bucket.proxy.ranges == []


async def test_a_link_in_the_directory_is_not_followed(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("m/sub/b", b"b")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "to/sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Permanent, match="in the way of the model's files"):
        await fetch(bucket.uri(), tmp_path / "to")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert bucket.proxy.ranges == []


async def test_two_cannot_fetch_into_one_directory(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("m/b", b"b")
    (tmp_path / HIDDEN).mkdir()
    import fcntl

    held = os.open(tmp_path / HIDDEN / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(Transient, match="another process is fetching"):
        await fetch(bucket.uri(), tmp_path)
    os.close(held)


async def test_no_credentials_is_said(bucket: SourceBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(Permanent, match="no AWS credentials found"):
        await resolve(bucket.uri())


async def test_a_listing_of_several_pages_is_complete(bucket: SourceBucket) -> None:
    for n in range(1003):
        bucket.put(f"m/{n:04}", b"")
    async with open_source() as source:
        assert len(await source.list_objects(bucket.uri())) == 1003


async def test_a_hostile_key_is_refused_by_name(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.put("m/a%0Ab".replace("%0A", "\u202e"), b"x")
    with pytest.raises(Permanent, match=r"has control characters"):
        await fetch(bucket.uri(), tmp_path)
    assert visible(tmp_path) == {}


async def test_one_object_of_a_version_is_fetched(bucket: SourceBucket, tmp_path: Path) -> None:
    bucket.server.make_bucket(bucket.name, versioned=True)
    old = bucket.put("m/one.bin", b"old")
    version = (await resolve(bucket.uri("m/one.bin"))).objects[0].version_id
    bucket.put("m/one.bin", b"new")
    await fetch(bucket.uri(f"m/one.bin?versionId={version}"), tmp_path)
    assert visible(tmp_path) == {"one.bin": old}
