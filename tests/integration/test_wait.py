"""`prewarm wait` against a real agent socket, a dead one, none, and what lies on disk."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cli.wait import EXIT_FAILED, EXIT_OK, EXIT_TERMINATED, Plan, at_once, link
from agent.cli.waiting_pod import wait
from agent.core.errors import Permanent
from agent.core.refs import ModelUri, parse_model_source
from tests.integration.test_local_api import UID, loading, serving
from tests.unit.node.making import CHAT, DIGEST, assigned, warm


def order(root: Path, **other: object) -> Plan:
    full: dict[str, object] = {
        "endpoint": CHAT,
        "models": (parse_model_source("llama=s3://weights/llama/"),),
        "pod_name": "chat-1",
        "pod_uid": UID,
        "into": root / "models",
        "views": root / "views",
        "socket": root / "run" / "agent.sock",
        "timeout_seconds": 20.0,
        "otherwise": "fail",
    }
    return Plan(**(full | other))  # type: ignore[arg-type]


class Pod:
    """One call of the command: what it said and fetched."""

    def __init__(self, refusal: str = "") -> None:
        self.lines: list[str] = []
        self.fetched: list[str] = []
        self.refusal = refusal

    async def fetch(self, uri: ModelUri, directory: Path) -> None:
        self.fetched.append(str(uri))
        (directory / "config.json").write_text("{}")
        if self.refusal:
            raise Permanent(self.refusal)

    async def run(self, plan: Plan) -> int:
        async with asyncio.timeout(30):
            return await wait(plan, fetch=self.fetch, say=self.lines.append)


def on_disk(root: Path, digest: str = DIGEST, committed: str = "2026-03-01T00:00:00Z", **other: str) -> Path:
    """A view as the models room leaves it."""
    view = root / "views" / "team" / "chat" / digest
    view.mkdir(parents=True)
    told = {"name": "llama", "uri": "s3://weights/llama/", "digest": digest, "committed": committed} | other
    view.with_name(f"{digest}.json").write_text(json.dumps(told))
    return view


async def test_it_waits_for_the_commit_and_links_the_version(tmp_path: Path) -> None:
    pod = Pod()
    async with serving(tmp_path) as node, asyncio.TaskGroup() as group:
        node.prove(loading(250))
        waiting = group.create_task(pod.run(order(tmp_path)))
        async with asyncio.timeout(10):
            async for value in node.waiting.follow():
                if value:
                    break
        await asyncio.sleep(0.3)
        view = node.show()
        node.prove(warm())
        assert await waiting == EXIT_OK
    assert (tmp_path / "models" / "llama").readlink() == view
    assert "model llama: 250 B of 1.00 kB at 0 B/s (25% of 1.00 kB)" in pod.lines
    assert pod.lines[-1] == f"llama -> {view}"
    assert node.refs.kept == [(UID, (DIGEST,))]


async def test_an_agent_that_dies_meanwhile_is_waited_for(tmp_path: Path) -> None:
    pod = Pod()
    async with asyncio.TaskGroup() as group:
        async with serving(tmp_path) as first:
            first.prove(loading(250))
            waiting = group.create_task(pod.run(order(tmp_path)))
            async with asyncio.timeout(10):
                async for value in first.waiting.follow():
                    if value:
                        break
        async with serving(tmp_path) as second:
            view = second.show()
            second.prove(warm())
            assert await waiting == EXIT_OK
    assert (tmp_path / "models" / "llama").readlink() == view
    assert "the agent went away; connecting again" in pod.lines


async def test_an_agent_that_does_not_come_back_in_time_leaves_what_is_on_disk(tmp_path: Path) -> None:
    pod = Pod()
    async with asyncio.TaskGroup() as group:
        async with serving(tmp_path) as node:
            node.prove(loading(250))
            waiting = group.create_task(pod.run(order(tmp_path, timeout_seconds=4.0)))
            async with asyncio.timeout(10):
                async for value in node.waiting.follow():
                    if value:
                        break
        view = on_disk(tmp_path)  # it was committed just before the agent died
        assert await waiting == EXIT_OK
    assert (tmp_path / "models" / "llama").readlink() == view


async def test_a_directory_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    on_disk(tmp_path)
    (tmp_path / "models").write_text("a file")
    pod = Pod()
    assert await pod.run(order(tmp_path)) == EXIT_FAILED
    assert pod.lines[-1].startswith(f"failed: cannot write to {tmp_path}/models: ")
    (tmp_path / "views" / "team").rename(tmp_path / "views" / "other")
    assert await pod.run(order(tmp_path, otherwise="fetch")) == EXIT_FAILED
    assert pod.lines[-1].startswith(f"failed: cannot write to {tmp_path}/models: ")


async def test_with_no_agent_the_newest_committed_version_on_disk_is_linked(tmp_path: Path) -> None:
    on_disk(tmp_path, committed="2026-02-01T00:00:00Z")
    newest = on_disk(tmp_path, "sha256:" + "b" * 64, committed="2026-03-01T00:00:00Z")
    on_disk(tmp_path, "sha256:" + "c" * 64, committed="2026-03-02T00:00:00Z", uri="s3://weights/other/")
    (tmp_path / "views" / "team" / "chat" / "junk.json").write_text("{")
    gone = on_disk(tmp_path, "sha256:" + "d" * 64, committed="2026-03-03T00:00:00Z")
    gone.rmdir()
    pod = Pod()
    assert await pod.run(order(tmp_path)) == EXIT_OK
    assert (tmp_path / "models" / "llama").readlink() == newest


async def test_with_no_agent_and_nothing_on_disk_it_does_as_told(tmp_path: Path) -> None:
    pod = Pod()
    assert await pod.run(order(tmp_path, otherwise="fail")) == EXIT_FAILED
    assert await pod.run(order(tmp_path, otherwise="start")) == EXIT_OK
    assert not (tmp_path / "models").exists()
    assert await pod.run(order(tmp_path, otherwise="fetch")) == EXIT_OK
    assert pod.fetched == ["s3://weights/llama/"]
    assert (tmp_path / "models" / "llama" / "config.json").read_text() == "{}"
    assert await pod.run(order(tmp_path, otherwise="fetch")) == EXIT_OK
    assert pod.fetched == ["s3://weights/llama/"]  # a second run of the init container finds it


async def test_a_failed_fetch_leaves_no_model_and_says_why(tmp_path: Path) -> None:
    pod = Pod(refusal="access denied")
    assert await pod.run(order(tmp_path, otherwise="fetch")) == EXIT_FAILED
    assert not (tmp_path / "models" / "llama").exists()
    assert pod.lines[-1] == "failed: cannot fetch llama: access denied"


async def test_a_pod_that_nothing_here_warms_falls_through_with_the_reason(tmp_path: Path) -> None:
    pod = Pod()
    async with serving(tmp_path) as node:
        node.assignment.set(None)
        assert await pod.run(order(tmp_path, otherwise="start")) == EXIT_OK
        node.assignment.set(assigned())
        node.runtime.known = ()
        assert await pod.run(order(tmp_path, otherwise="fail")) == EXIT_FAILED
    assert any("no assignment yet" in line for line in pod.lines)
    assert "runs on this node" in pod.lines[-1]


async def test_past_the_timeout_it_does_otherwise(tmp_path: Path) -> None:
    pod = Pod()
    async with serving(tmp_path) as node:
        node.prove(loading(1))
        assert await pod.run(order(tmp_path, timeout_seconds=1.0, otherwise="fetch")) == EXIT_OK
    assert pod.fetched == ["s3://weights/llama/"]
    assert any("not here within 1s" in line for line in pod.lines)


async def test_a_socket_that_never_answers_counts_as_no_agent(tmp_path: Path) -> None:
    view = on_disk(tmp_path)
    (tmp_path / "run").mkdir()
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(tmp_path / "run" / "agent.sock"))
    silent.listen()  # as a stopped agent's: the kernel takes the connection, nobody reads
    pod = Pod()
    assert await pod.run(order(tmp_path)) == EXIT_OK
    assert (tmp_path / "models" / "llama").readlink() == view
    silent.close()


async def test_only_this_endpoints_views_are_linked(tmp_path: Path) -> None:
    pod = Pod()
    async with serving(tmp_path) as node:
        node.show()
        node.prove(warm())
        elsewhere = replace(order(tmp_path), views=tmp_path / "mount")
        assert await pod.run(elsewhere) == EXIT_FAILED
    assert "is not in" in pod.lines[-1]
    assert not (tmp_path / "models").exists()


def test_a_link_is_replaced_in_one_step(tmp_path: Path) -> None:
    at = tmp_path / "models" / "llama"
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        link(tmp_path / version, at)
        assert at.readlink() == tmp_path / version
    assert [p.name for p in at.parent.iterdir()] == ["llama"]


def command(root: Path, *more: str) -> list[str]:
    words = [
        "--endpoint",
        "team/chat",
        "--models",
        "llama=s3://weights/llama/",
        "--socket",
        str(root / "run/agent.sock"),
    ]
    paths = ["--into", str(root / "models"), "--views", str(root / "views"), "--pod-name", "chat-1", "--pod-uid", UID]
    return [sys.executable, "-m", "agent", "wait", *words, *paths, *more]


async def call(*words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )


async def test_the_command_links_what_a_real_agent_grants(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        view = node.show()
        node.prove(warm())
        process = await call(*command(tmp_path))
        out, _ = await process.communicate()
    assert process.returncode == EXIT_OK, out.decode()
    assert (tmp_path / "models" / "llama").readlink() == view


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, EXIT_TERMINATED), (signal.SIGINT, 130)])
async def test_the_command_ends_cleanly_when_told_to(tmp_path: Path, number: int, code: int) -> None:
    async with serving(tmp_path) as node:
        node.prove(loading(1))
        process = await call(*command(tmp_path))
        async with asyncio.timeout(20):
            async for value in node.waiting.follow():
                if value:
                    break
        process.send_signal(number)
        out, _ = await process.communicate()
    assert (process.returncode, b"Traceback" in out) == (code, False), out.decode()


async def test_the_command_refuses_bad_words(tmp_path: Path) -> None:
    for words in (
        ["--endpoint", "chat"],
        ["--endpoint", "../.."],
        ["--models", "file:///x"],
        ["--timeout", "soon"],
        ["--timeout", "2d"],
    ):
        process = await call(*command(tmp_path, *words))
        out, _ = await process.communicate()
        assert process.returncode == EXIT_FAILED
        assert out.decode().startswith("prewarm wait: ")


async def test_a_log_that_nobody_reads_changes_no_exit_code(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = await asyncio.create_subprocess_exec(*command(tmp_path, "--otherwise", "fail"), stdout=writer)
    os.close(writer)
    assert await process.wait() == EXIT_FAILED


async def test_a_pod_without_models_goes_on_at_once(tmp_path: Path) -> None:
    assert await Pod().run(order(tmp_path, models=())) == EXIT_OK


async def test_what_is_here_is_linked_at_once_and_without_grpc(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        view = node.show()
        node.prove(warm())
        words = command(tmp_path)[command(tmp_path).index("wait") :]
        script = f"import sys; from agent.cli import main; print(main({words!r}), 'grpc' in sys.modules, 'asyncio' in sys.modules)"
        process = await call(sys.executable, "-c", script)
        out, _ = await process.communicate()
    assert out.decode().splitlines() == [f"llama -> {view}", "0 False False"]
    assert (tmp_path / "models" / "llama").readlink() == view
    assert node.refs.kept == [(UID, (DIGEST,))]


async def test_nothing_is_linked_at_once_that_may_not_be(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        plan, ask = order(tmp_path), asyncio.to_thread
        assert await ask(at_once, plan) == {}  # nothing is proved yet
        node.prove(warm())
        assert await ask(at_once, plan) == {}  # committed, but not in its view
        view = node.show()
        assert await ask(at_once, replace(plan, pod_uid="22222222-0000-4000-8000-000000000000")) == {}
        assert await ask(at_once, replace(plan, models=(parse_model_source("llama=s3://weights/other/"),))) == {}
        assert await ask(at_once, replace(plan, views=tmp_path / "elsewhere")) == {}
        assert node.refs.kept == [(UID, (DIGEST,))]  # of the last: it was granted, and its path is not mounted there
        assert await ask(at_once, plan) == {"llama": view}


@pytest.mark.parametrize(
    "question",
    [b"", b"\n", b"[1]\n", b"{}\n", b'{"models": 1}\n', b"[" * 9000 + b"\n", b"x" * 300_000, b'{"a": \xff}\n'],
)
async def test_a_question_that_is_none_is_answered_with_nothing(tmp_path: Path, question: bytes) -> None:
    async with serving(tmp_path):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "run" / "ask.sock")
        writer.write(question)
        writer.write_eof()
        async with asyncio.timeout(10):
            try:
                answer = await reader.read()
            except ConnectionResetError:
                answer = b""
        writer.close()
        assert answer in (b"", b'{"paths": {}}\n')
        assert await asyncio.to_thread(at_once, order(tmp_path)) == {}


@pytest.mark.parametrize(
    "answer",
    [b"", b"no\n", b"[]\n", b'{"paths": []}\n', b'{"paths": {"llama": 1}}\n', b'{"paths": {"llama": "/etc"}}\n'],
)
async def test_an_answer_that_is_none_leads_to_waiting(tmp_path: Path, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    (tmp_path / "run").mkdir()
    async with await asyncio.start_unix_server(serve, tmp_path / "run" / "ask.sock"):
        assert await asyncio.to_thread(at_once, order(tmp_path)) == {}
