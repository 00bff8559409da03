"""TLS to a real S3 server with a private authority: by OpenSSL called directly, and by Python's `ssl` where that cannot be."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.errors import Permanent
from agent.core.refs import parse_model_uri
from agent.models import tls
from agent.models.bucket import Bucket
from agent.models.fetch import fetch
from agent.models.source import open_source
from agent.models.tls import NativeTls, PythonTls, Untrusted
from agent.models.wire import Denied, RangeFailed, Wire
from tests.bed.certificates import Authority, Identity
from tests.bed.s3 import S3Server
from tests.integration.models.conftest import contents, environment, noise

ADDRESS = "IP:127.0.0.1"
KINDS = (NativeTls, PythonTls)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """The TLS that `load_tls` gives: the second one, as where Python's OpenSSL cannot be called."""
    if request.param is PythonTls:

        def absent() -> None:
            raise ImportError

        monkeypatch.setattr(tls, "LibSsl", absent)
    chosen: type = request.param
    return chosen


@pytest.fixture
def secure(server: S3Server, authority: Authority, tmp_path: Path) -> Iterator[S3Server]:
    identity = authority.issue("s3", ADDRESS, "DNS:localhost")
    with S3Server(server.directory, identity) as running:
        yield running


def read(address: str, host: str, authorities: Path, *, patience: float = 5) -> None:
    """Ask for a range without a signature: a server that is trusted denies it."""
    port = int(address.rpartition(":")[2])
    bucket = Bucket(scheme="https", host=host, port=port, base_path="/private/", region="us-east-1")
    wire = Wire(bucket, tls.load_tls(str(authorities)), patience)
    try:
        wire.ask("/private/k", {})
        wire.read(memoryview(bytearray(10)), offset=0, total=10, etag="", before_slice=lambda _n: None)
    finally:
        wire.close()


async def test_a_model_arrives_whole_over_tls(
    kind: type,
    server: S3Server,
    secure: S3Server,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    big, small = noise((17 << 20) + 4099), noise(3001)
    server.put("secure-bucket", "m/big", big)
    server.put("secure-bucket", "m/small", small)
    for name, value in environment(secure, secure.url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.certificate))
    async with open_source() as source:
        assert type(await source.tls()) is kind
    fetched = await fetch(parse_model_uri("s3://secure-bucket/m/"), tmp_path / "to")
    assert fetched.proof == "crc64nvme"
    assert (contents(tmp_path / "to")["big"], contents(tmp_path / "to")["small"]) == (big, small)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_and_a_name_in_the_certificate_are_trusted(
    kind: type, server: S3Server, secure: S3Server, authority: Authority, host: str
) -> None:
    server.make_bucket("private")
    with pytest.raises(Denied):
        read(secure.address, host, authority.certificate)


@pytest.mark.parametrize(
    ("subjects", "host"),
    [(("DNS:elsewhere.example",), "localhost"), (("DNS:localhost",), "127.0.0.1"), ((ADDRESS,), "localhost")],
)
def test_another_hosts_certificate_is_refused(
    kind: type, server: S3Server, authority: Authority, subjects: tuple[str, ...], host: str
) -> None:
    refused(server, authority.issue("other", *subjects), authority, host, "mismatch|not valid for|doesn't match")


def test_an_expired_certificate_is_refused(kind: type, server: S3Server, authority: Authority) -> None:
    refused(server, authority.issue("old", ADDRESS, days=-1), authority, "127.0.0.1", "expired")


def test_an_unknown_authority_is_refused(kind: type, server: S3Server, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger").issue("s3", ADDRESS)
    refused(server, stranger, authority, "127.0.0.1", "AWS_CA_BUNDLE")


def refused(server: S3Server, identity: Identity, authority: Authority, host: str, why: str) -> None:
    with S3Server(server.directory, identity) as running, pytest.raises(Untrusted, match=why):
        read(running.address, host, authority.certificate)


def test_authorities_that_are_no_pem_file_are_named(kind: type, tmp_path: Path) -> None:
    for place in (tmp_path / "absent", tmp_path / "garbage"):
        (tmp_path / "garbage").write_text("no certificate")
        with pytest.raises(Permanent, match=f"cannot load certificate authorities.*{place.name}"):
            tls.load_tls(str(place))


def test_a_server_that_never_shakes_hands_ends_the_patience(kind: type, authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(RangeFailed, match="TimeoutError"):
        read(f"127.0.0.1:{silent.getsockname()[1]}", "127.0.0.1", authority.certificate, patience=0.2)


def test_a_connection_cut_within_the_body_fails_and_never_counts(kind: type, authority: Authority) -> None:
    identity = authority.issue("cut", ADDRESS)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        half = b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\n12345"
        serving = threading.Thread(target=_serve_once, args=(listener, identity, half))
        serving.start()
        with pytest.raises(RangeFailed):
            read(f"127.0.0.1:{listener.getsockname()[1]}", "127.0.0.1", authority.certificate)
        serving.join()


def _serve_once(listener: socket.socket, identity: Identity, answer: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    accepted, _ = listener.accept()
    with context.wrap_socket(accepted, server_side=True) as connection:
        connection.recv(4096)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_RDWR)
