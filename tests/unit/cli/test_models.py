"""`prewarm models` on a real store without an agent: what it shows, what it refuses, what it finds damaged."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from awscrt.checksums import crc64nvme

from agent.cli import main
from agent.core.assignment_json import format_time
from agent.core.refs import Digest, parse_model_uri
from agent.models.manifest import Manifest, ObjectEntry
from agent.models.references import References
from agent.models.store import Store
from agent.models.transfer import FileProof

NOW = datetime.now(UTC)
Make = Callable[..., Digest]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "root")
    (tmp_path / "root").mkdir()
    store.open()
    return store


@pytest.fixture
def commit(store: Store) -> Make:
    """Commits a version of one file of some bytes."""

    def make(name: str, content: bytes = b"weights" * 1000, etag: str = "1") -> Digest:
        entry = ObjectEntry(key=f"{name}/a.bin", path="a.bin", size=len(content), etag=f'"{etag}"')
        manifest = Manifest(uri=parse_model_uri(f"s3://models/{name}/"), objects=(entry,))
        store.stage(manifest.digest)
        files = store.root / "staging" / manifest.digest / "files"
        files.mkdir(exist_ok=True)
        (files / "a.bin").write_bytes(content)
        proof = FileProof(path="a.bin", crc64=crc64nvme(content), proof="crc64nvme")
        return store.commit(manifest, [proof], NOW).digest

    return make


@pytest.fixture
def models(store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(act: str, *words: str) -> tuple[int, str, str]:
        try:
            code = main(["models", act, *words, "--root", str(store.root), "--run-dir", str(tmp_path / "run")])
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return call


Call = Callable[..., tuple[int, str, str]]


def events(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def damage(store: Store, digest: Digest) -> None:
    """Change a byte in place and put the times back, as a disk does that rots."""
    path = store.directory(digest) / "files" / "a.bin"
    before = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(5)
        file.write(b"X")
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_ls_tells_what_is_here_and_what_keeps_it(store: Store, commit: Make, models: Call) -> None:
    first, second = commit("llama"), commit("qwen")
    store.pin(first, NOW)
    References(store.root / "refs").add("uid-1", [second])
    code, out, _ = models("ls")
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert out.split()[:3] == ["VERSION", "LEVEL", "SIZE"]
    assert rows[first[7:19]].split()[1:] == [
        *("committed", "7.00", "kB", "1", format_time(NOW), "crc64nvme", "pinned", "s3://models/llama/"),
    ]
    assert "1 pod " in rows[second[7:19]]
    code, out, _ = models("ls", "--json")
    told = {e["digest"]: e for e in events(out)}
    assert (told[first]["pinned"], told[first]["bytes"], told[second]["pods"]) == (True, 7000, 1)


def test_ls_of_an_empty_store_says_so(models: Call, tmp_path: Path) -> None:
    assert models("ls")[:2] == (0, f"no model version is in {tmp_path / 'root'}\n")


def test_a_store_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "ls", "--root", str(tmp_path / "none")]) == 1
    assert f"no store at {tmp_path / 'none'}" in capsys.readouterr().err


def test_verify_reads_every_byte_and_names_what_is_damaged(store: Store, commit: Make, models: Call) -> None:
    good, bad = commit("llama"), commit("qwen", b"other" * 2000)
    assert models("verify", "-q")[0] == 0
    damage(store, bad)
    assert store.prove(next(v for v in store.look().versions if v.digest == bad)) == ""  # a stat does not see it
    code, out, err = models("verify", "--quiet")
    assert code == 1
    assert f"{good[7:19]} intact: 7.00 kB read back (s3://models/llama/)" in out
    assert f"{bad[7:19]} damaged: 'a.bin' is damaged between byte 0 and byte 10000" in out
    assert "1 of 2 versions damaged" in err
    code, out, _ = models("verify", bad, "--json")
    *_, version, result = events(out)
    assert (code, version["digest"], result["damaged"]) == (1, bad, 1)
    assert models("verify", good[:20], "-q")[0] == 0


def test_rm_removes_and_nothing_stays(store: Store, commit: Make, models: Call) -> None:
    digest = commit("llama")
    code, out, _ = models("rm", digest)
    assert (code, out) == (0, f"{digest[7:19]} removed: s3://models/llama/\n")
    assert not store.directory(digest).exists()
    assert list((store.root / "trash").iterdir()) == []


def test_rm_refuses_what_is_pinned_used_open_or_due_with_the_reason(store: Store, commit: Make, models: Call) -> None:
    pinned, used, opened, due = (commit(n) for n in ("pinned", "used", "opened", "due"))
    store.pin(pinned, NOW)
    References(store.root / "refs").add("uid-1", [used])
    window = {"readyBy": format_time(NOW + timedelta(hours=5)), "until": format_time(NOW + timedelta(hours=6))}
    endpoint = {"namespace": "team", "name": "chat", "models": ["s3://models/due/"], "windows": [window]}
    kept = {"at": format_time(NOW), "node": "n", "generation": 1, "spec": {"endpoints": [endpoint]}}
    (store.root / "nodewarmup.json").write_text(json.dumps(kept))
    with (store.directory(opened) / "files" / "a.bin").open("rb"):
        code, out, err = models("rm", pinned, used, opened, due)
    assert (code, out) == (1, "")
    assert f"version {pinned[7:19]} is not removed: it is pinned" in err
    assert f"version {used[7:19]} is not removed: 1 pod(s) use it, among them uid-1" in err
    assert f"version {opened[7:19]} is not removed: process {os.getpid()} has a file of it open" in err
    assert f"version {due[7:19]} is not removed: team.chat needs it until" in err
    assert all(store.directory(d).exists() for d in (pinned, used, opened, due))


def test_rm_leaves_a_store_alone_that_an_agent_has(store: Store, commit: Make, models: Call) -> None:
    digest = commit("llama")
    with (store.root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = models("rm", digest)
    assert (code, "an agent has the store and does not answer" in err) == (1, True)
    assert store.directory(digest).exists()


def test_one_refusal_does_not_keep_the_others(store: Store, commit: Make, models: Call) -> None:
    pinned, free = commit("pinned"), commit("free")
    store.pin(pinned, NOW)
    code, out, _ = models("rm", pinned, free, "--json")
    assert code == 1
    assert [(e["event"], e["digest"]) for e in events(out)] == [("refused", pinned), ("removed", free)]
    assert not store.directory(free).exists()


def test_pin_and_unpin_say_whether_anything_changed(store: Store, commit: Make, models: Call) -> None:
    digest = commit("llama")
    assert models("pin", "s3://models/llama/")[1] == f"{digest[7:19]} pinned: s3://models/llama/\n"
    assert store.pinned() == {digest}
    assert "was pinned already" in models("pin", digest[7:15])[1]
    assert "unpinned" in models("unpin", digest)[1]
    assert "was not pinned" in models("unpin", digest)[1]
    assert store.pinned() == frozenset()


def test_a_store_that_cannot_be_changed_is_said(store: Store, commit: Make, models: Call) -> None:
    digest = commit("llama")
    pins = store.root / "pins"
    if pins.is_dir():
        pins.rmdir()
    pins.touch()  # where a directory is needed
    code, _, err = models("pin", digest)
    assert (code, "cannot change the store" in err) == (1, True), err


def test_a_word_must_mean_one_version(commit: Make, models: Call) -> None:
    commit("llama", etag="1")
    commit("llama", etag="2")
    code, _, err = models("pin", "s3://models/llama/")
    assert (code, "give more of the digest" in err) == (2, True)
    for word in ("s3://models/none/", "ffffffffff", "abc", "../x"):
        code, _, err = models("rm", word)
        assert (code, "no version here is called" in err) == (2, True)
    assert models("rm")[0] == 2


def test_help_of_each_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for act in ("ls", "verify", "rm", "pin", "unpin"):
        with pytest.raises(SystemExit) as ended:
            main(["models", act, "--help"])
        assert ended.value.code == 0
        assert "prewarm models verify 4f1c" in capsys.readouterr().out
