"""versitygw: a real S3 server over a directory, for the bed and on its own; and the few requests that tests make.

Versioning, conditional reads, part numbers and CRC64NVME by default are as on AWS; keys are files, so a key cannot be
both a file and a prefix.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import itertools
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tests.bed import needs
from tests.bed.certificates import Identity
from tests.bed.process import ENVIRONMENT, BedError, Process, end, start
from tests.bed.settings import S3_ACCESS_KEY, S3_SECRET_KEY

REGION = "us-east-1"


def command(
    program: Path, address: str, directory: Path, access_log: Path, identity: Identity | None = None, domain: str = ""
) -> list[str]:
    """How the server is started; it needs `ENVIRONMENT | credentials()`, and `make_directories` first.

    With a domain the bucket may be the first label of the host name.
    """
    options = [
        f"--port={address}",
        "--keep-alive",
        "--quiet",
        f"--access-log={access_log}",
        f"--iam-dir={directory}/iam",
    ]
    if identity is not None:
        options += [f"--cert={identity.certificate}", f"--key={identity.key}"]
    if domain:
        options.append(f"--virtual-domain={domain}")
    return [str(program), *options, "posix", f"--versioning-dir={directory}/versions", f"{directory}/data"]


def credentials() -> dict[str, str]:
    """The root user, in the server's environment."""
    return {"ROOT_ACCESS_KEY": S3_ACCESS_KEY, "ROOT_SECRET_KEY": S3_SECRET_KEY}


def make_directories(directory: Path) -> None:
    """What the server expects to find."""
    for name in ("iam", "versions", "data"):
        (directory / name).mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """A line of the access log: who asked what of which object, and what was answered.

    `operation` is `s3_GetObject` and so on, `remote` the asking IP address, `key` "-" where the request has none,
    `status` 200 also for a part of an object. What was sent is not told.
    """

    remote: str
    operation: str
    bucket: str
    key: str
    status: int
    line: str


_ACCESS = re.compile(  # as AWS's server access log, but nothing is quoted: keys may contain spaces
    r"^\S+ (?P<bucket>\S+) \[[^]]*\] (?P<remote>\S+) \S+ \S+ (?P<operation>\S+) (?P<key>.+?) /\S* "
    r"(?P<status>\d{3}) "
)


class S3Client:
    """Requests to one server as its root user. Objects are sent as they are; reading them is the tests' business."""

    scheme = "http"

    def __init__(self, address: str, access_log: Path) -> None:
        self.address = address  # host:port
        self._access_log = access_log
        self.access_key, self.secret_key, self.region = S3_ACCESS_KEY, S3_SECRET_KEY, REGION

    @property
    def url(self) -> str:
        """What S3 clients call the endpoint."""
        return f"{self.scheme}://{self.address}"

    def put(self, bucket: str, key: str, content: bytes | Path) -> None:
        """Store an object, in a bucket that is made if absent."""
        self.make_bucket(bucket)
        self._ask("PUT", f"/{bucket}/{key}", content)

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object."""
        self._ask("DELETE", f"/{bucket}/{key}")

    def make_bucket(self, bucket: str, *, versioned: bool = False) -> None:
        """Make a bucket unless it is there; with versioning if asked."""
        self._ask("PUT", f"/{bucket}", accept=(200, 409))
        if versioned:
            body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
            self._ask("PUT", f"/{bucket}", body, query="versioning=")

    def access_log(self) -> list[Access]:
        """Every request so far, oldest first."""
        try:
            lines = self._access_log.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [
            Access(
                remote=found["remote"],
                operation=found["operation"],
                bucket=found["bucket"],
                key=found["key"],
                status=int(found["status"]),
                line=line,
            )
            for line in lines
            if (found := _ACCESS.match(line))
        ]

    def answers(self) -> bool:
        """Whether the server accepts connections."""
        return accepts(self.address)

    def _ask(
        self, method: str, path: str, body: bytes | Path = b"", *, query: str = "", accept: tuple[int, ...] = (200, 204)
    ) -> bytes:
        connection = HTTPConnection(self.address, timeout=120)
        size = len(body) if isinstance(body, bytes) else body.stat().st_size
        escaped = quote(path, safe="/-_.~")
        headers = self._sign(method, escaped, query) | {"Content-Length": str(size)}
        try:
            if isinstance(body, bytes):
                connection.request(method, f"{escaped}?{query}" if query else escaped, body, headers)
            else:
                with body.open("rb") as file:
                    connection.request(method, escaped, file, headers)
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status not in accept:
            raise BedError(f"{method} {self.url}{path}: {answer.status}: {said[:500].decode(errors='replace')}")
        return said

    def _sign(self, method: str, path: str, query: str) -> dict[str, str]:
        """AWS Signature Version 4 of the headers; the body is not signed, so that files are read once."""
        now = datetime.datetime.now(tz=datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        headers = {"host": self.address, "x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-date": now}
        names = ";".join(headers)
        lines = [method, path, query, *(f"{name}:{value}" for name, value in headers.items()), "", names]
        request = "\n".join([*lines, "UNSIGNED-PAYLOAD"])
        scope = f"{now[:8]}/{self.region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        key = f"AWS4{self.secret_key}".encode()
        for part in (*scope.split("/"), text):
            key = hmac.digest(key, part.encode(), "sha256")
        authority = (
            f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
        )
        return headers | {"Authorization": authority}


class S3Server(S3Client):
    """A server of its own on a free port of the loopback, for tests that need no cluster.

    `with S3Server(directory) as s3:`. The kernel ends it with the thread that started it, should nobody stop it. With an
    identity it speaks TLS and is read from only; a second server without one, on the same directory, is written to.
    """

    def __init__(self, directory: Path, identity: Identity | None = None, *, domain: str = "") -> None:
        self._identity, self._domain = identity, domain
        self.scheme = "https" if identity else "http"
        self.directory = directory.resolve()  # versitygw changes its own directory
        super().__init__(f"127.0.0.1:{free_port()}", self.directory / "access.log")
        self._process: Process | None = None

    def start(self) -> Self:
        """Start, or start again on the same port and data, and wait until it answers.

        Raises:
            BedError: the program is not there, or it ended.
        """
        program = needs.find("versitygw")
        if program is None:
            raise BedError(f"no versitygw: {needs.why_not('s3') or 'run `python3 -m tests.bed.provision --s3`'}")
        make_directories(self.directory)
        told = command(program, self.address, self.directory, self._access_log, self._identity, self._domain)
        with_parent = ["setpriv", "--pdeathsig", "KILL", *told]
        log = self.directory / "server.log"
        self._process = start(with_parent, log, ENVIRONMENT | credentials())
        deadline = time.monotonic() + 20
        while not self.answers():
            if not self._process.alive or time.monotonic() > deadline:
                raise BedError(f"versitygw did not start: {log.read_text()[-500:]}")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """End it at once; the data stays."""
        if self._process is not None:
            end([self._process], at_once=True)
            self._process = None

    def data(self, bucket: str, key: str) -> Path:
        """The file in which the server keeps an object, to be damaged behind its back."""
        return self.directory / "data" / bucket / key

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def accepts(address: str) -> bool:
    """Whether something accepts connections on host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port of the loopback that nobody listens on now, and that nobody else is given before it is used.

    It is none of those that the kernel hands out (from 32768 on), and tests that run at once have ports of their own.
    """
    for port in itertools.islice(_PORTS, 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a thousand ports are all taken")


def _ports() -> Iterator[int]:
    first = 20000 + 1000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10)
    return itertools.cycle(first + (os.getpid() + n) % 1000 for n in range(1000))


_PORTS = _ports()
