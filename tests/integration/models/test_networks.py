"""The ways to S3 that are not straight: HTTP proxies, bucket names in the host name, and credentials that change on the way."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import select
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from agent.core.errors import Permanent, PrewarmError, Transient
from agent.core.refs import parse_model_uri
from agent.models.dial import proxy_for
from agent.models.engine import Engine
from agent.models.fetch import fetch
from agent.models.resolve import resolve
from agent.models.source import open_source
from tests.bed import needs
from tests.bed.certificates import Authority
from tests.bed.faultproxy import Request, Rule
from tests.bed.process import run
from tests.bed.s3 import S3Server
from tests.integration.models.conftest import SourceBucket, contents, environment, noise

MIB = 1 << 20
PASSWORD = "pass/word"
ALLOWED = "Basic " + base64.b64encode(f"user:{PASSWORD}".encode()).decode()
WITH_PASSWORD = "user:pass%2Fword@"


class HttpProxy:
    """A forward proxy that demands a password: whole URLs for HTTP, CONNECT for anything."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.asked: list[str] = []  # request lines
        self.refused = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> HttpProxy:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (got := client.recv(1)):
                    return
                head += got
            first, *lines = head.decode().split("\r\n")[:-2]
            self.asked.append(first)
            if f"proxy-authorization: {ALLOWED}".lower() not in [line.lower() for line in lines]:
                self.refused += 1
                client.sendall(b"HTTP/1.1 407 no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            method, target, _ = first.split(" ")
            url = urlsplit(f"//{target}" if method == "CONNECT" else target)
            with socket.create_connection((url.hostname, url.port)) as server:
                if method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 go on\r\n\r\n")
                else:  # one request a connection
                    kept = [line for line in lines if not line.lower().startswith(("proxy-", "connection:"))]
                    path = url.path + (f"?{url.query}" if url.query else "")
                    sent = "\r\n".join([f"{method} {path} HTTP/1.1", *kept, "Connection: close"])
                    server.sendall((sent + "\r\n\r\n").encode())
                _join(client, server)


def _join(one: socket.socket, other: socket.socket) -> None:
    while True:
        for source in select.select([one, other], [], [])[0]:
            if not (data := source.recv(65536)):
                return
            (other if source is one else one).sendall(data)


@pytest.fixture
def forward() -> Iterator[HttpProxy]:
    with HttpProxy() as running:
        yield running


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=["http", "https"])
def target(
    request: pytest.FixtureRequest,
    server: S3Server,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[S3Server]:
    """A server with a model in it, over each scheme; SDKs are pointed at it."""
    server.put("proxied", "m/a", noise(3 * MIB + 5))
    with contextlib.ExitStack() as stack:
        chosen = server
        if request.param == "https":
            chosen = stack.enter_context(S3Server(server.directory, authority.issue("s3", "IP:127.0.0.1")))
            monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.certificate))
        for name, value in environment(chosen, chosen.url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("no_proxy")
        monkeypatch.delenv("NO_PROXY", raising=False)
        yield chosen


async def bring(to: Path) -> dict[str, bytes]:
    await fetch(parse_model_uri("s3://proxied/m/"), to, engine=Engine(connections=2, stall_seconds=5, attempts=2))
    return {name: data for name, data in contents(to).items() if not name.startswith(".prewarm")}


@pytest.mark.parametrize("case", [str.upper, str.lower])
async def test_a_model_arrives_through_a_proxy_and_its_password_is_not_told(
    target: S3Server,
    forward: HttpProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    case: Any,
) -> None:
    caplog.set_level(logging.DEBUG, logger="agent")
    monkeypatch.setenv(case(f"{target.scheme}_proxy"), f"http://{WITH_PASSWORD}{forward.address}")
    assert await bring(tmp_path) == {"a": noise(3 * MIB + 5)}
    assert forward.refused == 0
    if target.scheme == "https":
        assert set(forward.asked) == {f"CONNECT {target.address} HTTP/1.1"}
        assert len(forward.asked) >= 2  # the listing's and the bodies'
    else:
        assert f"GET {target.url}/proxied/m/a HTTP/1.1" in forward.asked
    async with open_source() as source:
        shown = repr(await source.bucket("proxied"))
    assert "Proxy(" in shown
    assert ALLOWED.split()[1] not in shown + caplog.text
    assert "word" not in shown + caplog.text


async def test_no_proxy_is_heard(
    target: S3Server, forward: HttpProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(f"{target.scheme}_proxy", f"http://{forward.address}")
    monkeypatch.setenv("NO_PROXY", "elsewhere.example,127.0.0.1")
    assert await bring(tmp_path) == {"a": noise(3 * MIB + 5)}
    assert forward.asked == []


async def test_a_proxy_that_wants_other_credentials_is_told(
    target: S3Server, forward: HttpProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The listing goes by the SDK; the bodies must say it too, should the password change in between."""
    uri = parse_model_uri("s3://proxied/m/")
    async with open_source() as source:
        manifest = await resolve(uri, source)
        monkeypatch.setenv(f"{target.scheme}_proxy", f"http://user:other-word@{forward.address}")
        with pytest.raises(Permanent, match=r"the HTTP proxy refuses its credentials \(407\)") as told:
            await Engine(connections=2, attempts=2).download(manifest, source, tmp_path)
    assert "other-word" not in str(told.value)


async def test_a_proxy_that_is_away_is_worth_another_try(
    target: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv(f"{target.scheme}_proxy", "http://user:secret-word@127.0.0.1:9")
    with pytest.raises(Transient) as told:
        await bring(tmp_path)
    assert "secret-word" not in str(told.value)


@pytest.mark.parametrize(
    "url", ["https://user:word@proxy.example", "socks5://user:word@h:1", "http://user:word@h:port"]
)
def test_what_is_no_http_proxy_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("https_proxy", url)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(Permanent, match="HTTPS_PROXY is not the URL of an HTTP proxy") as told:
        proxy_for("https", "s3.example")
    assert "word" not in str(told.value)


def test_a_proxy_is_read_as_sdks_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", ".inside.example,10.0.0.1:9000")
    monkeypatch.setenv("https_proxy", "proxy.example:3128")
    found = proxy_for("https", "s3.outside.example")
    assert found is not None
    assert (found.host, found.port, found.headers) == ("proxy.example", 3128, {})
    assert proxy_for("https", "b.inside.example") is None
    assert proxy_for("https", "10.0.0.1:9000") is None
    assert proxy_for("https", "10.0.0.1:9001") is not None
    assert proxy_for("http", "s3.outside.example") is None


async def test_a_bucket_in_the_host_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual-host style, asked for in the AWS configuration file."""
    real, domain = socket.getaddrinfo, "s3.virtual.example"

    def look_up(host: Any, *args: Any, **options: Any) -> Any:
        return real("127.0.0.1" if isinstance(host, str) and host.endswith(domain) else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with S3Server(tmp_path / "s3", domain=domain) as server:
        server.put("proxied", "m/a", noise(MIB))
        port = server.address.rpartition(":")[2]
        for name, value in environment(server, f"http://{domain}:{port}").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("no_proxy", domain)
        (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        async with open_source() as source:
            found = await source.bucket("proxied")
            assert (found.netloc, found.path("m/a")) == (f"proxied.{domain}:{port}", "/m/a")
        assert await bring(tmp_path / "to") == {"a": noise(MIB)}


class Credentials:
    """What a container's credentials are fetched from: those of the user that counts now."""

    def __init__(self) -> None:
        self.user, self.asked = "", 0
        this = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                this.asked += 1
                body = json.dumps(
                    {"AccessKeyId": this.user, "SecretAccessKey": f"of-{this.user}", "Token": ""}
                    | {"Expiration": "2099-01-01T00:00:00Z"}
                ).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/pod"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def admin(server: S3Server, *command: str) -> None:
    program = needs.find("versitygw")
    access = ["--access", server.access_key, "--secret", server.secret_key, "--endpoint-url", server.url]
    run([str(program), "admin", *access, *command], directory=server.directory)


async def test_a_download_outlives_its_credentials(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are rotated midway: the server knows the old user no more, and the pod's endpoint hands out the new one's."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    content = bucket.put("m/a", noise(24 * MIB))
    for user in ("old", "new"):
        admin(bucket.server, "create-user", "--access", user, "--secret", f"of-{user}", "--role", "admin")
    credentials, lock, seen = Credentials(), threading.Lock(), 0
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", credentials.url)
    credentials.user = "old"

    def rotate(request: Request) -> bool:
        nonlocal seen
        with lock:
            seen += request.is_range
            if request.is_range and seen == 8:
                credentials.user = "new"
                admin(bucket.server, "delete-user", "--access", "old")
        return False

    bucket.proxy.rules.append(Rule("none", match=rotate))
    engine = Engine(connections=2)
    engine.part_bytes = MIB
    try:
        await fetch(bucket.uri(), tmp_path, engine=engine)
    finally:
        credentials.close()
    assert contents(tmp_path)["a"] == content
    assert credentials.asked == 2
    users = [r.headers["authorization"].split("Credential=")[1].split("/")[0] for r in bucket.proxy.requests]
    assert users[0] == "old"
    assert users[-1] == "new"
    assert engine.progress.fetched_bytes == len(content)  # nothing twice


async def test_credentials_that_are_withdrawn_for_good_end_it(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("m/a", noise(8 * MIB))
    admin(bucket.server, "create-user", "--access", "brief", "--secret", "of-brief", "--role", "admin")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "brief")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-brief")
    gone = threading.Event()

    def withdraw(request: Request) -> bool:
        if request.is_range and not gone.is_set():
            gone.set()
            admin(bucket.server, "delete-user", "--access", "brief")
        return False

    bucket.proxy.rules.append(Rule("none", match=withdraw))
    engine = Engine(connections=1)
    engine.part_bytes = MIB
    with pytest.raises(PrewarmError, match=r"access denied while reading \(403 InvalidAccessKeyId\)") as told:
        await fetch(bucket.uri(), tmp_path, engine=engine)
    assert isinstance(told.value, Permanent)
    assert "of-brief" not in str(told.value)
