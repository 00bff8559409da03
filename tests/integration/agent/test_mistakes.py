"""A person's mistakes at the command line: every command says what is wrong in its own words, never with a traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.integration.agent.standalone import PREWARM

NOWHERE = "http://127.0.0.1:9"


def call(
    *arguments: object, environment: dict[str, str] | None = None, directory: Path | None = None, stdin: str = ""
) -> tuple[int, str]:
    """Exit code and stderr of a command that ends by itself."""
    done = subprocess.run(
        [PREWARM, *map(str, arguments)],
        env={**os.environ, "KUBECONFIG": "/nonexistent/kubeconfig", **(environment or {})},
        cwd=directory,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr[-1500:]
    return done.returncode, done.stderr + done.stdout


def test_all_mistakes_in_flags_variables_and_file_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("connections: many\nconections: 3\nproof_interval_seconds: 2h\n")
    code, told = call(
        "agent",
        *("--config", file, "--high-watermark", "150%", "--lift-taint", "perhaps"),
        environment={"PREWARM_LOG_LEVEL": "loud", "PREWARM_SOURCES": "team=http://x/", "PREWARM_GPUS": "two"},
    )
    assert code in (1, 2)
    for value in ("many", "conections", "150%", "perhaps", "loud", "http://x/", "two", "proof_interval_seconds"):
        assert value in told
    for where in ("--high-watermark", "PREWARM_LOG_LEVEL", f"{file}: connections"):
        assert where in told


BAD_FILES = {
    "absent": None,
    "binary": b"\xff\xfe\x00\x01",
    "half": b"{[",
    "list": b"- 1\n- 2\n",
    "number": b"5\n",
    "deep": b"[" * 5000,
    "bomb": b"a: &a [x,x]\nb: &b [*a,*a]\nc: *nowhere\n",
    "tag": b"!!python/object/apply:os.system ['true']\n",
    "date": b"endpoints: 2026-99-99\n",
    "surrogate": b'endpoints: "\\ud800"\n',
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize(
    "command", [["agent", "--config"], ["planner", "--config"], ["plan", "-f"], ["plan", "-f", "/dev/null", "--config"]]
)
def test_a_file_that_cannot_be_read_is_named(command: list[str], kind: str, tmp_path: Path) -> None:
    file = tmp_path / "given"
    if (content := BAD_FILES[kind]) is not None:
        file.write_bytes(content)
    code, told = call(*command, file)
    assert code == 1
    assert str(file) in told


@pytest.mark.parametrize("command", [["agent", "--config"], ["plan", "-f"], ["plan", "-f", "/dev/null", "--config"]])
def test_a_directory_in_the_place_of_a_file_is_named(command: list[str], tmp_path: Path) -> None:
    code, told = call(*command, tmp_path)
    assert code == 1
    assert str(tmp_path) in told


def test_an_agent_that_does_not_know_its_node_says_what_to_set(tmp_path: Path) -> None:
    code, told = call("agent", "--root", tmp_path, "--http-address", "127.0.0.1:0")
    assert code == 1
    assert "NODE_NAME" in told
    assert "--plan" in told


@pytest.mark.parametrize("command", [["agent", "--node-name", "node-1"], ["planner"]])
def test_without_any_kubeconfig_the_processes_say_so(command: list[str], tmp_path: Path) -> None:
    root = ["--root", tmp_path] if command[0] == "agent" else []
    run_dir = ["--run-dir", tmp_path] if command[0] == "agent" else []
    code, told = call(*command, *root, *run_dir, "--http-address", "127.0.0.1:0", environment={"HOME": str(tmp_path)})
    assert code == 1
    assert "kubeconfig" in told.lower()


@pytest.mark.parametrize(
    ("flags", "quoted"),
    [
        (["--http-address", "nonsense"], "nonsense"),
        (["--http-address", "127.0.0.1:99999"], "127.0.0.1:99999"),
        (["--http-address", "192.0.2.1:80"], "192.0.2.1:80"),
        (["--root", "/proc/nowhere"], "/proc/nowhere"),
        (["--run-dir", "/proc/nowhere"], "/proc/nowhere"),
        (["--run-dir", "/tmp/" + "x" * 120], "x" * 100),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_address_or_directory_that_cannot_be_had_is_named(flags: list[str], quoted: str, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("endpoints: []\n")
    given = {
        "--plan": plan,
        "--root": tmp_path / "root",
        "--run-dir": tmp_path / "run",
        "--http-address": "127.0.0.1:0",
        "--containerd": "none",
    } | {flags[0]: flags[1]}
    code, told = call("agent", *(word for pair in given.items() for word in pair))
    assert code == 1
    assert quoted in told


def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, told = call("agent", "--plan", tmp_path / "none", "--root", tmp_path, "--http-address", address)
    assert code == 1
    assert address in told
    assert "http_address" in told


def test_status_says_which_socket_is_not_there_or_dead_or_not_an_agents(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(dead))
    for path in (tmp_path / "absent.sock", file, dead, tmp_path):
        code, told = call("status", "--socket", path)
        assert code == 1
        assert str(path) in told


def test_status_does_not_wait_forever_for_a_socket_that_says_nothing_or_nonsense(tmp_path: Path) -> None:
    for content in (b"", b"HTTP/1.1 400 no\r\n\r\n"):
        path = tmp_path / f"s{len(content)}"
        with talking(path, content):
            code, told = call("status", "--socket", path)
        assert code == 1
        assert str(path) in told


def test_status_of_the_fleet_names_a_kubeconfig_that_is_none(tmp_path: Path) -> None:
    for name, content in BAD_FILES.items():
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content)
        code, told = call("status", "--fleet", "--kubeconfig", file)
        assert code == 1, (name, told)
        assert str(file) in told, (name, told)


def test_status_of_the_fleet_says_that_no_api_server_answers(tmp_path: Path) -> None:
    code, told = call("status", "--fleet", "--kubeconfig", kubeconfig(tmp_path, NOWHERE))
    assert code == 1
    assert "127.0.0.1:9" in told or "API server" in told


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_status_of_the_fleet_says_why_the_api_server_refuses(status: int, tmp_path: Path) -> None:
    with answering(status) as url:
        code, told = call("status", "--fleet", "--kubeconfig", kubeconfig(tmp_path, url))
    assert code == 1
    assert str(status) in told or "denied" in told or "not installed" in told


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (["plan"], "--file"),
        (["plan", "-f", "-", "--at", "noon"], "noon"),
        (["plan", "-f", "/dev/null", "--at", "9999-12-31T00:00:00Z"], "9999-12-31"),
        (["plan", "-f", "-", "--rate", "quick"], "quick"),
        (["plan", "-f", "-", "--rate", "0"], "--rate"),
        (["hydrate", "http://x/y", "--to", "/tmp/x"], "http://x/y"),
        (["hydrate", "s3://bucket/m/", "--to", "/tmp/x", "--connections", "0"], "--connections"),
        (["hydrate", "s3://bucket/m/", "--to", "/tmp/x", "--bandwidth", "much"], "much"),
        (["affinity", "chat"], "chat"),
        (["affinity", "team/" + "c" * 80], "ccc"),
        (["affinity", "team/chat", "--wait"], "--image"),
        (["wait", "--endpoint", "chat", "--models", "s3://bucket/m/"], "chat"),
        (["wait", "--endpoint", "team/chat", "--models", "ftp://x"], "ftp://x"),
        (["wait", "--endpoint", "team/chat", "--models", "s3://bucket/m/", "--timeout", "soon"], "soon"),
        (["nonsense"], "nonsense"),
        (["agent", "--no-such-flag"], "--no-such-flag"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_arguments_that_mean_nothing_are_quoted(arguments: list[str], quoted: str) -> None:
    code, told = call(*arguments)
    assert code in (1, 2)
    assert quoted in told


def test_plan_quotes_what_is_wrong_in_a_workload() -> None:
    workload = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "chat", "namespace": "team", "annotations": {"prewarm.dev/schedule": "every morning"}},
        "spec": {"template": {"metadata": {}, "spec": {"containers": [{"name": "c", "image": "x"}]}}},
    }
    code, told = call("plan", "-f", "-", stdin=json.dumps(workload))
    assert code == 1
    assert "every morning" in told
    several: list[object] = [
        {"kind": "List", "items": 3},
        {"kind": "List", "items": [3]},
        {"endpoints": {}},
        [{"kind": "List"}],
    ]
    for broken in several:
        code, told = call("plan", "-f", "-", stdin=json.dumps(broken))
        assert code == 1
        assert told


def test_plan_refuses_two_workloads_with_one_key_as_the_planner_does() -> None:
    one = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "chat", "namespace": "team", "annotations": {"prewarm.dev/schedule": "0 9 * * *"}},
        "spec": {"template": {"metadata": {}, "spec": {"containers": [{"name": "c", "image": "x"}]}}},
    }
    several = {"kind": "List", "items": [one, one | {"kind": "StatefulSet"}]}
    code, told = call("plan", "-f", "-", stdin=json.dumps(several))
    assert code == 1
    assert "StatefulSet chat has the key team.chat too" in told
    assert "nothing to warm" in told


def test_plan_counts_the_windows_that_are_still_to_come() -> None:
    windows = [{"readyBy": f"2026-11-26T{h:02}:00:00Z", "until": f"2026-11-26T{h:02}:30:00Z"} for h in range(10)]
    plan = {"endpoints": [{"namespace": "team", "name": "chat", "images": ["x"], "windows": windows}]}
    code, told = call("plan", "-f", "-", "--at", "2026-11-26T02:45:00Z", stdin=json.dumps(plan))
    assert code == 0
    assert told.count("ready by") == 5
    assert "2 more windows within 48 h" in told


def test_hydrate_says_what_s3_or_the_disk_refuses(tmp_path: Path) -> None:
    environment = {
        "AWS_ENDPOINT_URL": NOWHERE,
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "secret-value",
        "AWS_REGION": "us-east-1",
    }
    code, told = call("hydrate", "s3://bucket/m/", "--to", tmp_path / "x", environment=environment)
    assert code == 75  # another try is worth it
    assert "S3 does not answer" in told
    assert "secret-value" not in told
    code, told = call("hydrate", "s3://bucket/m/", "--to", tmp_path / "x", environment={"HOME": str(tmp_path)})
    assert code == 1
    assert "credentials" in told
    code, told = call("hydrate", "s3://bucket/m/", "--to", "/proc/nowhere", environment=environment)
    assert code in (1, 75)
    assert "/proc/nowhere" in told or "S3 does not answer" in told


@contextmanager
def talking(path: Path, content: bytes) -> Iterator[None]:
    """A unix socket that takes connections and says `content`, then nothing."""
    kept = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                kept.append(connection)
                with suppress(OSError):  # who asked may have gone
                    connection.sendall(content)

        threading.Thread(target=serve, daemon=True).start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
    for connection in kept:
        connection.close()


@contextmanager
def answering(status: int) -> Iterator[str]:
    """An API server that answers everything with one status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"kind": "Status", "status": "Failure", "code": status, "message": "no"}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_PATCH = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def kubeconfig(directory: Path, url: str) -> Path:
    """A kubeconfig for `url`."""
    file = directory / "kubeconfig"
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    return file
