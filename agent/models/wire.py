"""One keep-alive HTTP/1.1 connection of one worker thread, and what an answer to a range request must look like.

Bytes are received straight into the caller's buffer, a slice a call; the GIL is free meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from agent.core.errors import Permanent, Transient, cut
from agent.models.bucket import Bucket
from agent.models.channel import Channel, PlainChannel, Tls
from agent.models.dial import DEMANDS_CREDENTIALS, connect
from agent.models.source import CLOCK_DIFFERS

SLICE_BYTES = 1 << 20  # between two slices a worker looks whether it should stop
HEAD_BYTES = 16 << 10
REFUSAL_BYTES = 4096  # of the body of a refusal: what names its cause is in the first few hundred
MOST_PIECES = 16  # in which a head, or a refusal, may come: each may take as long as a silence is borne
LEAST_BYTES = 64 << 10  # of a slice that is not whole after a silence's patience: fewer are as good as none
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: |$)")
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
_EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "RequestExpired", "InvalidToken"}


class SourceChanged(Transient):
    """The object is no longer the one in the manifest: what was fetched is worth nothing, list again."""


class RangeFailed(Transient):
    """One range did not arrive as asked: ask again, on a new connection."""


class Busy(RangeFailed):
    """The server asks for fewer requests."""


class Denied(Permanent):
    """The credentials are refused; fresh ones may help, once."""


class Answer(NamedTuple):
    """The head of an answer; header names are in lower case, and `rest` is what came of the body with it."""

    status: int
    headers: Mapping[str, str]
    rest: memoryview
    keeps_alive: bool


class Wire:
    """Reads ranges over one connection, which is made anew after any failure."""

    def __init__(self, bucket: Bucket, tls: Tls | None, stall_seconds: float) -> None:
        self._bucket, self._tls, self._stall_seconds = bucket, tls, stall_seconds
        self._channel: Channel | None = None
        self._head = memoryview(bytearray(HEAD_BYTES))

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent at once, without a new connection."""
        return self._channel is not None

    def ask(self, path: str, headers: Mapping[str, str]) -> None:
        """Ask for a range; the next call is `read`.

        Raises:
            RangeFailed: the connection failed, or none could be made.
            Permanent: a certificate is not trusted.
        """
        with _ClosedOnFailure(self):
            self._connected().send(self._request("GET", path, headers))

    def read(
        self, into: memoryview, *, offset: int, total: int, etag: str, before_slice: Callable[[int], None]
    ) -> None:
        """Fill `into` with the range that was asked for: of an object of `total` bytes, from `offset` on.

        `before_slice(n)` is called before n more bytes are read; what it raises ends the reading.

        Raises:
            RangeFailed: busy, reset, stalled, short, or another range than asked.
            SourceChanged: another object answers to the key.
            Denied: 403 or expired credentials.
            Permanent: any other refusal, or a certificate that is not trusted.
        """
        with _ClosedOnFailure(self):
            if (channel := self._channel) is None:
                raise RangeFailed("the connection was closed before the answer came")
            answer = _answer(channel, self._head)
            if not _is_range(answer):
                raise _refusal(channel, answer, self._head)
            _check(answer, offset, len(into), total, etag)
            _body(channel, answer.rest, into, before_slice)
            if not answer.keeps_alive:
                self.close()

    def head(self, path: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return what an object's HEAD says; names are in lower case.

        Raises:
            RangeFailed: any answer but a plain 200, or none.
            Permanent: the proxy refuses, or a certificate is not trusted.
        """
        with _ClosedOnFailure(self):
            channel = self._connected()
            channel.send(self._request("HEAD", path, headers))
            answer = _answer(channel, self._head)
            if answer.status != 200 or answer.rest:
                raise RangeFailed(f"S3 answered a HEAD with {answer.status}")
            if not answer.keeps_alive:
                self.close()
            return answer.headers

    def _connected(self) -> Channel:
        if self._channel is None:
            bucket, patience = self._bucket, self._stall_seconds
            sock = connect(
                bucket.host, bucket.port, bucket.proxy, tunnel=self._tls is not None, patience_seconds=patience
            )
            self._channel = self._tls.wrap(sock, bucket.host, patience) if self._tls else PlainChannel(sock, patience)
        return self._channel

    def _request(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        bucket = self._bucket
        if bucket.proxy is not None and self._tls is None:
            path, headers = f"http://{bucket.netloc}{path}", {**headers, **bucket.proxy.headers}
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        return f"{method} {path} HTTP/1.1\r\nHost: {bucket.netloc}\r\n{lines}\r\n".encode("ascii")

    def abort(self) -> None:
        """Wake a thread that is blocked in `read`, from another thread."""
        channel = self._channel
        if channel is not None:
            channel.abort()

    def close(self) -> None:
        """Close the connection; the next `read` makes another, by fresh DNS."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


class _ClosedOnFailure:
    """Closes the connection whatever went wrong on it; a class, since a generator costs small objects 2 % of their CPU."""

    __slots__ = ("_wire",)

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._wire.close()
        if isinstance(error, OSError):
            raise RangeFailed(f"the connection failed ({cut(type(error).__name__, 60)})") from error


def _answer(channel: Channel, room: memoryview) -> Answer:
    """Receive until the end of the head, and a piece of the body with it."""
    have, end, pieces = 0, -1, 0
    while end < 0:
        pieces += 1
        got = channel.receive(room[have:]) if have < len(room) and pieces <= MOST_PIECES else 0
        if not got and pieces > MOST_PIECES:
            raise RangeFailed("the answer's head comes too slowly")
        if not got:
            raise RangeFailed(
                "the answer ended within its head" if have < len(room) else "the answer's head is too long"
            )
        searched, have = max(0, have - 3), have + got
        end = bytes(room[searched:have]).find(b"\r\n\r\n")
    end += searched
    first, *lines = bytes(room[:end]).decode("latin-1").split("\r\n")
    status = _STATUS.match(first)
    if status is None:
        raise RangeFailed(f"the answer is not HTTP/1.1 ({cut(ascii(first), 60)})")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers.setdefault(name.lower(), value.strip())  # of two with one name the first counts
    keeps_alive = status[1] == "1" and headers.get("connection", "").lower() != "close"
    return Answer(status=int(status[2]), headers=headers, rest=room[end + 4 : have], keeps_alive=keeps_alive)


def _body(channel: Channel, rest: memoryview, into: memoryview, before_slice: Callable[[int], None]) -> None:
    received = len(rest)
    if received > len(into):
        raise RangeFailed(f"more came than the {len(into)} bytes that were announced")
    done = 0
    while done < len(into):
        end = min(done + SLICE_BYTES, len(into))
        before_slice(end - done)
        if not done:
            into[:received] = rest
        short = 0
        while received < end:
            got = channel.fill(into[received:end])
            if not got:
                raise RangeFailed(f"the body ended after {received} of {len(into)} bytes")
            received += got
            short = short + 1 if received < end and got < LEAST_BYTES else 0
            if short > 1:  # once may be what came before the connection broke
                raise RangeFailed(f"the body comes too slowly, after {received} of {len(into)} bytes")
        done = end


def _is_range(answer: Answer) -> bool:
    # Some servers (rclone) say 200 to a range and send it all the same: what Content-Range states is what counts.
    return answer.status == 206 or (answer.status == 200 and "content-range" in answer.headers)


def _check(answer: Answer, offset: int, length: int, total: int, etag: str) -> None:
    headers, expected = answer.headers, f"bytes {offset}-{offset + length - 1}/{total}"
    if headers.get("transfer-encoding", "identity") != "identity":  # then Content-Length does not count (RFC 9112, 6.3)
        raise RangeFailed("the answer comes in chunks, whose length nobody states")
    if (found := headers.get("content-range", "")) != expected:
        raise RangeFailed(f"asked for {expected}, was answered {cut(found, 80)!r}")
    if (offered := headers.get("content-length", "")) != str(length):
        raise RangeFailed(f"asked for {length} bytes, was offered {cut(offered, 40)!r}")
    if headers.get("etag", etag) != etag:
        raise SourceChanged("the object was replaced while it was read")


def _refusal(channel: Channel, answer: Answer, room: memoryview) -> Exception:
    if answer.status < 200:
        return RangeFailed(f"S3 gave an answer that is none ({answer.status}), which nobody asked for")
    found = _CODE.search(_said(channel, answer, room))
    code, status = found[1].decode() if found else "", answer.status
    if code == "RequestTimeTooSkewed":
        return RangeFailed(CLOCK_DIFFERS)
    if 300 <= status < 400:  # the listing learns of another region, the next time
        return RangeFailed(f"S3 sends us elsewhere ({status} {code})".rstrip())
    if status in (404, 412, 416):
        return SourceChanged(f"the object was replaced or removed while it was read ({status})")
    if status == 403 or code in _EXPIRED:
        return Denied(f"access denied while reading ({status} {code})")
    if status >= 500 or status in (200, 408, 425, 429) or code in ("RequestTimeout", "SlowDown"):
        return Busy(f"S3 answered a range request with {status} {code}".rstrip())
    if status == 407:
        return Permanent(DEMANDS_CREDENTIALS)
    return Permanent(f"S3 refused a range request ({status} {code})")


def _said(channel: Channel, answer: Answer, room: memoryview) -> bytes:
    """Return the begin of a refusal's body, chunked or not, until its cause is named; the connection is closed after it."""
    said = bytes(answer.rest)
    if answer.status == 200:
        return said  # a whole object is coming
    announced = answer.headers.get("content-length", "")
    length = min(int(announced), REFUSAL_BYTES) if announced.isdecimal() else REFUSAL_BYTES
    for _ in range(MOST_PIECES):
        if len(said) >= length or b"</Error>" in said or said.endswith(b"0\r\n\r\n"):
            break
        got = channel.receive(room)
        if not got:
            break
        said += bytes(room[:got])
    return said
